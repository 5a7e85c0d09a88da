"""Who and what a group of the Measure counts: the same units as the figures, one by one, with their resources."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from crmo_fhir.metrics.describe import Row, sapho_of
from crmo_fhir.metrics.response import Courses, Unit, derive_headlines
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.results import Member
from crmo_fhir.model.tables import rows_of

if TYPE_CHECKING:
    import pandas as pd


def compute_members(tables: "Mapping[str, pd.DataFrame]", parameters: Parameters) -> list[Member]:
    """Every child, course and focus counted, by group in a fixed order and by child.

    `tables` are those of STUDY/cohort. The members of a group in its initial population, denominator and numerator are as
    many as the overall row of `compute_results` says.
    """
    patients = rows_of(tables["patients"])
    foci = rows_of(tables["foci"])
    courses = Courses.of(rows_of(tables["courses"]))
    kinds: dict[str, set[str]] = defaultdict(set)
    for row in rows_of(tables["assessments"]):
        if row["origin"] != "reviewed":  # a judgement of the review worksheet is no resource that a report could name
            for key in row["sources"] or [row["assessment"]]:
                kinds[key].add(row["kind"])

    def judged(group: str, kind: str, units: Sequence[Unit]) -> list[Member]:
        return [
            Member(
                group,
                unit.person,
                evaluable=unit.effect is not None,
                effect=bool(unit.effect),
                strata=unit.strata,
                sources=_sources(unit, kind, kinds),
            )
            for unit in units
        ]

    members = [*(_child(p) for p in patients), *_foci(foci)]
    for group, units in derive_headlines(patients, courses, parameters).items():
        members += judged(group, "mri" if group.endswith("-mri") else "clinical", units)
    order = {group: place for place, group in enumerate(dict.fromkeys(member.group for member in members))}
    return sorted(members, key=lambda member: (order[member.group], member.person))


def _child(patient: Row) -> Member:
    strata = {
        "sex": patient["sex"],
        "focality": patient["focality"],
        "sapho": sapho_of(patient),
        "sapho-at-diagnosis": patient["sapho_at_diagnosis"],
    }
    return Member("cohort", patient["person"], True, True, strata, tuple(patient["sources"]))


def _foci(foci: Sequence[Row]) -> list[Member]:
    sources: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in foci:
        sources[row["person"], row["bone"], row["side"] or ""].extend(row["sources"])
    return [
        Member("foci", person, True, True, {"bone": bone}, tuple(dict.fromkeys(keys)))
        for (person, bone, _), keys in sorted(sources.items())
    ]


def _sources(unit: Unit, kind: str, kinds: Mapping[str, set[str]]) -> tuple[str, ...]:
    """The keys of the medication resources of its courses, and of all that their effect of this kind rests on."""
    keys = [
        key
        for course in unit.courses
        for key in (*course["sources"], *(a for a in course["assessments"] if kind in kinds[a]))
    ]
    return tuple(sorted(set(keys)))
