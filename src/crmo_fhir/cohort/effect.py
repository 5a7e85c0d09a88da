"""Which course a judged effect belongs to, and what counts for the course (clinical rules §3).

A link decides; without one the window does; what fits neither is listed as unattributed. Nothing observed after the
start of a TNF-α inhibitor is ever credited to methotrexate.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from crmo_fhir.cohort.courses import ESCALATIONS, FOREVER, Course
from crmo_fhir.cohort.criteria import Row, partial
from crmo_fhir.fhir.dates import PartialDate
from crmo_fhir.model.parameters import EFFECT_SOURCES, Parameters
from crmo_fhir.model.tables import FAILURES

NO_READING = {
    "clinical": {"entered-in-error", "cancelled", "registered"},
    "mri": {"entered-in-error", "cancelled", "registered", "preliminary"},
}
"""Observation.status that is no (final) reading (edge cases E12, E32)."""

SIX_MONTHS = 183
ORIGINS = ("judged", "reviewed", "derived")
"""Whose answer on the effect it is; they stand beside one another and are never mixed."""


@dataclass(frozen=True, slots=True)
class Attributed:
    """One answer on the effect and the course it is of (None: unattributed).

    `origin` is whose answer it is: `judged` (an Observation), `reviewed` (the worksheet) or `derived` (scores); `sources` are
    the keys of the records that one which is no Observation itself rests on.
    """

    assessment: str
    person: str
    kind: str
    value: str
    when: date | None
    course: Course | None
    attribution: str
    reason: str | None
    issued: date | None = None
    origin: str = "judged"
    sources: tuple[str, ...] = ()


def filter_observed(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Assessments that can be read, and what was left out with its reason."""
    usable, listed = [], []
    for row in rows:
        reason = None
        if row["status"] in NO_READING[row["kind"]]:
            reason = "status " + row["status"]
        elif row["value"] is None:
            reason = "answer not placed"
        if reason is None:
            usable.append(row)
        else:
            listed.append(
                {
                    "source": row["assessment"],
                    "resource_type": "Observation",
                    "patient": row["patient"],
                    "reason": reason,
                }
            )
    return usable, listed


def attribute_effects(
    observed: Mapping[str, list[Row]],
    courses: Mapping[str, list[Course]],
    imaging: Mapping[str, list[Row]],
    parameters: Parameters,
) -> list[Attributed]:
    """Every usable assessment of every child, attributed by link, by window, or not at all."""
    return [
        _attribute(person, row, courses[person], imaging.get(person, []), parameters)
        for person, rows in sorted(observed.items())
        for row in sorted(rows, key=lambda r: str(r["assessment"]))
    ]


def _attribute(person: str, row: Row, courses: list[Course], imaging: list[Row], parameters: Parameters) -> Attributed:
    """The verdict of the day; a partial date counts only where each day it may be has the same one (edge case E15)."""
    when, issued = partial(row, "date"), partial(row, "issued")
    days = _days(row, when, courses, parameters)
    told = [_judge(row, day, courses, imaging, parameters) for day in days]
    course, how, reason = told[0]
    if any(other is not course for other, _, _ in told):
        course, how, reason = None, "unattributed", "undetermined: partial date"
    return Attributed(
        row["assessment"],
        person,
        row["kind"],
        row["value"],
        days[0],
        course,
        how,
        reason,
        issued.low if issued else None,
    )


def _days(row: Row, when: PartialDate | None, courses: list[Course], parameters: Parameters) -> list[date | None]:
    """The day that stands for an assessment, then the ends of its partial date, as far as its link lets it be there."""
    if when is None or when.exact:
        return [when.low if when else None]
    day, low, high = when.at(parameters.partial_dates), when.low, when.high
    linked, _ = _linked(row, courses, day)
    if linked is not None:
        latest = FOREVER if linked.end is None else linked.end + timedelta(days=parameters.link_days)
        if max(low, linked.start) <= min(high, latest):
            low, high = max(low, linked.start), min(high, latest)
    return [min(max(day, low), high), low, high]


