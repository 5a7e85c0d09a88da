"""Treatment effect: of those who can be judged, how many had a sufficient effect (clinical rules §3).

`nsaid-clinical` and `mtx-clinical` count children, `tnfi-clinical` and the MRI groups count courses. Beside each group
stand its second readings: treated, not evaluable, worst and best case, intention to treat.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crmo_fhir.fhir.dates import add_months
from crmo_fhir.metrics.describe import count, sapho_of, share
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.results import Result
from crmo_fhir.model.tables import FOCALITIES, SEXES, UNSPECIFIED

Row = dict[str, Any]
NSAID_ESCALATIONS = {"MTX", "TNF", "BP"}
NO_AGENT = "none"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing counted, a child or a course: whose it is, its answer (None: not evaluable), the strata it is in.

    `courses` are those its answer was read from.
    """

    person: str
    effect: bool | None
    failed_unjudged: bool
    strata: dict[str, str]
    courses: tuple[Row, ...] = ()


def agent_of(course: Row) -> str:
    """The agent of a course as a stratum."""
    return UNKNOWN if course["agent"].endswith(UNSPECIFIED) else str(course["agent"])


def _strata(patient: Row, course: Row | None) -> dict[str, str]:
    agent, line = (agent_of(course), str(course["line_no"])) if course else (NO_AGENT, NO_AGENT)
    if agent == UNKNOWN:
        line = UNKNOWN
    return {
        "agent": agent,
        "line": line,
        "sex": patient["sex"],
        "focality": patient["focality"],
        "sapho": sapho_of(patient),
    }


def derive_children(
    drug_class: str, patients: Sequence[Row], courses: Sequence[Row], parameters: Parameters
) -> list[Unit]:
    """The children treated with a class, each with the clinical effect of it."""
    own, everything = _of_class(courses, drug_class), _by_person(courses)
    return [
        _child(p, own[p["person"]], everything[p["person"]], drug_class, parameters)
        for p in patients
        if p["person"] in own
    ]


def derive_whole_cohort(treated: Sequence[Unit], patients: Sequence[Row]) -> list[Unit]:
    """Every child of the cohort, without an effect where it was not treated or not judged (the NSAID row as published)."""
    units = {unit.person: unit for unit in treated}
    everyone = [units.get(p["person"]) or Unit(p["person"], None, False, _strata(p, None)) for p in patients]
    return [replace(unit, effect=bool(unit.effect), failed_unjudged=False) for unit in everyone]


def derive_courses(drug_class: str, patients: Sequence[Row], courses: Sequence[Row]) -> list[Unit]:
    """The courses of a class, each with its clinical effect."""
    own, by_key = _of_class(courses, drug_class), {p["person"]: p for p in patients}
    return [_course(by_key[person], course) for person in sorted(own) for course in own[person]]


def derive_mri(drug_class: str, patients: Sequence[Row], courses: Sequence[Row]) -> list[Unit]:
    """The courses of a class, each with its change on MRI."""
    own, by_key = _of_class(courses, drug_class), {p["person"]: p for p in patients}
    return [
        Unit(
            person,
            None if c["mri"] is None else c["mri"] == "regression",
            False,
            _strata(by_key[person], c),
            (c,),
        )
        for person in sorted(own)
        for c in own[person]
    ]


def derive_headlines(patients: Sequence[Row], courses: Sequence[Row], parameters: Parameters) -> dict[str, list[Unit]]:
    """What each of the five treatment groups counts."""
    return {
        "nsaid-clinical": derive_whole_cohort(derive_children("NSAID", patients, courses, parameters), patients),
        "mtx-clinical": derive_children("MTX", patients, courses, parameters),
        "tnfi-clinical": derive_courses("TNF", patients, courses),
        "mtx-mri": derive_mri("MTX", patients, courses),
        "tnfi-mri": derive_mri("TNF", patients, courses),
    }


def compute_patients(
    prefix: str, drug_class: str, patients: Sequence[Row], courses: Sequence[Row], parameters: Parameters
) -> list[Result]:
    """The clinical effect of a class counted by children, and its MRI effect counted by courses."""
    treated = derive_children(drug_class, patients, courses, parameters)
    group, flag = f"{prefix}-clinical", _orders_note(treated)
    readings = _readings(group, "patient", treated, parameters.interval, flag)
    if drug_class == "NSAID":
        # as published: every child of the cohort is in the denominator; the exposed are the second reading
        exposed = [replace(unit, effect=bool(unit.effect), failed_unjudged=False) for unit in treated]
        return [
            *_group(group, "patient", derive_whole_cohort(treated, patients), parameters.interval, flag),
            *_group(f"{group}-exposed", "patient", exposed, parameters.interval, flag),
            *readings,
        ]
    return [
        *_group(group, "patient", treated, parameters.interval, flag),
        *readings,
        *_mri(prefix, derive_mri(drug_class, patients, courses), parameters.interval, flag),
    ]


def compute_courses(
    prefix: str, drug_class: str, patients: Sequence[Row], courses: Sequence[Row], parameters: Parameters
) -> list[Result]:
    """The clinical and MRI effect of a class counted by courses, and the clinical effect by children."""
    units = derive_courses(drug_class, patients, courses)
    children = derive_children(drug_class, patients, courses, parameters)
    group, flag = f"{prefix}-clinical", _orders_note(units)
    return [
        *_group(group, "course", units, parameters.interval, flag),
        *_readings(group, "course", units, parameters.interval, flag),
        *_group(f"{group}-patients", "patient", children, parameters.interval, flag, cuts=False),
        *_mri(prefix, derive_mri(drug_class, patients, courses), parameters.interval, flag),
    ]


