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
    judged_when_exposed: bool = False
    """Whether the minimum exposure must be over on the day of the judgement, and not only by the end of the course (edge case E24)."""
    nsaid_escalation_months: int = 12
    glucocorticoid_escalation_days: int = 28
    infusion_interval_days: dict[str, int] = field(default_factory=lambda: {"infliximab": 56})
    """Nominal interval of one administration, by agent; other agents count the day itself."""

    effect_source: str = "judged"
    """Whose judgement the treatment table counts: `judged` (Observations), `reviewed` (worksheet), `judged-or-reviewed`, or
    `derived` (scores); the others stand beside it, never mixed."""
    hoarding_days: int = 90
    """Stock of a dispense that overlaps the next is carried over, at most this long (edge case E51)."""
    confounded_days: int = 30
    """A systemic glucocorticoid given this shortly before a judgement confounds it: flagged (edge case E21)."""
    carry_over_months: int = 12
    """A bisphosphonate given this shortly before a course may still work: flagged (edge case E22)."""
    score_baseline_before_days: int = 90
    score_baseline_after_days: int = 14
    """Baseline of a score, a laboratory value or a lesion count: the last one in [-before, +after] days of the start."""
    pedcno_percent: int = 70
    """PedCNO level that counts as sufficient: 30, 50, 70 or 90."""
    pedcno_items: int = 3
    """So many core items must be better by that much, and so many must be there at both times."""
    pedcno_worse_percent: int = 30
    """At most one of the other items may be worse by more than this."""
    partial_dates: str = "middle"
    """The day that stands for a partial date where one number is unavoidable: `middle`, `earliest` or `latest` (edge case E15)."""
    require_indication: bool = False
    """Whether a course without a recorded indication is out of the figures (edge case E19)."""
    pedcno_zero_steps: dict[str, float] = field(
        default_factory=lambda: {
            "esr": 10,
            "lesion-count": 1,
            "physician-global": 1,
            "patient-global": 1,
            "chaq": 0.125,
        }
    )
    """From a baseline of 0 an item is worse where it rises by at least this (globals on 0–100: ten times this)."""
    bootstrap_samples: int = 2000
    """Samples of children for the bootstrap intervals; the seed is fixed."""

    def min_exposure(self, drug_class: str) -> int:
        """The days that a course of this class needs to be judged (edge case E24)."""
        return self.min_exposure_nsaid_days if drug_class == "NSAID" else self.min_exposure_days


EFFECT_SOURCES: dict[str, tuple[str, ...]] = {
    "judged": ("judged",),
    "reviewed": ("reviewed",),
    "judged-or-reviewed": ("judged", "reviewed"),
    "derived": ("derived",),
}
"""The sources of the effect a study may count, each with the origins it takes an answer from, the first that has one."""
CHOICES: dict[str, tuple[object, ...]] = {
    "interval": ("wilson", "clopper-pearson"),
    "effect_source": tuple(EFFECT_SOURCES),
    "partial_dates": ("middle", "earliest", "latest"),
    "pedcno_percent": (30, 50, 70, 90),
}
"""The values of the parameters that are one of a few."""

SENSITIVITY: dict[str, tuple[object, ...]] = {
    "gap_days": (30, 60, 180),
    "clinical_grace_days": (0, 90),
    "mri_grace_days": (0, 120),
    "min_exposure_days": (0, 28, 168),
    "min_exposure_nsaid_days": (0, 84),
    "judged_when_exposed": (True,),
    "partial_dates": ("earliest", "latest"),
    "require_indication": (True,),
    "effect_source": ("reviewed", "judged-or-reviewed", "derived"),
}
"""What each headline figure is computed with besides, and with the default where that is changed: one rule at a time."""
