"""report.html: one self-contained page for a clinician, without script and without any link to elsewhere.

Everything that came from a record or a server (names of codes, reasons, warnings) is escaped by the template engine
and stripped of control and text-direction characters.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from fractions import Fraction

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from crmo_fhir.export.table1 import (
    COHORT_STRATIFIERS,
    TREATMENT_GROUPS,
    Figures,
    compare,
    limits,
    mean,
    percent,
    round_half_away,
)
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.results import Result
from crmo_fhir.model.study import Study

UNMAPPED_SHOWN = 100
"""The most frequent unmapped codes are printed; `cohort/unmapped.csv` holds them all."""

_INTERVALS = {"wilson": "Wilson", "clopper-pearson": "Clopper–Pearson"}
_STRATIFIERS = {"agent": "Agent", "line": "Line", "sex": "Sex", "focality": "Focality", "sapho": "SAPHO ever"}
_READINGS = {
    "exposed": "among those ever exposed",
    "treated": "treated, judged or not",
    "not-evaluable": "treated, effect not evaluable",
    "worst-case": "worst case: all not evaluable count as failures",
    "best-case": "best case: all not evaluable count as successes",
    "itt": "intention to treat: stopped for an adverse event unjudged counts as failure",
    "patients": "by patients: any course sufficient",
    "derived": "effect derived from measurements",
}
_PARAMETERS = {
    "since": "First date of diagnosis included",
    "until": "Last date of diagnosis included",
    "max_age_years": "Age at diagnosis, strictly under (years)",
    "text_diagnosis": "Diagnosis found in free text only enters the cohort",
    "time_zone": "Time zone in which instants become dates",
    "data_lock": "Data lock asked for",
    "interval": "Interval of a proportion",
    "gap_days": "Gap that begins a new course of the same agent (days)",
    "switch_overlap_days": "Overlap of two agents of a class taken as a switch, up to (days)",
    "co_mtx_days": "Methotrexate beside a TNF-α inhibitor, from (days)",
    "prevalent_days": "Course begun before the diagnosis is out of the figures beyond (days)",
    "stale_days": "Ongoing course without a record is flagged stale beyond (days)",
    "reason_days": "Stop reason counts if recorded within (days after the stop)",
    "link_days": "Linked assessment counts within (days after the stop)",
    "clinical_grace_days": "Unlinked assessment counts within (days after the stop)",
    "mri_baseline_before_days": "Baseline MRI at most before the start (days)",
    "mri_baseline_after_days": "Baseline MRI at most after the start (days)",
    "mri_followup_min_days": "Follow-up MRI at least after the start (days)",
    "mri_grace_days": "Follow-up MRI at most after the stop (days)",
    "min_exposure_nsaid_days": "Minimum exposure to an NSAID (days)",
    "min_exposure_days": "Minimum exposure to methotrexate or a TNF-α inhibitor (days)",
    "nsaid_escalation_months": "Escalation that annuls an NSAID effect within (months)",
    "glucocorticoid_escalation_days": "Systemic glucocorticoid is an escalation beyond (days)",
    "infusion_interval_days": "Nominal interval of one infusion (days)",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table of proportions, as it is printed; `low`, `high` and `point` place its mark from 0 to 100."""

    name: str
    unit: str
    n: int
    N: int
    percent: str
    interval: str
    point: str
    low: str
    width: str
    extra: str
    note: str