def _judge(
    row: Row, day: date | None, courses: list[Course], imaging: list[Row], parameters: Parameters
) -> tuple[Course | None, str, str | None]:
    """The course that an assessment seen on a day judges, how, and why none."""

    def answer(course: Course | None, how: str, reason: str | None = None) -> tuple[Course | None, str, str | None]:
        return course, how, reason

    linked, unknown = _linked(row, courses, day)
    if unknown:
        return answer(None, "unattributed", "linked to a record that makes no course")
    studies = _compared(row, imaging, parameters) if row["kind"] == "mri" else []
    if len(studies) > 1 and not _covers(studies[-1], studies[0]):
        return answer(None, "unattributed", "the MR studies compared cover different regions")
    if linked is not None:
        if day is not None and (day - linked.last).days > parameters.link_days:
            return answer(None, "unattributed", "late: long after the stop")
        if day is not None and day < linked.start:
            return answer(None, "unattributed", "before the start of the course it is linked to")
        if is_locked(linked, courses, day):
            return answer(None, "unattributed", "after the start of a TNF inhibitor")
        return answer(linked, "link", None if day else "not dated")
    if day is None:
        return answer(None, "unattributed", "neither linked nor dated")
    counted = [c for c in courses if c.left_out is None and c.drug_class in ESCALATIONS | {"NSAID", "GC"}]
    if row["kind"] == "clinical":
        fitting = [c for c in counted if c.start <= day <= _window_end(c, courses, parameters.clinical_grace_days)]
    else:
        dates = [seen_on for study in studies if (seen_on := _day_of(study, parameters))]
        baseline, day = (studies[0] if len(dates) > 1 else None), (dates[-1] if dates else day)
        seen = studies[-1:] or [study for study in imaging if _day_of(study, parameters) == day]
        fitting = [
            c
            for c in counted
            if c.start + timedelta(days=parameters.mri_followup_min_days)
            <= day
            <= _window_end(c, courses, parameters.mri_grace_days)
            and _has_baseline(c, [baseline] if baseline else imaging, seen, parameters)
        ]
    fitting = [c for c in fitting if not is_locked(c, courses, day)]
    if not fitting:
        return answer(None, "unattributed", "in no course's window")
    return answer(max(fitting, key=lambda c: _claim(c, day)), "window")


def _claim(course: Course, day: date) -> tuple[bool, int, date, str]:
    """Who gets an assessment that several windows hold (edge cases E20, E33).

    No drug on its first day; treatments before the symptomatic classes; then the course begun last.
    """
    rank = {"NSAID": 1, "GC": 0}.get(course.drug_class, 2)
    return (course.start < day, rank, course.start, course.agent)


def _linked(row: Row, courses: list[Course], day: date | None) -> tuple[Course | None, bool]:
    """The course a link names (partOf first, else focus); True where every link names a record without a course."""
    for links in (row["part_of"], row["focus"]):
        named = [c for c in courses if any(e.source in links for e in c.members)] or [
            c for c in courses if any(e.source in links for e in c.context)
        ]
        if named:
            begun = [c for c in named if day is None or c.start <= day]
            return (max(begun, key=lambda c: c.start) if begun else min(named, key=lambda c: c.start)), False
        if links:
            return None, True
    return None, False


def is_locked(course: Course, courses: list[Course], day: date | None) -> bool:
    """Whether methotrexate would be credited with what was seen after the start of a TNF-α inhibitor (edge case E03).

    Whenever that was, long before the diagnosis too; only one given for another disease alone is none.
    """
    return course.drug_class == "MTX" and any(
        c.drug_class == "TNF" and c.left_out != "other disease" and (day is None or c.start < day) for c in courses
    )


def compute_escalation(course: Course, courses: list[Course]) -> date | None:
    """The day an escalation ends the course's windows: the next agent of its class, or a stronger treatment."""
    starts = [
        c.start
        for c in courses
        if c.left_out != "other disease"
        and c.start > course.start
        and c.drug_class in ESCALATIONS
        and c.agent != course.agent
    ]
    return min(starts, default=None)


def _window_end(course: Course, courses: list[Course], grace: int) -> date:
    stop = FOREVER if course.end is None else course.end + timedelta(days=grace)
    return min(stop, compute_escalation(course, courses) or FOREVER)


def _day_of(study: Row, parameters: Parameters) -> date | None:
    """The day that stands for the date of an MR study."""
    when = partial(study, "date")
    return when.at(parameters.partial_dates) if when else None


def _compared(row: Row, imaging: list[Row], parameters: Parameters) -> list[Row]:
    """The dated studies that an MRI judgement compares, the baseline first and the follow-up last."""
    dated = [
        (day, study["imaging"], study)
        for study in imaging
        if study["imaging"] in row["derived_from"] and (day := _day_of(study, parameters))
    ]
    return [study for *_, study in sorted(dated, key=lambda s: s[:2])]


def _covers(later: Row, earlier: Row) -> bool:
    """Whether a follow-up shows the regions of its baseline, as far as they are recorded (edge case E34)."""
    if later["whole_body"] or not later["regions"]:
        return True
    if earlier["whole_body"]:
        return False
    return set(earlier["regions"]) <= set(later["regions"])


def _has_baseline(course: Course, baselines: list[Row], seen: list[Row], parameters: Parameters) -> bool:
    """Whether one of the baselines lies in the window of the course and in the regions of the follow-up `seen`."""
    low = course.start - timedelta(days=parameters.mri_baseline_before_days)
    high = course.start + timedelta(days=parameters.mri_baseline_after_days)
    return any(
        (day := _day_of(b, parameters)) is not None
        and low <= day <= high
        and (not seen or any(_covers(study, b) for study in seen))
        for b in baselines
    )