def _of_class(courses: Sequence[Row], drug_class: str) -> dict[str, list[Row]]:
    return _by_person([c for c in courses if c["drug_class"] == drug_class and c["left_out"] is None])


def _by_person(courses: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for course in sorted(courses, key=lambda c: (c["start"], c["course"])):
        found[course["person"]].append(course)
    return found


def _orders_note(units: Sequence[Unit]) -> str:
    return "from orders" if any(course["rung"] == "order" for unit in units for course in unit.courses) else ""


def _course(patient: Row, course: Row) -> Unit:
    effect = course["effect"] == "sufficient" if course["evaluable"] else None
    return Unit(
        course["person"], effect, effect is None and _failed_unjudged(course), _strata(patient, course), (course,)
    )


def _failed_unjudged(course: Row) -> bool:
    return bool(course["not_evaluable_reason"] == "no assessment, stopped for an adverse event")


def _any_course(patient: Row, courses: list[Row]) -> Unit:
    """A child is evaluable if any course is, sufficient if any is; its strata are those of the course that decides."""
    evaluable = [c for c in courses if c["evaluable"]]
    sufficient = [c for c in evaluable if c["effect"] == "sufficient"]
    deciding = (sufficient or evaluable or courses)[-1]
    effect = bool(sufficient) if evaluable else None
    failed = effect is None and any(_failed_unjudged(c) for c in courses)
    return Unit(patient["person"], effect, failed, _strata(patient, deciding), tuple(courses))


def _child(patient: Row, own: list[Row], everything: list[Row], drug_class: str, parameters: Parameters) -> Unit:
    if drug_class != "NSAID":
        return _any_course(patient, own)
    kept = [c if not _escalated(c, everything, parameters) else {**c, "effect": "insufficient"} for c in own]
    return _any_course(patient, kept)


def _escalated(course: Row, everything: list[Row], parameters: Parameters) -> bool:
    """Whether a stronger treatment ran at the judgement of an NSAID or began within 12 months of it (edge case E20).

    That is methotrexate, a TNF-α inhibitor, a bisphosphonate, or a systemic glucocorticoid for more than 28 days.
    """
    judged = course["effect_low"]
    if judged is None:
        return False
    high = add_months(judged, parameters.nsaid_escalation_months)
    return any(
        other["start"] <= high
        and (other["end"] is None or other["end"] >= judged)
        and other["left_out"] != "other disease"
        and (
            other["drug_class"] in NSAID_ESCALATIONS
            or (other["drug_class"] == "GC" and other["exposure_days"] > parameters.glucocorticoid_escalation_days)
        )
        for other in everything
    )


def _group(
    group: str, unit: str, units: Sequence[Unit], interval: str, note: str, *, cuts: bool = True
) -> list[Result]:
    judged = [u for u in units if u.effect is not None]
    rows = [share(group, unit, sum(u.effect is True for u in judged), len(judged), interval, note=note)]
    if not cuts:
        return rows
    for stratifier in ("agent", "line", "sex", "focality", "sapho"):
        for value in _values(group, stratifier, units):
            own = [u for u in judged if u.strata[stratifier] == value]
            rows.append(
                share(
                    group,
                    unit,
                    sum(u.effect is True for u in own),
                    len(own),
                    interval,
                    stratifier=stratifier,
                    stratum=value,
                    note=note,
                )
            )
    return rows


def _values(group: str, stratifier: str, units: Sequence[Unit]) -> list[str]:
    """The strata of a cut, empty ones too; agents and lines are those met, with `unknown` always for the TNF-α courses."""
    fixed = {"sex": list(SEXES), "focality": list(FOCALITIES), "sapho": ["yes", "no"]}
    if stratifier in fixed:
        return fixed[stratifier]
    last = (UNKNOWN, NO_AGENT)
    met = {u.strata[stratifier] for u in units} | ({UNKNOWN} if group.startswith("tnfi") else set())
    return sorted(met - set(last), key=lambda v: (len(v), v) if stratifier == "line" else (0, v)) + [
        v for v in last if v in met
    ]


def _readings(group: str, unit: str, units: Sequence[Unit], interval: str, note: str) -> list[Result]:
    """The second readings of a group: what the unjudged would do to the figure."""
    treated = len(units)
    good = sum(u.effect is True for u in units)
    unjudged = sum(u.effect is None for u in units)
    failed = sum(u.failed_unjudged for u in units)
    reading: Callable[[str, int, int], Result] = lambda name, n, total: share(  # noqa: E731
        f"{group}-{name}", unit, n, total, interval, note=note
    )
    return [
        count(f"{group}-treated", unit, treated, note or "treated, judged or not"),
        reading("not-evaluable", unjudged, treated),
        reading("worst-case", good, treated),
        reading("best-case", good + unjudged, treated),
        reading("itt", good, treated - unjudged + failed),
    ]


def _mri(prefix: str, units: Sequence[Unit], interval: str, note: str) -> list[Result]:
    group = f"{prefix}-mri"
    return [
        *_group(group, "MRI-evaluated course", units, interval, note),
        count(f"{group}-treated", "course", len(units), note or "treated, evaluated by MRI or not"),
        share(
            f"{group}-not-evaluable", "course", sum(u.effect is None for u in units), len(units), interval, note=note
        ),
    ]
