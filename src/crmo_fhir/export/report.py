"""report.html: one self-contained page for a clinician, without script and without any link to elsewhere.

Texts are English where they stand and go through `Texts` into the language of the page.

Everything that came from a record or a server (names of codes, reasons, warnings) is escaped by the template engine
and stripped of control and text-direction characters.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from fractions import Fraction

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from crmo_fhir.export import sections
from crmo_fhir.export.checklist import RECORD, SECTIONS, Item
from crmo_fhir.export.table1 import (
    COHORT_STRATIFIERS,
    CONFIDENTIAL,
    STRATIFIERS,
    TREATMENT_GROUPS,
    Figures,
    compare,
    describe_disclosure,
    interval,
    limits,
    mean,
    percent,
    round_half_away,
    shown,
)
from crmo_fhir.export.texts import Texts, readable
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.results import MASKED, NO_ANALYSIS, Analysis, Estimate, Result
from crmo_fhir.model.study import Study

UNMAPPED_SHOWN = 100
"""The most frequent unmapped codes are printed; `cohort/unmapped.csv` holds them all."""

_UNITS = {
    "patient": "patients",
    "course": "courses",
    "MRI-evaluated course": "courses with MRI",
    "focus": "foci",
}
_READINGS = {
    "exposed": "Only those who received the drug",
    "worst-case": "Worst case: not evaluable counted as no effect",
    "best-case": "Best case: not evaluable counted as effect",
    "itt": "Intention to treat: stopped for an adverse event before any judgement counted as no effect",
    "patients": "By patient: effect in any course",
    "judged": "Effect as judged in the records",
    "reviewed": "Effect as judged in the review worksheet",
    "judged-or-reviewed": "Effect as judged in the records, else in the review worksheet",
    "derived": "Effect derived from scores and MRI instead of judged",
    "best-ever": "Best effect at any time of the treatment",
    "6-months": "Effect nearest to six months of treatment",
}
_ALWAYS, _INTERNAL = ("effect", "reading", "parameters"), ("attrition", "quality")
"""Of the sections that RECORD names, those that every page has, and those with counts that no release can show."""
_IN_FIRST_TABLE = ("treated", "not-evaluable")
"""Readings that the table of treatment effect holds as its last column."""
_NOTES = {
    "from orders": "from prescriptions only: no record says that the drug was taken",
    "no proportion: nothing to count (0/0)": "",
    "no proportion: nothing of this reading is recorded (0/0)": "nothing of this kind is recorded",
    MASKED: "",
}
_STEPS = {
    "confirmed": "Diagnosis confirmed",
    "one person": "Each person once",
    "diagnosis in window": "Diagnosed in the period",
}
"""Steps of the attrition whose name in the file says too little; the others are shown as they are."""
_REASONS = {
    "a Patient with a qualifying code or text": "patient records with a code or words for CRMO",
    "found by text only, shown apart": "diagnosis in words only, without a code",
    "entered-in-error": "entered in error",
    "unconfirmed": "suspected, never confirmed",
    "merged records": "further records of the same person",
    "diagnosed after the window": "diagnosed after the period",
    "diagnosed before the window": "diagnosed before the period",
    "undetermined: partial date of birth or diagnosis": "cannot be told: incomplete date of birth or diagnosis",
    "undetermined: no date of birth": "cannot be told: no date of birth",
    "undetermined: no date of diagnosis": "cannot be told: no date of diagnosis",
    "undetermined: partial date of diagnosis": "cannot be told: incomplete date of diagnosis",
    "unattributed: in no course's window": "belongs to no course: outside every time window",
}
_LATER_STEPS = {"courses": "Treatment courses", "assessments": "Assessments of effect"}
_RECORDS = "records: "
_STATES = {
    "complete": "received in full",
    "empty": "nothing on file",
    "refused": "refused by the server",
    "truncated": "cut short",
    "unsupported": "not offered by the server",
}
_PARAMETERS = {
    "since": "First date of diagnosis included",
    "until": "Last date of diagnosis included",
    "max_age_years": "Age at diagnosis, strictly under (years)",
    "text_diagnosis": "Diagnosis found in free text only enters the cohort",
    "time_zone": "Time zone of the dates",
    "data_lock": "Last day of data asked for",
    "interval": "Confidence interval of a proportion",
    "gap_days": "Gap that begins a new course of the same agent (days)",
    "switch_overlap_days": "Overlap of two agents of a class taken as a switch, up to (days)",
    "co_mtx_days": "Methotrexate beside a TNF-α inhibitor, from (days)",
    "prevalent_days": "Course begun before the diagnosis is out of the figures beyond (days)",
    "stale_days": "Ongoing course is flagged where nothing is recorded beyond (days)",
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
    "judged_when_exposed": "Minimum exposure must be over on the day of the judgement",
    "infusion_interval_days": "Time that one infusion counts for (days)",
    "effect_source": "Whose judgement of the effect the treatment table counts",
    "hoarding_days": "Stock of a dispense carried over, at most (days)",
    "confounded_days": "Judgement flagged where a glucocorticoid was given within (days before)",
    "carry_over_months": "Course flagged where a bisphosphonate was given within (months before)",
    "partial_dates": "Day that stands for an incomplete date",
    "require_indication": "Course without a recorded indication is out of the figures",
    "score_baseline_before_days": "Baseline of scores at most before the start (days)",
    "score_baseline_after_days": "Baseline of scores at most after the start (days)",
    "pedcno_percent": "PedCNO level that counts as sufficient (percent)",
    "pedcno_items": "PedCNO items that must be better, at least",
    "pedcno_worse_percent": "PedCNO item is worse beyond (percent)",
    "pedcno_zero_steps": "PedCNO item is worse from a baseline of 0 by at least",
    "bootstrap_samples": "Samples of children for the bootstrap intervals",
}


_RULES = {
    "gap_days": "Gap between courses (days)",
    "clinical_grace_days": "Judgement after the stop, up to (days)",
    "mri_grace_days": "MRI after the stop, up to (days)",
    "min_exposure_days": "Minimum exposure (days)",
    "min_exposure_nsaid_days": "Minimum exposure to NSAID (days)",
    "judged_when_exposed": "Judged before the minimum exposure",
    "effect_source": "Whose judgement counts",
    "require_indication": "Courses without an indication",
    "partial_dates": "Day of an incomplete date",
    "evaluability": "Those not judged count as",
}
"""The rules of the sensitivity analysis, short enough for a chart."""
_RULE_VALUES = {
    "True": "left out",
    "False": "counted",
    "middle": "middle",
    "judged": "judged",
    "earliest": "earliest",
    "latest": "latest",
    "worst": "no effect",
    "best": "effect",
    "reviewed": "reviewed",
    "judged-or-reviewed": "judged/reviewed",
    "derived": "derived",
}
_UNCERTAIN = ("cannot be told", "belongs to no course", "unattributed", "undetermined")
"""How the reasons begin that say that records leave something open."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table of proportions, as it is printed; `low`, `high` and `point` place its mark from 0 to 100."""

    name: str
    unit: str
    n: str
    N: str
    percent: str
    interval: str
    point: str
    low: str
    width: str
    extra: str
    note: str


