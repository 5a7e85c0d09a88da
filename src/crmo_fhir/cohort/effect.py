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
from crmo_fhir.model.parameters import Parameters

NO_READING = {
    "clinical": {"entered-in-error", "cancelled", "registered"},
    "mri": {"entered-in-error", "cancelled", "registered", "preliminary"},
}
"""Observation.status that is no (final) reading (edge cases E12, E32)."""

ORIGINS = ("judged", "reviewed", "derived")
"""Whose answer an assessment is: an Observation's, the review worksheet's, or that of scores."""
SIX_MONTHS = 183


@dataclass(frozen=True, slots=True)
class Attributed:
    """One assessment and the course it judges (None: unattributed)."""

    assessment: str
    person: str
    kind: str
    value: str
    when: date | None
    course: Course | None
    attribution: str
    reason: str | None
    origin: str = "judged"


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
    when = partial(row, "date")
    day = when.point if when else None

    def answer(course: Course | None, how: str, reason: str | None = None) -> Attributed:
        return Attributed(row["assessment"], person, row["kind"], row["value"], day, course, how, reason)

    linked, unknown = _linked(row, courses, day)
    if unknown:
        return answer(None, "unattributed", "linked to a record that makes no course")
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
        baseline, day = _compared(row, imaging, day)
        fitting = [
            c
            for c in counted
            if c.start + timedelta(days=parameters.mri_followup_min_days)
            <= day
            <= _window_end(c, courses, parameters.mri_grace_days)
            and _has_baseline(c, baseline, imaging, parameters)
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
    """Whether methotrexate would be credited with what was seen after the start of a TNF-α inhibitor (edge case E03)."""
    return course.drug_class == "MTX" and any(
        c.drug_class == "TNF" and c.left_out is None and (day is None or c.start < day) for c in courses
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


def _compared(row: Row, imaging: list[Row], day: date) -> tuple[date | None, date]:
    """Baseline and follow-up of an MRI judgement: the first and last of the studies it compares."""
    dates = sorted(d.point for i in imaging if i["imaging"] in row["derived_from"] and (d := partial(i, "date")))
    if len(dates) > 1:
        return dates[0], dates[-1]
    return None, dates[0] if dates else day


def _has_baseline(course: Course, baseline: date | None, imaging: list[Row], parameters: Parameters) -> bool:
    low = course.start - timedelta(days=parameters.mri_baseline_before_days)
    high = course.start + timedelta(days=parameters.mri_baseline_after_days)
    if baseline is not None:
        return low <= baseline <= high
    return any((d := partial(i, "date")) is not None and low <= d.point <= high for i in imaging)


def derive_effect(
    courses: Mapping[str, list[Course]], attributed: list[Attributed], parameters: Parameters
) -> tuple[dict[str, dict[str, Any]], list[Row]]:
    """The columns of effect of each course (by course name), and the rows of the table `assessments`."""
    by_course: dict[str, list[Attributed]] = defaultdict(list)
    for a in attributed:
        if a.course is not None:
            by_course[a.course.name].append(a)
    judged, primary = {}, set()
    for own in courses.values():
        for course in own:
            found = by_course[course.name]
            by_origin = {
                kind: {o: _primary([a for a in found if (a.kind, a.origin) == (kind, o)]) for o in ORIGINS}
                for kind in ("clinical", "mri")
            }
            clinical, mri = (_counted(by_origin[kind], parameters.effect_source) for kind in ("clinical", "mri"))
            primary |= {a.assessment for a in (clinical, mri) if a is not None}
            clinically = [
                a
                for a in found
                if a.kind == "clinical" and a.value != "not-evaluable" and clinical and a.origin == clinical.origin
            ]
            reason = _not_evaluable(course, clinical, parameters)
            judged[course.name] = {
                "effect": clinical.value if clinical else None,
                "effect_low": clinical.when if clinical else None,
                **{o: one.value if (one := by_origin["clinical"][o]) else None for o in ORIGINS},
                "exposure_enough": _is_exposed(course, parameters),
                "effect_best": "sufficient"
                if any(a.value == "sufficient" for a in clinically)
                else clinical and clinical.value,
                "effect_6_months": _nearest(clinically, course.start + timedelta(days=SIX_MONTHS)),
                "evaluable": reason is None,
                "not_evaluable_reason": reason,
                "mri": mri.value if mri else None,
                **{f"mri_{o}": one.value if (one := by_origin["mri"][o]) else None for o in ORIGINS},
                "doses": [],
                "products": [],
                "assessments": sorted(a.assessment for a in found),
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
        }
        for a in attributed
    ]
    return judged, rows


def _counted(primary: Mapping[str, Attributed | None], source: str) -> Attributed | None:
    """What the study counts, of the primary answer of each origin; one origin after the other, never mixed."""
    return next((found for origin in source.split("-or-") if (found := primary[origin]) is not None), None)


def _favourable(value: str) -> bool:
    return value in {"sufficient", "regression"}


def _primary(found: list[Attributed]) -> Attributed | None:
    """The last judgement; of several on that day the unfavourable one."""
    answered = [a for a in found if a.value != "not-evaluable"]
    return max(answered, key=lambda a: (a.when or date.min, not _favourable(a.value), a.assessment), default=None)


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
    return None if _is_exposed(course, parameters) else "too short an exposure"


def _is_exposed(course: Course, parameters: Parameters) -> bool:
    """Whether a course was long enough to be judged, or failed before it was (edge case E24)."""
    failed = course.stop_reason in {"inefficacy", "adverse_event", "both"}
    needed = parameters.min_exposure_nsaid_days if course.drug_class == "NSAID" else parameters.min_exposure_days
    return failed or course.exposure_days >= needed
