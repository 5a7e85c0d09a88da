"""Treatment effect: of those who can be judged, how many had a sufficient effect (clinical rules §3).

`nsaid-clinical` and `mtx-clinical` count children, `tnfi-clinical` and the MRI groups count courses. Beside each group
stand its second readings: treated, not evaluable, worst and best case, intention to treat; and the effect by each other
source, at its best, and at six months, each of the units of which it is known.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

from crmo_fhir.fhir.dates import add_months
from crmo_fhir.metrics.describe import count, sapho_of, share
from crmo_fhir.model.parameters import EFFECT_SOURCES, Parameters
from crmo_fhir.model.results import Result
from crmo_fhir.model.tables import FOCALITIES, SEXES, UNSPECIFIED

Row = dict[str, Any]
NSAID_ESCALATIONS = {"MTX", "TNF", "BP"}
AT_A_TIME = {"best-ever": ("effect_best",), "6-months": ("effect_6_months",)}
"""Readings of the effect at another time than the last, and their columns of the table `courses`."""
NO_AGENT = "none"
UNKNOWN = "unknown"
NOT_KNOWN = "no proportion: nothing of this reading is recorded (0/0)"
"""The note of a second reading that no unit has an answer of."""
STRATIFIERS = ("agent", "line", "sex", "focality", "sapho")


@dataclass(frozen=True, slots=True)
class Courses:
    """The courses of a cohort in order of start and number: all of each child, and by class those that count."""

    by_person: Mapping[str, Sequence[Row]]
    by_class: Mapping[str, Mapping[str, Sequence[Row]]]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Courses":
        """Group the rows of the table `courses`, whatever their order."""
        by_person: dict[str, list[Row]] = defaultdict(list)
        by_class: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for course in sorted(rows, key=lambda c: (c["person"], c["start"], c["course_no"] or 0, c["course"])):
            by_person[course["person"]].append(course)
            if course["left_out"] is None:
                by_class[course["drug_class"]][course["person"]].append(course)
        return cls(by_person, by_class)

    def of_class(self, drug_class: str) -> Mapping[str, Sequence[Row]]:
        """The courses of a class that count, by child."""
        return self.by_class.get(drug_class, {})

    def each(self, drug_class: str) -> list[Row]:
        """The same, one after the other."""
        return [course for own in self.of_class(drug_class).values() for course in own]

    def read(self, drug_class: str, reading: Callable[[Row], Row]) -> "Courses":
        """The same courses, those of a class that count read in another way."""
        own = {person: [reading(course) for course in rows] for person, rows in self.of_class(drug_class).items()}
        return Courses(self.by_person, {**self.by_class, drug_class: own})


class Unit(NamedTuple):
    """One thing counted, a child or a course: whose it is and its answer (None: not evaluable).

    `courses` are those its answer was read from, `deciding` is the one whose agent and line it counts under (None: untreated).
    """

    patient: Row
    effect: bool | None
    failed_unjudged: bool = False
    deciding: Row | None = None
    courses: tuple[Row, ...] = ()

    @property
    def person(self) -> str:
        """The key of the child."""
        return str(self.patient["person"])

    @property
    def strata(self) -> dict[str, str]:
        """The value of each stratifier."""
        course = self.deciding
        agent, line = (agent_of(course), str(course["line_no"])) if course else (NO_AGENT, NO_AGENT)
        return {
            "agent": agent,
            "line": UNKNOWN if agent == UNKNOWN else line,
            "sex": self.patient["sex"],
            "focality": self.patient["focality"],
            "sapho": sapho_of(self.patient),
        }


def agent_of(course: Row) -> str:
    """The agent of a course as a stratum."""
    return UNKNOWN if course["agent"].endswith(UNSPECIFIED) else str(course["agent"])


def derive_children(drug_class: str, patients: Sequence[Row], courses: Courses, parameters: Parameters) -> list[Unit]:
    """The children treated with a class, each with the clinical effect of it."""
    own = courses.of_class(drug_class)
    return [
        _child(p, own[p["person"]], courses.by_person[p["person"]], drug_class, parameters)
        for p in patients
        if p["person"] in own
    ]


def derive_whole_cohort(treated: Sequence[Unit], patients: Sequence[Row]) -> list[Unit]:
    """Every child of the cohort, without an effect where it was not treated or not judged (the NSAID row as published)."""
    units = {unit.person: unit for unit in treated}
    everyone = [units.get(p["person"]) or Unit(p, effect=None) for p in patients]
    return [unit._replace(effect=bool(unit.effect), failed_unjudged=False) for unit in everyone]


def derive_courses(drug_class: str, patients: Sequence[Row], courses: Courses) -> list[Unit]:
    """The courses of a class, each with its clinical effect."""
    by_key = {p["person"]: p for p in patients}
    return [_course(by_key[course["person"]], course) for course in courses.each(drug_class)]


def derive_mri(drug_class: str, patients: Sequence[Row], courses: Courses) -> list[Unit]:
    """The courses of a class, each with its change on MRI."""
    by_key = {p["person"]: p for p in patients}
    return [
        Unit(
            by_key[c["person"]],
            None if c["mri"] is None else c["mri"] == "regression",
            deciding=c,
            courses=(c,),
        )
        for c in courses.each(drug_class)
    ]


def derive_headlines(patients: Sequence[Row], courses: Courses, parameters: Parameters) -> dict[str, list[Unit]]:
    """What each of the five treatment groups counts."""
    return {
        "nsaid-clinical": derive_whole_cohort(derive_children("NSAID", patients, courses, parameters), patients),
        "mtx-clinical": derive_children("MTX", patients, courses, parameters),
        "tnfi-clinical": derive_courses("TNF", patients, courses),
        "mtx-mri": derive_mri("MTX", patients, courses),
        "tnfi-mri": derive_mri("TNF", patients, courses),
    }


Days = Mapping[tuple[str, str], date | None]
"""The day of the primary clinical answer of a course, by course and origin."""


def days_of(assessments: Sequence[Row]) -> Days:
    """The days of the primary clinical answers, from the table `assessments`."""
    return {(a["course"], a["origin"]): a["date"] for a in assessments if a["primary"] and a["kind"] == "clinical"}


def compute_patients(
    prefix: str, drug_class: str, patients: Sequence[Row], courses: Courses, parameters: Parameters, days: Days
) -> list[Result]:
    """The clinical effect of a class counted by children, and its MRI effect counted by courses.

    `days` is there because an escalation annuls the effect of an NSAID when it follows soon after the day it was seen.
    """
    treated = derive_children(drug_class, patients, courses, parameters)
    group, flag = f"{prefix}-clinical", _orders_note(treated)
    columns = {**_sources(parameters), **({} if drug_class == "NSAID" else AT_A_TIME)}
    readings = [
        *_readings(group, "patient", treated, parameters.interval, flag),
        *(
            _other(
                f"{group}-{name}",
                "patient",
                derive_children(drug_class, patients, courses.read(drug_class, _reading_of(own, days)), parameters),
                parameters.interval,
                flag,
            )
            for name, own in columns.items()
        ),
    ]
    if drug_class == "NSAID":
        # as published: every child of the cohort is in the denominator; the exposed are the second reading
        exposed = [unit._replace(effect=bool(unit.effect), failed_unjudged=False) for unit in treated]
        return [
            *_group(group, "patient", derive_whole_cohort(treated, patients), parameters.interval, flag),
            *_group(f"{group}-exposed", "patient", exposed, parameters.interval, flag),
            *readings,
        ]
    return [
        *_group(group, "patient", treated, parameters.interval, flag),
        *readings,
        *_mri(prefix, drug_class, patients, courses, parameters, flag),
    ]


def compute_courses(
    prefix: str, drug_class: str, patients: Sequence[Row], courses: Courses, parameters: Parameters
) -> list[Result]:
    """The clinical and MRI effect of a class counted by courses, and the clinical effect by children."""
    units = derive_courses(drug_class, patients, courses)
    children = derive_children(drug_class, patients, courses, parameters)
    group, flag = f"{prefix}-clinical", _orders_note(units)
    return [
        *_group(group, "course", units, parameters.interval, flag),
        *_readings(group, "course", units, parameters.interval, flag),
        *(
            _other(
                f"{group}-{name}",
                "course",
                derive_courses(drug_class, patients, courses.read(drug_class, _reading_of(own, {}))),
                parameters.interval,
                flag,
            )
            for name, own in {**_sources(parameters), **AT_A_TIME}.items()
        ),
        *_group(f"{group}-patients", "patient", children, parameters.interval, flag, cuts=False),
        *_mri(prefix, drug_class, patients, courses, parameters, flag),
    ]


def _sources(parameters: Parameters) -> dict[str, tuple[str, ...]]:
    """The sources of the effect that stand beside the one counted, which is no second reading where it is the judgement."""
    beside = {**EFFECT_SOURCES}
    if parameters.effect_source == "judged":
        del beside["judged"]
    return beside


def _reading_of(columns: Sequence[str], days: Days) -> Callable[[Row], Row]:
    """What a course says of its effect, as if that were what the first of these columns that holds an answer says."""

    def read(course: Row) -> Row:
        column = next((c for c in columns if course[c] is not None), None)
        return {
            "person": course["person"],
            "not_evaluable_reason": course["not_evaluable_reason"],
            "effect": course[column] if column else None,
            "effect_low": days.get((course["course"], column)) if column else None,
            "evaluable": column is not None and course["exposure_enough"],
        }

    return read


def _other(group: str, unit: str, units: Sequence[Unit], interval: str, flag: str) -> Result:
    """A reading of the effect by another source or at another time, of the units that it can be told of."""
    known = [u.effect for u in units if u.effect is not None]
    return share(group, unit, sum(known), len(known), interval, note=flag if known else NOT_KNOWN)


def _orders_note(units: Sequence[Unit]) -> str:
    return "from orders" if any(course["rung"] == "order" for unit in units for course in unit.courses) else ""


def _course(patient: Row, course: Row) -> Unit:
    effect = course["effect"] == "sufficient" if course["evaluable"] else None
    return Unit(patient, effect, effect is None and _failed_unjudged(course), course, (course,))


def _failed_unjudged(course: Row) -> bool:
    return bool(course["not_evaluable_reason"] == "no assessment, stopped for an adverse event")


def _any_course(patient: Row, courses: Sequence[Row]) -> Unit:
    """A child is evaluable if any course is, sufficient if any is; its strata are those of the course that decides."""
    evaluable = [c for c in courses if c["evaluable"]]
    sufficient = [c for c in evaluable if c["effect"] == "sufficient"]
    deciding = (sufficient or evaluable or courses)[-1]
    effect = bool(sufficient) if evaluable else None
    failed = effect is None and any(_failed_unjudged(c) for c in courses)
    return Unit(patient, effect, failed, deciding, tuple(courses))


def _child(
    patient: Row, own: Sequence[Row], everything: Sequence[Row], drug_class: str, parameters: Parameters
) -> Unit:
    if drug_class != "NSAID":
        return _any_course(patient, own)
    kept = [c if not _escalated(c, everything, parameters) else {**c, "effect": "insufficient"} for c in own]
    return _any_course(patient, kept)


def _escalated(course: Row, everything: Sequence[Row], parameters: Parameters) -> bool:
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
    good, judged = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    met: dict[str, set[str]] = defaultdict(set)
    for one in units:
        of_one = [("", ""), *(one.strata.items() if cuts else ())]
        for stratifier, value in of_one:
            met[stratifier].add(value)
        if one.effect is not None:
            judged.update(of_one)
        if one.effect:
            good.update(of_one)
    rows = [share(group, unit, good["", ""], judged["", ""], interval, note=note)]
    for stratifier in STRATIFIERS if cuts else ():
        for value in _values(group, stratifier, met[stratifier]):
            cut = stratifier, value
            rows.append(
                share(group, unit, good[cut], judged[cut], interval, stratifier=stratifier, stratum=value, note=note)
            )
    return rows


def _values(group: str, stratifier: str, met: set[str]) -> list[str]:
    """The strata of a cut, empty ones too; agents and lines are those met, with `unknown` always for the TNF-α courses."""
    fixed = {"sex": list(SEXES), "focality": list(FOCALITIES), "sapho": ["yes", "no"]}
    if stratifier in fixed:
        return fixed[stratifier]
    last = (UNKNOWN, NO_AGENT)
    met = met | ({UNKNOWN} if group.startswith("tnfi") else set())
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


def _mri(
    prefix: str,
    drug_class: str,
    patients: Sequence[Row],
    courses: Courses,
    parameters: Parameters,
    note: str,
) -> list[Result]:
    group, interval = f"{prefix}-mri", parameters.interval
    units = derive_mri(drug_class, patients, courses)
    return [
        *_group(group, "MRI-evaluated course", units, interval, note),
        count(f"{group}-treated", "course", len(units), note or "treated, evaluated by MRI or not"),
        share(
            f"{group}-not-evaluable", "course", sum(u.effect is None for u in units), len(units), interval, note=note
        ),
        *(
            _other(
                f"{group}-{name}",
                "MRI-evaluated course",
                derive_mri(drug_class, patients, courses.read(drug_class, _mri_reading_of(own))),
                interval,
                note,
            )
            for name, own in _sources(parameters).items()
        ),
    ]


def _mri_reading_of(origins: Sequence[str]) -> Callable[[Row], Row]:
    return lambda course: {
        "person": course["person"],
        "mri": next((course[f"mri_{o}"] for o in origins if course[f"mri_{o}"] is not None), None),
    }