def report_html(
    results: Sequence[Result],
    study: Study,
    printed: Sequence[Mapping[str, str]] | None = None,
    analysis: Analysis = NO_ANALYSIS,
    lang: str = "en",
) -> str:
    """The report as one HTML file, in a language of `texts.LANGUAGES`.

    `printed` is a published comparison (columns of `table1.PRINTED_COLUMNS`; `quantity_da` and `note_da` take the place of
    quantity and note in Danish). Without `analysis` the page has the tables of n of N and their charts only.
    """
    t = Texts(lang)
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
    steps = list(_steps(study))
    parts = _sections(t, analysis, figures)
    internal = study.disclosure.mode == "internal"
    return environment.get_template("report.html.j2").render(
        t=t,
        study=study,
        disclosure=describe_disclosure(study.disclosure),
        confidential=CONFIDENTIAL,
        shown=shown,
        interval=sections.INTERVALS.get(study.parameters.interval, study.parameters.interval),
        treatment=[
            (group, _line(t, name, row, _not_evaluable(t, figures, group))) for group, name, row in _treatment(figures)
        ],
        effects_chart=sections.effects_chart(t, figures),
        missing=[name for group, name in TREATMENT_GROUPS.items() if figures.overall(group) is None],
        printed=None if printed is None else list(_printed(t, results, printed, analysis.estimates)),
        cohort=figures.overall("cohort"),
        sexes=_sexes(t, figures),
        cohort_tables=[
            (name, [_line(t, row.stratum, row) for row in figures.strata("cohort", key)])
            for key, name in COHORT_STRATIFIERS.items()
        ],
        foci=figures.overall("foci"),
        foci_per_patient=t.number(mean(foci_per_patient)) if foci_per_patient else "",
        bones=list(_bones(t, figures)),
        lines=figures.overall("tnfi-lines"),
        line_rows=list(_lines(t, figures)),
        strata=list(_strata(t, figures)),
        strata_charts=list(sections.strata_charts(t, figures, lambda key, name: _stratum(t, key, name))),
        others=list(_others(t, figures)),
        attrition_chart=sections.attrition_chart(t, dict(steps)),
        steps=steps,
        ledger=[(_STATES.get(state, state), cells) for state, cells in sorted(study.ledger.items())],
        unmapped=[{**row, "kind": _kind(str(row["resource_type"]))} for row in unmapped[:UNMAPPED_SHOWN]],
        unmapped_more=len(unmapped[UNMAPPED_SHOWN:]),
        undetermined=[
            (name, reason, dropped)
            for _, rows in steps
            for name, reason, dropped, _ in rows
            if reason.startswith(_UNCERTAIN)
        ],
        parts=parts,
        flags=sections.flags_grid(t, analysis.estimates),
        readings=list(sections.reading_grids(t, analysis.estimates)),
        parameters=list(_parameters(t, study.parameters)),
        record=list(_record(t, {*_ALWAYS, *parts, *(_INTERNAL if internal else ())}, internal=internal)),
    )