def derive_effect(
    courses: Mapping[str, list[Course]], attributed: list[Attributed], parameters: Parameters
) -> tuple[dict[str, dict[str, Any]], list[Row]]:
    """The columns of effect of each course (by course name), and the rows of the table `assessments`.

    Each origin has its own primary answer, chosen by the same rule. `parameters.effect_source` says which origin the columns
    `effect`, `evaluable` and `mri` follow; of `judged-or-reviewed` a judgement goes before a review.
    """
    by_course: dict[str, list[Attributed]] = defaultdict(list)
    for a in attributed:
        if a.course is not None:
            by_course[a.course.name].append(a)
    counted = EFFECT_SOURCES[parameters.effect_source]
    judged, primary = {}, set()
    for own in courses.values():
        for course in own:
            found = by_course[course.name]
            answers = {
                (origin, kind): _primary([a for a in found if (a.origin, a.kind) == (origin, kind)])
                for origin in ORIGINS
                for kind in NO_READING
            }
            clinical, mri = (
                next((answer for origin in counted if (answer := answers[origin, kind])), None) for kind in NO_READING
            )
            primary |= {a.assessment for a in answers.values() if a is not None}
            clinically = [
                a
                for a in found
                if clinical and (a.origin, a.kind) == (clinical.origin, "clinical") and a.value != "not-evaluable"
            ]
            judgements = [a for a in found if a.origin == "judged"]
            course.flags |= _flags(course, own, judgements, answers["judged", "clinical"], parameters)
            reason = _not_evaluable(course, clinical, parameters)
            judged[course.name] = {
                "effect": clinical.value if clinical else None,
                "effect_low": clinical.when if clinical else None,
                **{origin: _value(answers[origin, "clinical"]) for origin in ORIGINS},
                "exposure_enough": _is_exposed(course, parameters),
                "effect_best": "sufficient"
                if any(a.value == "sufficient" for a in clinically)
                else clinical and clinical.value,
                "effect_6_months": _nearest(clinically, course.start + timedelta(days=SIX_MONTHS)),
                "evaluable": reason is None,
                "not_evaluable_reason": reason,
                "mri": mri.value if mri else None,
                **{f"mri_{origin}": _value(answers[origin, "mri"]) for origin in ORIGINS},
                "assessments": sorted(
                    {a.assessment for a in found if a.origin == "judged"}
                    | {key for a in found if a.origin in counted for key in a.sources or (a.assessment,)}
                ),
            }
    rows = [
        {
            "assessment": a.assessment,
            "person": a.person,
            "kind": a.kind,
            "origin": a.origin,
            "value": a.value,
            "date": a.when,
            "course": a.course.name if a.course else None,
            "attribution": a.attribution,
            "reason": a.reason,
            "primary": a.assessment in primary,
            "sources": sorted(a.sources),
        }
        for a in attributed
    ]
    return judged, rows


def _value(answer: Attributed | None) -> str | None:
    return answer.value if answer else None


def _favourable(value: str) -> bool:
    return value in {"sufficient", "regression"}


def _primary(found: list[Attributed]) -> Attributed | None:
    """The last judgement; of several on that day the one issued last, else the unfavourable one (edge case E32)."""
    answered = [a for a in found if a.value != "not-evaluable"]
    return max(
        answered,
        key=lambda a: (a.when or date.min, a.issued or date.min, not _favourable(a.value), a.assessment),
        default=None,
    )


def _flags(
    course: Course, own: list[Course], found: list[Attributed], clinical: Attributed | None, parameters: Parameters
) -> set[str]:
    """What a reader should know of the judgements of a course (edge cases E21, E25, E32)."""
    flags = set()
    answers = [a for a in found if a.value != "not-evaluable"]
    if len({a.value for a in answers if a.kind == "clinical"}) > 1:
        flags.add("judgements differ")
    readings: dict[date | None, set[str]] = defaultdict(set)
    for a in answers:
        if a.kind == "mri":
            readings[a.when].add(a.value)
    if any(len(values) > 1 for values in readings.values()):
        flags.add("readers disagree")
    if clinical is not None and clinical.when is not None and course.drug_class != "GC":
        since = clinical.when - timedelta(days=parameters.confounded_days)
        if any(c.drug_class == "GC" and c.start <= clinical.when and c.last >= since for c in own):
            flags.add("judged under a glucocorticoid")
    return flags


def _nearest(found: list[Attributed], target: date) -> str | None:
    dated = [(abs((a.when - target).days), a.when, _favourable(a.value), a.value) for a in found if a.when]
    return min(dated)[3] if dated else None


def _not_evaluable(course: Course, clinical: Attributed | None, parameters: Parameters) -> str | None:
    if clinical is None:
        return (
            "no assessment, stopped for an adverse event"
            if course.stop_reason in {"adverse_event", "both"}
            else "no assessment"
        )
    if not _is_exposed(course, parameters):
        return "too short an exposure"
    early = clinical.when is not None and (clinical.when - course.start).days < parameters.min_exposure(
        course.drug_class
    )
    failed = course.stop_reason in FAILURES
    return "judged before the minimum exposure" if parameters.judged_when_exposed and early and not failed else None


def _is_exposed(course: Course, parameters: Parameters) -> bool:
    """Whether a course was long enough to be judged, or failed before it was (edge case E24)."""
    return course.stop_reason in FAILURES or course.exposure_days >= parameters.min_exposure(course.drug_class)
