"""From facts to the cohort: criteria and attrition, foci, courses and lines, effect (clinical rules §2–§4)."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial as partial_of
from typing import TYPE_CHECKING, TypeVar

from crmo_fhir.cohort.courses import Course, course_rows, derive_courses, filter_exposures
from crmo_fhir.cohort.criteria import AFTER_LOCK, Child, Row, compute_contradiction, filter_cohort, partial
from crmo_fhir.cohort.derived import Series, derive_answers, derive_series
from crmo_fhir.cohort.effect import attribute_effects, derive_effect, filter_observed
from crmo_fhir.cohort.foci import compute_focality, compute_focality_at_diagnosis, derive_foci
from crmo_fhir.cohort.review import attribute_reviews
from crmo_fhir.fhir.dates import PartialDate
from crmo_fhir.model.parameters import CHOICES, Parameters
from crmo_fhir.model.records import STRONGER_THAN_ORDERS
from crmo_fhir.model.review import Judgement
from crmo_fhir.model.tables import (
    ASSESSMENTS,
    ATTRITION,
    COURSES,
    FOCI,
    IMAGING,
    LAB,
    PATIENTS,
    REPORT,
    rows_of,
    type_of,
)

if TYPE_CHECKING:
    import pandas as pd


Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True)
class Told:
    """What the records tell of each child of the cohort, by person, without what cannot be."""

    children: dict[str, Child]
    person_of: dict[str, str]
    last_contact: dict[str, date | None]
    limits: dict[str, tuple[date, str]]
    data_lock: date | None
    as_of: date
    orders_count: bool
    exposures: dict[str, list[Row]]
    adverse_events: dict[str, list[Row]]
    observed: dict[str, list[Row]]
    imaging: dict[str, list[Row]]
    scores: dict[str, list[Row]]
    series: dict[str, dict[str, Series]]
    reviews: Sequence[Judgement]

    def only(self, persons: Collection[str]) -> "Told":
        """The same of some children alone."""

        def of(table: Mapping[str, Kept]) -> dict[str, Kept]:
            return {person: row for person, row in table.items() if person in persons}

        return replace(
            self,
            children=of(self.children),
            exposures=of(self.exposures),
            observed=of(self.observed),
            series=of(self.series),
            reviews=[r for r in self.reviews if self.person_of.get(r.person, r.person) in persons],
        )


@dataclass(frozen=True, slots=True)
class Treated:
    """The rows of the tables `courses` and `assessments`, the courses themselves, and the records refused on the way."""

    rows: list[Row]
    assessments: list[Row]
    courses: dict[str, list[Course]]
    refused: list[Row]


@dataclass(frozen=True, slots=True)
class Cohort:
    """The tables of STUDY/cohort, the day up to which the data speak, and what the records told."""

    tables: "dict[str, pd.DataFrame]"
    data_lock: date | None
    orders_count: bool
    told: Told


def derive_cohort(
    facts: "Mapping[str, pd.DataFrame]",
    type_counts: Mapping[str, int],
    source_counts: Mapping[str, int],
    parameters: Parameters,
    as_of: date,
    reviews: Sequence[Judgement] = (),
) -> Cohort:
    """The cohort from the facts `mapping` read.

    `type_counts` are the records landed by type, `source_counts` those of the whole source, `as_of` is the day of the extraction: what lies after it is refused.
    `reviews` are the judgements of the review worksheets.
    Returns the tables of `model.tables.COHORT` and the attrition, whose first rows count records and last ones persons.
    """
    children, attrition = filter_cohort(facts, parameters, as_of)
    by_person = {child.person: child for child in children}
    person_of = {record: child.person for child in children for record in child.records}
    listed = rows_of(facts["listed"])
    contacts, refused = _contacts(facts["contact"], by_person, person_of, as_of, parameters.data_lock)
    listed += refused
    data_lock = parameters.data_lock or max((d for days in contacts.values() for d in days), default=None)
    last_contact = {
        c.person: max(
            (d for r in c.records for d in contacts.get(r, ()) if data_lock is None or d <= data_lock), default=None
        )
        for c in children
    }
    limits = {c.person: _censored(c, data_lock, last_contact[c.person]) for c in children}
    seen = partial_of(_seen, facts, by_person, person_of, as_of, parameters.data_lock)
    imaging, refused = seen("imaging", "imaging", _is_study)
    listed += refused
    readings, refused = seen("observed", "assessment")
    listed += refused
    observed = {}
    for person, rows in readings.items():
        observed[person], refused = filter_observed(rows)
        listed += refused
    scores, refused = seen("lab", "lab", _is_value)
    listed += refused
    adverse_events, refused = seen("adverse_event", "source")
    listed += refused
    reports, refused = seen("report", "report")
    listed += refused
    told = Told(
        children=by_person,
        person_of=person_of,
        last_contact=last_contact,
        limits=limits,
        data_lock=data_lock,
        as_of=as_of,
        orders_count=not any(type_counts.get(t) or source_counts.get(t) for t in STRONGER_THAN_ORDERS)
        and not any(row["rung"] != "order" for row in rows_of(facts["exposure"])),
        exposures=_by_person(facts["exposure"], person_of),
        adverse_events=adverse_events,
        observed=observed,
        imaging=imaging,
        scores=scores,
        series=derive_series(scores, imaging),
        reviews=reviews,
    )
    treated = derive_treatment(told, parameters)
    listed += treated.refused
    _flag_undetermined(told, treated, parameters)

    sites, refused = _until(_by_person(facts["site"], person_of), parameters.data_lock)
    listed += refused
    foci = derive_foci([row for rows in sites.values() for row in rows], person_of)
    focus_count = Counter(focus["person"] for focus in foci)
    patients = [
        {
            **_patient_row(c, focus_count[c.person], last_contact[c.person]),
            "focality_at_diagnosis": compute_focality_at_diagnosis(
                c.person, sites.get(c.person, []), person_of, c.diagnosis
            ),
            "censored": limits[c.person][0],
            "censored_by": limits[c.person][1],
        }
        for c in children
    ]
    labs = [{**row, "patient": person} for person, rows in scores.items() for row in rows]
    tables = {
        "patients": PATIENTS.frame(patients),
        "foci": FOCI.frame(foci),
        "courses": COURSES.frame(treated.rows),
        "assessments": ASSESSMENTS.frame(treated.assessments),
        "labs": LAB.frame(labs),
        "imaging": IMAGING.frame({**row, "patient": p} for p, rows in imaging.items() for row in rows),
        "reports": REPORT.frame({**row, "patient": p} for p, rows in reports.items() for row in rows),
    }
    attrition += _record_rows(listed, type_counts) + _course_rows(treated.courses)
    tables["attrition"] = _ordered(attrition + _assessment_rows(treated.assessments))
    return Cohort(tables, data_lock, told.orders_count, told)


def derive_treatment(told: Told, parameters: Parameters, *, scores: bool = True) -> Treated:
    """Courses and their effect: all that the thresholds of treatment and judgement decide. Who is in the cohort is settled.

    Without `scores` no answer is derived from them, which is half of the work; no figure of the other origins needs one.
    """
    refused: list[Row] = []
    exposures = {}
    for person, rows in told.exposures.items():
        exposures[person], unusable = filter_exposures(rows, told.children[person], told.as_of, parameters)
        refused += unusable
    courses = derive_courses(
        exposures,
        told.adverse_events,
        told.children,
        {person: day for person, (day, _) in told.limits.items()},
        parameters,
        orders_count=told.orders_count,
    )
    for person, own in courses.items():
        last = told.last_contact[person]
        lock = told.data_lock
        silent = lock is not None and last is not None and (lock - last).days > parameters.stale_days
        for course in own:
            if course.end is None and silent:
                course.flags.add("stale")
    attributed = attribute_effects(told.observed, courses, told.imaging, parameters)
    attributed += attribute_reviews(told.reviews, courses, told.person_of, parameters)
    derived, changes = derive_answers(courses, told.series if scores else {}, parameters)
    judged, assessments = derive_effect(courses, [*attributed, *derived], parameters)
    for course_name, change in changes.items():
        judged[course_name] |= change
    return Treated(course_rows(courses, judged), assessments, courses, refused)


def _flag_undetermined(told: Told, treated: Treated, parameters: Parameters) -> None:
    """Flags the courses whose answer hangs on the day that a partial date is taken for (edge case E15).

    The children with a partial date are told once more with each other day; a course is known again by its records.
    """
    unsure = {
        person
        for rows, names in (
            (told.exposures, ("start", "end")),
            (told.imaging, ("date",)),
            (told.scores, ("date",)),
        )
        for person, own in rows.items()
        if any(row[f"{name}_low"] != row[f"{name}_high"] for row in own for name in names)
    }
    if not unsure:
        return
    some = told.only(unsure)
    own = _by_records(row for row in treated.rows if row["person"] in unsure)
    for day in CHOICES["partial_dates"]:
        if day == parameters.partial_dates:
            continue
        other = derive_treatment(some, replace(parameters, partial_dates=str(day)))
        told_so = _by_records(other.rows)
        for key, row in own.items():
            if (variant := told_so.get(key)) is None:
                differs = ["course"]
            else:
                differs = [
                    name
                    for name, columns in (("clinical effect", ("effect", "evaluable")), ("MRI change", ("mri",)))
                    if any(row[column] != variant[column] for column in columns)
                ]
            row["flags"] = sorted({*row["flags"], *(f"undetermined by partial dates: {name}" for name in differs)})


def _by_records(courses: Iterable[Row]) -> dict[tuple[object, ...], Row]:
    """Courses by the records they are made of, which name them whatever their days (of equals, as a pause makes, by their place)."""
    seen: Counter[tuple[object, ...]] = Counter()
    found = {}
    for row in courses:
        records = (row["person"], row["drug_class"], row["agent"], *row["sources"])
        seen[records] += 1
        found[*records, seen[records]] = row
    return found


def _ordered(rows: list[Row]) -> "pd.DataFrame":
    """The attrition keeps the order of its steps."""
    import pandas as pd

    names = [column.name for column in ATTRITION.columns]
    return pd.DataFrame({n: pd.Series([r.get(n) for r in rows], dtype=object) for n in names}, columns=names)


def _by_person(frame: "pd.DataFrame", person_of: Mapping[str, str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows_of(frame):
        if row["patient"] in person_of:
            found[person_of[row["patient"]]].append(row)
    return found


def _contacts(
    frame: "pd.DataFrame",
    by_person: Mapping[str, Child],
    person_of: Mapping[str, str],
    as_of: date,
    data_lock: date | None,
) -> tuple[dict[str, list[date]], list[Row]]:
    """Days of contact by Patient record, and the visits that cannot be.

    A partial date counts as its point, a day after the extraction or the death not at all.
    """
    found: dict[str, list[date]] = defaultdict(list)
    refused = []
    for row in rows_of(frame):
        day = partial(row, "date")
        if day is None or day.point > as_of:
            continue
        child = by_person.get(person_of.get(row["patient"], ""))
        if child and (reason := compute_contradiction(day, child, as_of, data_lock)):
            if type_of(row["source"]) == "Encounter":  # other records are refused where they are read
                refused.append(_refused(row["source"], row, reason))
            continue
        found[row["patient"]].append(day.point)
    return found, refused


def _seen(
    facts: "Mapping[str, pd.DataFrame]",
    by_person: Mapping[str, Child],
    person_of: Mapping[str, str],
    as_of: date,
    data_lock: date | None,
    table: str,
    key: str,
    stands: Callable[[Row], bool] = lambda _: True,
) -> tuple[dict[str, list[Row]], list[Row]]:
    """What was seen in each child, and what does not count: its day cannot be or is too late, or by its status it `stands` not."""
    kept: dict[str, list[Row]] = defaultdict(list)
    refused = []
    for person, rows in _by_person(facts[table], person_of).items():
        for row in rows:
            if reason := compute_contradiction(partial(row, "date"), by_person[person], as_of, data_lock):
                refused.append(_refused(row[key], row, reason))
            elif not stands(row):
                refused.append(_refused(row[key], row, f"status {row['status']}"))
            else:
                kept[person].append(row)
    return kept, refused


def _until(sites: Mapping[str, list[Row]], data_lock: date | None) -> tuple[dict[str, list[Row]], list[Row]]:
    """The sites named by the data lock, and the records that name one later."""
    kept: dict[str, list[Row]] = defaultdict(list)
    refused = []
    for person, rows in sites.items():
        for row in rows:
            if data_lock and row["date_low"] and row["date_low"] > data_lock:
                refused.append(_refused(row["source"], row, AFTER_LOCK))
            else:
                kept[person].append(row)
    return kept, refused


def _refused(source: str, row: Row, reason: str) -> Row:
    return {"source": source, "resource_type": type_of(source), "patient": row["patient"], "reason": reason}


NO_VALUE = {"entered-in-error", "cancelled"}
NO_STUDY = {"entered-in-error", "cancelled", "registered", "not-done"}
NO_REPORT = {"preliminary", "partial"}


def _is_value(row: Row) -> bool:
    """Whether a laboratory value or score was not withdrawn."""
    return row["status"] not in NO_VALUE


def _is_study(row: Row) -> bool:
    """Whether an MR study was done, and where only a report tells of it, whether that is final (edge case E32)."""
    if type_of(row["imaging"]) == "DiagnosticReport" and row["status"] in NO_REPORT:
        return False
    return row["status"] not in NO_STUDY


def _censored(child: Child, data_lock: date | None, last_contact: date | None) -> tuple[date, str]:
    """The day up to which a child is observed, and what ends it (edge cases E17, E43)."""
    limits = (
        (child.death.point if child.death else None, "death"),
        (data_lock, "data lock"),
        (last_contact, "last contact"),
    )
    known = [(day, reason) for day, reason in limits if day is not None]
    return min(known, key=lambda limit: limit[0], default=(child.diagnosis.point, "diagnosis"))


def _patient_row(child: Child, focus_count: int, last_contact: date | None) -> Row:
    def ends(name: str, when: PartialDate | None) -> Row:
        return {f"{name}_low": when.low if when else None, f"{name}_high": when.high if when else None}

    return {
        "person": child.person,
        "sex": child.sex,
        **ends("birth", child.birth),
        **ends("diagnosis", child.diagnosis),
        "diagnosis_source": child.diagnosis_source,
        "age_at_diagnosis": (child.diagnosis.point - child.birth.point).days / 365.25 if child.birth else None,
        "delay_days": max((child.diagnosis.point - child.onset.point).days, 0) if child.onset else None,
        "sapho": child.sapho,
        "sapho_at_diagnosis": child.sapho_at_diagnosis,
        "focus_count": focus_count,
        "focality": compute_focality(focus_count),
        **ends("death", child.death),
        "last_contact": last_contact,
        "sources": sorted({*child.records, *child.conditions}),
    }


def _record_rows(listed: list[Row], type_counts: Mapping[str, int]) -> list[Row]:
    """What left the data before anything was counted: a row for each type and reason (each record once a reason)."""
    counts = Counter(
        (row["resource_type"], row["reason"]) for row in {(r["source"], r["reason"]): r for r in listed}.values()
    )
    kept = dict(type_counts)
    rows = []
    for (resource_type, reason), dropped in sorted(counts.items()):
        kept[resource_type] = max(kept.get(resource_type, dropped) - dropped, 0)
        rows.append(
            {"step": f"records: {resource_type}", "reason": reason, "kept": kept[resource_type], "dropped": dropped}
        )
    return rows


def _course_rows(courses: Mapping[str, list[Course]]) -> list[Row]:
    everything = [c for own in courses.values() for c in own]
    kept = len(everything)
    rows = []
    for reason, dropped in sorted(Counter(c.left_out for c in everything if c.left_out).items()):
        kept -= dropped
        rows.append({"step": "courses", "reason": reason, "kept": kept, "dropped": dropped})
    return rows or [{"step": "courses", "reason": "", "kept": kept, "dropped": 0}]


def _assessment_rows(assessments: list[Row]) -> list[Row]:
    """What became of the judgements in the records and of the reviews; an answer derived from scores is always of its course."""
    assessments = [a for a in assessments if a["origin"] != "derived"]
    kept = len(assessments)
    rows = []
    for reason, dropped in sorted(Counter(a["reason"] for a in assessments if a["course"] is None).items()):
        kept -= dropped
        rows.append({"step": "assessments", "reason": f"unattributed: {reason}", "kept": kept, "dropped": dropped})
    return rows or [{"step": "assessments", "reason": "", "kept": kept, "dropped": 0}]