def _record(
    t: Texts, present: Collection[str], *, internal: bool
) -> Iterator[tuple[Item, list[tuple[str, str, str]], str]]:
    """Each item of RECORD with the sections of this page that hold it (id, title, what of it), and those only held elsewhere."""
    for item in RECORD:
        here = [(name, t(SECTIONS[name]), t(about)) for name, about in item.sections if name in present]
        kept = [t(SECTIONS[name]) for name, _ in item.sections if name not in present and not internal]
        yield item, here, "; ".join(kept)


def _sections(t: Texts, analysis: Analysis, figures: Figures) -> dict[str, sections.Section]:
    """The parts of the page that an analysis has, by name."""
    found = analysis.estimates
    curves = (
        (
            "survival",
            t("How long a drug is kept (drug survival)"),
            (
                t(
                    "Share of courses not yet stopped for inefficacy or an adverse event (Kaplan–Meier). Courses that go on, and those that ended in remission, by choice or at the end of observation, are censored there. Bands and limits: 95 % confidence, courses taken as independent."
                ),
            ),
            t("percent on the drug"),
            False,
        ),
        (
            "incidence",
            t("Why courses stop (cumulative incidence)"),
            (
                t(
                    "Share of courses stopped by then, by cause: failure and remission compete, so the two add up to all that stopped for either (Aalen–Johansen)."
                ),
            ),
            t("percent stopped"),
            True,
        ),
        (
            "response",
            t("Time to a sufficient effect"),
            (
                t(
                    "Share of courses in which a sufficient clinical effect has been judged by then (Kaplan–Meier). Judgements are made at visits, so the curve rises when a child was seen, not when it got better."
                ),
            ),
            t("percent with a sufficient effect"),
            True,
        ),
    )
    parts = [
        sections.comparison_section(t, found),
        sections.timelines_section(t, analysis.timelines),
        *(
            sections.curves_section(t, found, name, title, intro, axis, from_zero=rising)
            for name, title, intro, axis, rising in curves
        ),
        sections.switch_section(t, found),
        sections.trends_section(t, analysis.trends),
        sections.sensitivity_section(t, found, figures, lambda rule, value: _rule(t, rule, value)),
        sections.agreement_section(t, found),
    ]
    return {part.name: part for part in parts if part is not None}


