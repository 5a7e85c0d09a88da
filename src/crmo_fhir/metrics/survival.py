"""How long a drug is kept, why it is stopped, and when it works: by class and by agent (clinical rules §5).

The clock of a course starts on its first day. Courses of one child are taken as independent.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import date

from crmo_fhir.metrics.response import Row, agent_of
from crmo_fhir.metrics.statistics import Interval, Point, aalen_johansen, kaplan_meier, median_time
from crmo_fhir.model.parameters import EFFECT_SOURCES, Parameters
from crmo_fhir.model.results import Estimate
from crmo_fhir.model.tables import FAILURES

HALF_YEAR = 18262
"""Hundredths of a day: the marks of the numbers at risk."""
_FAILURE, _REMISSION = 1, 2
_KAPLAN_MEIER = "Kaplan-Meier, log-log interval"
_AALEN_JOHANSEN = "Aalen-Johansen, log-log interval"
_RULES = {
    "survival": "event: stopped for inefficacy or an adverse event; every other course is censored where it ends: ongoing, "
    "lock, death, transfer, remission, choice of the patient, another or no reason",
    "incidence": "failure (inefficacy or an adverse event) and remission compete; every other course is censored where it ends",
    "response": "event: the first judgement of a sufficient effect; every other course is censored where it ends",
}


def compute_survival(
    classes: Mapping[str, Sequence[Row]],
    patients: Sequence[Row],
    assessments: Sequence[Row],
    parameters: Parameters,
) -> list[Estimate]:
    """Curves of retention (`survival`), of stops by cause (`incidence`) and of response, each with its median where it has one.

    `classes` are the courses that count, by group. One row an event time, one at day 0, each half year and the last day observed; `n`
    are at risk just before.
    """
    last = {p["person"]: p["censored"] for p in patients}
    first = _first_sufficient(assessments, EFFECT_SOURCES[parameters.effect_source])
    rows: list[Estimate] = []
    for group, courses in classes.items():
        by_agent: dict[str, list[Row]] = defaultdict(list)
        for course in courses:
            by_agent[agent_of(course)].append(course)
        for stratum, own in (("", list(courses)), *sorted(by_agent.items())):
            times = [_days(c, last[c["person"]]) for c in own]
            causes = [
                _FAILURE if c["stop_reason"] in FAILURES else _REMISSION if c["stop_reason"] == "remission" else 0
                for c in own
            ]
            retained = kaplan_meier(times, [cause == _FAILURE for cause in causes])
            rows += _curve("survival", group, "retained", stratum, times, retained, _KAPLAN_MEIER)
            rows.append(_median("survival", group, stratum, causes.count(_FAILURE), len(own), median_time(retained)))
            for name, cause in (("failure", _FAILURE), ("remission", _REMISSION)):
                curve = aalen_johansen(times, causes, cause)
                rows += _curve("incidence", group, name, stratum, times, curve, _AALEN_JOHANSEN)
            seen = [first.get(c["course"]) for c in own]
            until = [
                max((day - c["start"]).days, 0) if day else time for c, day, time in zip(own, seen, times, strict=True)
            ]
            without = kaplan_meier(until, [day is not None for day in seen])
            reached = [_turned(point) for point in without]
            rows += _curve("response", group, "sufficient", stratum, until, reached, _KAPLAN_MEIER)
            rows.append(
                _median("response", group, stratum, len(own) - seen.count(None), len(own), median_time(without))
            )
    return rows


def _days(course: Row, censored: date) -> int:
    """How long a course was observed: to its end, and while it goes on to the last day anything is known of the child."""
    days = int(course["exposure_days"])
    return days if course["stop_reason"] != "ongoing" else min(days, max((censored - course["start"]).days, 0))


def _first_sufficient(assessments: Sequence[Row], origins: Sequence[str]) -> dict[str, date]:
    found: dict[str, date] = {}
    for row in assessments:
        answer = row["origin"] in origins and row["value"] == "sufficient"
        if answer and row["course"] is not None and row["date"] is not None:
            found[row["course"]] = min(found.get(row["course"], row["date"]), row["date"])
    return found


def _turned(point: Point) -> Point:
    """A point of the share that has had the event, of one of the share that has not."""
    low, high = (None if end is None else 1 - end for end in (point.high, point.low))
    return point._replace(value=1 - point.value, low=low, high=high)


def _curve(
    analysis: str, group: str, statistic: str, stratum: str, times: Sequence[int], curve: Sequence[Point], method: str
) -> Iterator[Estimate]:
    total = len(times)
    if not curve:
        yield Estimate(analysis, group, statistic, stratum, N=0, method=method, note="no course")
    for number, point in enumerate(_marked(curve, times)):
        notes = [_RULES[analysis] if number == 0 else "", "nobody left: no interval" if point.low is None else ""]
        yield Estimate(
            *(analysis, group, statistic, stratum, point.time, point.at_risk, total),
            *(point.value, point.low, point.high, method, "; ".join(filter(None, notes))),
        )


def _marked(curve: Sequence[Point], times: Sequence[int]) -> Iterator[Point]:
    """The points of a curve, and one each half year to the last day observed: the value as it is carried, and who is at risk."""
    if not curve:
        return
    ordered, found, current = sorted(times), {point.time: point for point in curve}, curve[0]
    marks = {*range(0, ordered[-1] * 100, HALF_YEAR), ordered[-1] * 100}
    for day in sorted(found.keys() | {mark // 100 for mark in marks}):
        current = found.get(day, current._replace(time=day, at_risk=len(ordered) - bisect_left(ordered, day)))
        yield current


def _median(analysis: str, group: str, stratum: str, events: int, total: int, found: Interval | None) -> Estimate:
    value, low, high = found or (None, None, None)
    reason = "no course" if not total else "" if found else "not reached: more than half are left at the end"
    if found and high is None:
        reason = "the upper end is not reached"
    method = "Brookmeyer-Crowley, log-log"
    return Estimate(analysis, group, "median", stratum, None, events, total, value, low, high, method, reason)
