"""Every clinical threshold, named once, with its default (clinical-rules: courses, effect). Days are date differences."""

from dataclasses import dataclass, field
from datetime import date


@dataclass(frozen=True, slots=True)
class Parameters:
    """Thresholds and choices of one study; the report prints them beside their defaults."""

    since: date | None = None
    until: date | None = None
    max_age_years: int = 16
    text_diagnosis: bool = False
    time_zone: str = "Europe/Copenhagen"
    data_lock: date | None = None
    interval: str = "wilson"

    gap_days: int = 90
    """A gap of at least this many days between two exposures to one agent begins a new course."""
    switch_overlap_days: int = 30
    """Two agents of a class together up to this long: the earlier ends where the later begins."""
    co_mtx_days: int = 28
    prevalent_days: int = 90
    """A course begun more than this before the diagnosis is out of the figures (edge case E18)."""
    stale_days: int = 365
    reason_days: int = 180
    """A stop reason recorded up to this long after the stop counts."""
    link_days: int = 180
    """A linked assessment up to this long after the stop is the course's."""
    clinical_grace_days: int = 30
    mri_baseline_before_days: int = 180
    mri_baseline_after_days: int = 14
    mri_followup_min_days: int = 84
    mri_grace_days: int = 60
    min_exposure_nsaid_days: int = 28
    min_exposure_days: int = 84
    nsaid_escalation_months: int = 12
    glucocorticoid_escalation_days: int = 28
    infusion_interval_days: dict[str, int] = field(default_factory=lambda: {"infliximab": 56})
    """Nominal interval of one administration, by agent; other agents count the day itself."""