def _rule(t: Texts, rule: str, value: str) -> tuple[str, str]:
    """A rule of the sensitivity analysis and what it was changed to, in words."""
    return t(_RULES.get(rule, rule)), t(_RULE_VALUES.get(value, value))


def _printed(
    t: Texts, results: Sequence[Result], printed: Sequence[Mapping[str, str]], estimates: Sequence[Estimate]
) -> Iterator[tuple[str, str, str, str]]:
    """Quantity, printed, computed and note of each row of a published comparison."""
    for row, computed in zip(printed, compare(results, printed, estimates), strict=True):
        quantity, note = (row.get(f"{column}_{t.lang}") or t(row[column]) for column in ("quantity", "note"))
        ours = re.sub(r"(\S+) of (\S+)", lambda m: t("{n} of {N}", n=m[1], N=m[2]), computed["computed"])
        ours = t.number(ours) if any(c.isdigit() for c in ours) else t(ours)
        # a row of a release has lost its note, in every language
        yield quantity, t(row["printed"]), ours or "–", note if row["note"] else ""


def _stratum(t: Texts, key: str, name: str) -> str:
    """The name of a stratum where it stands alone."""
    return t(f"line {name}") if key == "line" and name.isdigit() else t(name)


def _clean(value: object) -> object:
    """What is printed, readable. Markup comes from the template's own macros, where each value has been cleaned before."""
    return readable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _line(t: Texts, name: str, row: Result, extra: str = "") -> Line:
    share = percent(row)
    low, high = limits(row)
    # the mark is drawn to a tenth of a percent, which is what the text says
    width = round_half_away(Fraction(high) - Fraction(low), 1) if low else ""
    return Line(
        name=t(name),
        unit=t(_UNITS.get(row.unit, row.unit)),
        n=shown(row.n),
        N=shown(row.N),
        percent=CONFIDENTIAL if row.masked else t.number(share) or "–",
        interval="" if row.masked else t.number(interval(row)) or "–",
        point=share,
        low=low,
        width=width,
        extra=extra,
        note="; ".join(t(said) for note in row.note.split("; ") if (said := _NOTES.get(note, note))),
    )


def _treatment(figures: Figures) -> Iterator[tuple[str, str, Result]]:
    for group, name in TREATMENT_GROUPS.items():
        row = figures.overall(group)
        if row is not None:
            yield group, name, row


def _not_evaluable(t: Texts, figures: Figures, group: str) -> str:
    row = figures.overall(f"{group}-not-evaluable")
    return t("{n} of {N}", n=shown(row.n), N=shown(row.N)) if row else "–"


def _sexes(t: Texts, figures: Figures) -> str:
    return ", ".join(f"{row.n} {t(row.stratum)}" for row in figures.strata("cohort", "sex") if row.n)


def _bones(t: Texts, figures: Figures) -> Iterator[tuple[Line, Line | None]]:
    """Each bone: its foci, and the children with a focus there."""
    for row in figures.bones("bone"):
        children = figures.find("foci", "bone-patients", row.stratum)
        yield _line(t, row.stratum, row), _line(t, row.stratum, children) if children else None


def _lines(t: Texts, figures: Figures) -> Iterator[tuple[str, Line | None, Line | None]]:
    strata = [*figures.strata("tnfi-lines", "line-reached"), *figures.strata("tnfi-lines", "line-ended")]
    for number in dict.fromkeys(row.stratum for row in strata):
        reached, ended = (figures.find("tnfi-lines", key, number) for key in ("line-reached", "line-ended"))
        yield number, _line(t, number, reached) if reached else None, _line(t, number, ended) if ended else None


def _strata(t: Texts, figures: Figures) -> Iterator[tuple[str, list[tuple[str, list[Line | None]]]]]:
    """Each stratifier: its strata, each with one figure a treatment group (None where the stratum is none of its).

    A group that all falls into one stratum would repeat its overall row, and is left out there.
    """
    groups = [group for group, _, _ in _treatment(figures)]
    for key in dict.fromkeys(key for group in groups for key in figures.stratifiers(group)):
        cut = [group for group in groups if sum(row.N != 0 for row in figures.strata(group, key)) > 1]
        strata = dict.fromkeys(row.stratum for group in cut for row in figures.strata(group, key) if row.N != 0)
        rows = [
            (
                t(stratum),
                [
                    _line(t, stratum, row) if group in cut and (row := figures.find(group, key, stratum)) else None
                    for group in groups
                ],
            )
            for stratum in strata
        ]
        if rows:
            yield t(STRATIFIERS.get(key, key)), rows


