"""The way of each child: its courses and judgements from the diagnosis on, its values around the first biologic.

A child is named by a number, in order of the date of diagnosis.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date

from crmo_fhir.fhir.dates import PartialDate
from crmo_fhir.metrics.response import Row
from crmo_fhir.model.parameters import EFFECT_SOURCES, Parameters
from crmo_fhir.model.results import Bar, Timeline, Trend


def derive_timelines(tables: Mapping[str, Sequence[Row]], parameters: Parameters) -> tuple[Timeline, ...]:
    """One timeline a child, in order of the date of diagnosis; courses for another disease are not on it.

    `tables` are the rows of those of STUDY/cohort. Days are since the diagnosis. `marks` are the effects that the study counts (`clinical`, `mri`) and MR studies (`imaging`: whole-body or
    regional), those without a date left out.
    """
    bars, marks = defaultdict(list), defaultdict(list)
    children = _children(tables["patients"])
    begin = {person: _point(row, "diagnosis") for person, (_, row) in children.items()}
    censored = {person: row["censored"] for person, (_, row) in children.items()}
    for course in tables["courses"]:
        person = course["person"]
        if course["left_out"] == "other disease":
            continue
        start, end = course["start"], course["end"] or max(censored[person], course["start"])
        bars[person].append(
            Bar(
                *(course["drug_class"], course["agent"], course["line_no"]),
                *(_since(begin[person], start), _since(begin[person], end)),
                ongoing=course["stop_reason"] == "ongoing",
                effect=course["effect"],
                stop_reason=course["stop_reason"],
            )
        )
    for row in tables["assessments"]:
        if row["person"] not in begin:  # a review of a child whose records have changed since, listed as unattributed
            continue
        if row["date"] is not None and row["origin"] in EFFECT_SOURCES[parameters.effect_source]:
            marks[row["person"]].append((_since(begin[row["person"]], row["date"]), row["kind"], row["value"]))
    for row in tables["imaging"]:
        if row["date_low"] is not None:
            day = _since(begin[row["patient"]], _point(row, "date"))
            marks[row["patient"]].append((day, "imaging", "whole-body" if row["whole_body"] else "regional"))
    return tuple(
        Timeline(
            label,
            max(_since(begin[person], censored[person]), 0),
            tuple(sorted(bars[person], key=lambda b: (b.start, b.end, b.drug_class, b.agent, b.stop_reason))),
            tuple(sorted(marks[person])),
        )
        for person, (label, _) in children.items()
    )


def derive_trends(tables: Mapping[str, Sequence[Row]]) -> tuple[Trend, ...]:
    """The laboratory values and scores of each child by days since its first TNF-α inhibitor, else its first methotrexate.

    Children with neither have none; labels are those of the timelines. Values below or above a limit stand at the limit.
    """
    children = _children(tables["patients"])
    first: dict[str, tuple[bool, date]] = {}
    for course in tables["courses"]:
        if course["left_out"] is None and course["drug_class"] in {"TNF", "MTX"}:
            key = (course["drug_class"] != "TNF", course["start"])
            first[course["person"]] = min(first.get(course["person"], key), key)
    points = defaultdict(set)
    for lab in tables["labs"]:
        person = lab["patient"]
        if person in first and lab["date_low"] is not None:
            day = _since(first[person][1], _point(lab, "date"))
            points[person, lab["analyte"], lab["unit"]].add((day, float(lab["value"])))
    order = {person: place for place, person in enumerate(children)}
    return tuple(
        Trend(children[person][0], analyte, unit, tuple(sorted(points[person, analyte, unit])))
        for person, analyte, unit in sorted(points, key=lambda key: (order[key[0]], key[1], key[2]))
    )


def _children(patients: Sequence[Row]) -> dict[str, tuple[str, Row]]:
    """The children by key, each with its label, in order of the date of diagnosis."""
    ordered = sorted(patients, key=lambda p: (_point(p, "diagnosis"), p["person"]))
    return {row["person"]: (str(number), row) for number, row in enumerate(ordered, start=1)}


def _point(row: Row, name: str) -> date:
    return PartialDate(row[f"{name}_low"], row[f"{name}_high"]).point


def _since(begin: date, day: date) -> int:
    return (day - begin).days