def report_html(results: Sequence[Result], study: Study, printed: Sequence[Mapping[str, str]] | None = None) -> str:
    """The report as one HTML file; with `printed`, a published comparison (columns of `table1.PRINTED_COLUMNS`)."""
    figures = Figures(tuple(results))
    environment = Environment(
        loader=PackageLoader("crmo_fhir", "export/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    foci_per_patient = figures.find("foci-per-patient", "", "")
    unmapped = sorted(study.unmapped, key=_by_count)
    return environment.get_template("report.html.j2").render(
        study=study,
        interval=_INTERVALS.get(study.parameters.interval, study.parameters.interval),
        treatment=[
            (group, _line(name, row, _not_evaluable(figures, group))) for group, name, row in _treatment(figures)
        ],
        missing=[name for group, name in TREATMENT_GROUPS.items() if figures.overall(group) is None],
        printed=None if printed is None else compare(results, printed),
        cohort=figures.overall("cohort"),
        cohort_tables=[
            (name, [_line(row.stratum, row) for row in figures.strata("cohort", key)])
            for key, name in COHORT_STRATIFIERS.items()
        ],
        foci=figures.overall("foci"),
        foci_per_patient=mean(foci_per_patient) if foci_per_patient else "",
        bones=list(_bones(figures)),
        lines=figures.overall("tnfi-lines"),
        line_rows=list(_lines(figures)),
        strata=list(_strata(figures)),
        others=list(_others(figures)),
        listed=sorted(study.listed, key=_by_count),
        unmapped=unmapped[:UNMAPPED_SHOWN],
        unmapped_more=len(unmapped[UNMAPPED_SHOWN:]),
        parameters=list(_parameters(study.parameters)),
    )


def _clean(value: object) -> object:
    """Text without control and formatting characters (among them those that turn the direction of text).

    Markup comes from the template's own macros, where each value has been cleaned and escaped before.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(
        c if c in "\t\n" or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co"} else "\ufffd" for c in value
    )


def _line(name: str, row: Result, extra: str = "") -> Line:
    share = percent(row)
    low, high = limits(row)
    # the mark is drawn to a tenth of a percent, which is what the text says
    width = round_half_away(Fraction(high) - Fraction(low), 1) if low else ""
    return Line(
        name=name,
        unit=row.unit,
        n=row.n,
        N=row.N,
        percent=share or "–",
        interval=f"{low} to {high}" if low else "–",
        point=share,
        low=low,
        width=width,
        extra=extra,
        note=row.note,
    )


def _treatment(figures: Figures) -> Iterator[tuple[str, str, Result]]:
    for group, name in TREATMENT_GROUPS.items():
        row = figures.overall(group)
        if row is not None:
            yield group, name, row


def _not_evaluable(figures: Figures, group: str) -> str:
    row = figures.overall(f"{group}-not-evaluable")
    return f"{row.n} of {row.N}" if row else "–"


def _bones(figures: Figures) -> Iterator[tuple[Line, Line | None]]:
    """Each bone: its foci, and the children with a focus there."""
    for row in figures.strata("foci", "bone"):
        children = figures.find("foci", "bone-patients", row.stratum)
        yield _line(row.stratum, row), _line(row.stratum, children) if children else None


def _lines(figures: Figures) -> Iterator[tuple[str, Line | None, Line | None]]:
    strata = [*figures.strata("tnfi-lines", "line-reached"), *figures.strata("tnfi-lines", "line-ended")]
    for number in dict.fromkeys(row.stratum for row in strata):
        reached, ended = (figures.find("tnfi-lines", key, number) for key in ("line-reached", "line-ended"))
        yield number, _line(number, reached) if reached else None, _line(number, ended) if ended else None


def _strata(figures: Figures) -> Iterator[tuple[str, str, list[tuple[str, list[Line]]]]]:
    for group, name, row in _treatment(figures):
        tables = [
            (_STRATIFIERS.get(key, key), [_line(r.stratum, r) for r in figures.strata(group, key) if r.N])
            for key in figures.stratifiers(group)
        ]
        tables = [(key, rows) for key, rows in tables if rows]
        if tables:
            yield name, row.unit, tables


def _others(figures: Figures) -> Iterator[Line]:
    """The overall rows of every group that has no table of its own, in their order."""
    shown = {*TREATMENT_GROUPS, "cohort", "foci", "foci-per-patient", "tnfi-lines"}
    for row in figures.rows:
        if not row.stratifier and row.group not in shown:
            yield _line(_reading(row.group), row)


def _reading(group: str) -> str:
    for base, name in TREATMENT_GROUPS.items():
        if group.startswith(f"{base}-"):
            suffix = group.removeprefix(f"{base}-")
            return f"{name} – {_READINGS.get(suffix, suffix)}"
    return group


def _by_count(row: Mapping[str, object]) -> tuple[int, list[str]]:
    """Most frequent first, then by every cell: the order of input does not matter."""
    return -int(str(row["count"])), [str(row[key]) for key in sorted(row)]


def _parameters(parameters: Parameters) -> Iterator[tuple[str, str, str, bool]]:
    """Name, value, default and whether they differ, in the order of the declaration."""
    default = Parameters()
    for field in fields(Parameters):
        value, usual = getattr(parameters, field.name), getattr(default, field.name)
        yield _PARAMETERS.get(field.name, field.name), _shown(value), _shown(usual), value != usual


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, dict):
        return ", ".join(f"{key} {value[key]}" for key in sorted(value)) or "none"
    return str(value)