def _others(t: Texts, figures: Figures) -> Iterator[tuple[str, list[Line]]]:
    """Each treatment group: its figure and its second readings; last, every group that has no table of its own."""
    shown = {*TREATMENT_GROUPS, "cohort", "foci", "foci-per-patient", "tnfi-lines"}
    shown |= {f"{base}-{suffix}" for base in TREATMENT_GROUPS for suffix in _IN_FIRST_TABLE}
    rest = [row for row in figures.rows if not row.stratifier and row.group not in shown]
    for group, name, own in _treatment(figures):
        readings = [row for row in rest if row.group.startswith(f"{group}-")]
        rest = [row for row in rest if row not in readings]
        if readings:
            lines = [_line(t, _reading(row.group.removeprefix(f"{group}-")), row) for row in readings]
            yield t(name), [_line(t, "As in the first table", own), *lines]
    if rest:
        yield t("Others"), [_line(t, row.group, row) for row in rest]


def _reading(suffix: str) -> str:
    return _READINGS.get(suffix, suffix)


def _steps(study: Study) -> Iterator[tuple[str, list[tuple[str, str, int, int]]]]:
    """The attrition in the order a reader asks: patients, then records, courses, assessments.

    Each row is step, reason, left out, remaining.
    """
    parts: dict[str, list[tuple[str, str, int, int]]] = {"Patients": [], "Records": []}
    for row in study.attrition:
        step, reason = str(row["step"]), str(row["reason"] or "")
        if step.startswith(_RECORDS):
            part, name = "Records", _kind(step.removeprefix(_RECORDS))
        else:
            part = _LATER_STEPS.get(step, "Patients")
            name = _STEPS.get(step, step[:1].upper() + step[1:])
        counts = int(str(row["dropped"])), int(str(row["kept"]))
        parts.setdefault(part, []).append((name, _reason(reason), *counts))
    for part in ("Patients", "Records", *_LATER_STEPS.values()):
        if parts.get(part):
            yield part, parts[part]


def _reason(reason: str) -> str:
    """A reason of the attrition in words: an analyte by its name, a status without the hyphens of its code."""
    first, space, rest = reason.partition(" ")
    if first == "status":
        return f"{first}: {rest.replace('-', ' ')}"
    return sections.ANALYTES[first] + space + rest if first in sections.ANALYTES else _REASONS.get(reason, reason)


def _kind(resource_type: str) -> str:
    """A resource type in words: `MedicationStatement` is a medication statement."""
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in resource_type).strip()
    return f"{words[:1].upper()}{words[1:]}"


def _by_count(row: Mapping[str, object]) -> tuple[int, list[str]]:
    """Most frequent first, then by every cell: the order of input does not matter."""
    return -int(str(row["count"])), [str(row[key]) for key in sorted(row)]


def _parameters(t: Texts, parameters: Parameters) -> Iterator[tuple[str, str, str, bool]]:
    """Name, value, default and whether they differ, in the order of the declaration."""
    default = Parameters()
    for field in fields(Parameters):
        value, usual = getattr(parameters, field.name), getattr(default, field.name)
        if field.name == "interval":
            value, usual = (sections.INTERVALS.get(method, method) for method in (value, usual))
        name = t(_PARAMETERS.get(field.name, field.name))
        yield name, _shown(t, value), _shown(t, usual), value != usual


def _shown(t: Texts, value: object) -> str:
    if value is None:
        return t("none")
    if isinstance(value, bool):
        return t("yes") if value else t("no")
    if isinstance(value, date):
        return t.day(value)
    if isinstance(value, dict):
        parts = (f"{t(sections.ANALYTES.get(key, key))} {t.number(str(value[key]))}" for key in sorted(value))
        return "; ".join(parts) or t("none")
    return t(value) if isinstance(value, str) else str(value)
