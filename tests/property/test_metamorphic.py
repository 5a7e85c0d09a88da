"""What must not change a figure of a random cohort, and what may only lower it.

Each change is made to the abstract children (`naive.Child`), and both cohorts go through the whole program.
"""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from functools import cache
from pathlib import Path

import cohorts
import naive
import pytest

from crmo_fhir import pipeline
from crmo_fhir.model.parameters import Parameters

SEEDS = (3, 11, 26)
Figures = dict[tuple[str, str, str], tuple[int | None, int | None]]


@cache
def made(seed: int) -> cohorts.Cohort:
    return cohorts.make(seed, size=25)


def measured(cohort: cohorts.Cohort, folder: Path) -> Figures:
    cohorts.write(cohort, folder / "records")
    window = Parameters(since=cohort.since, until=cohort.until)
    pipeline.extract(str(folder / "records"), folder / "study", window)
    return {(r.group, r.stratifier, r.stratum): (r.n, r.N) for r in pipeline.measure(folder / "study").results}


def changed(cohort: cohorts.Cohort, change: Callable[[naive.Child], None]) -> cohorts.Cohort:
    children = copy.deepcopy(cohort.children)
    for child in children:
        change(child)
    return replace(cohort, children=children)


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Callable[[int], Figures]:
    @cache
    def figures(seed: int) -> Figures:
        return measured(made(seed), tmp_path_factory.mktemp(f"before{seed}"))

    return figures


def split(child: naive.Child) -> None:
    """Every period of a statement becomes two that abut."""
    for record in list(child.exposures):
        start, end = record.start, record.end
        if (
            child.birth is None
            or record.rung != "statement"
            or end is None
            or start.low != start.high
            or end.low != end.high
        ):
            continue
        if (end.low - start.low).days < 2 or record.taken != "yes" or start.low < child.birth.high:
            continue  # half of what is refused would not be
        middle = naive.on(start.low + (end.low - start.low) / 2)
        second = replace(copy.deepcopy(record), name=record.name + "b", start=middle)
        record.end, record.reasons, record.adverse = middle, set(), []
        child.exposures.append(second)


def relabel(child: naive.Child) -> None:
    """Every second record of a drug is of a biosimilar."""
    products = {"infliximab": ("Remicade", "Inflectra"), "adalimumab": ("Humira", "Hyrimoz 40 mg"), "etanercept": ("Enbrel", "Benepali")}  # fmt: skip
    for number, record in enumerate(child.exposures):
        record.product = products.get(record.agent, ("Metex", "Ebetrex"))[number % 2]


def duplicate(child: naive.Child) -> None:
    """Every resource comes twice, the second time under another id."""

    def twice(records: list) -> list:
        return [*records, *(replace(copy.deepcopy(one), name=one.name + "x") for one in records)]

    child.exposures, child.assessments = twice(child.exposures), twice(child.assessments)
    child.scans, child.diagnoses = twice(child.scans), twice(child.diagnoses)
    child.lesions = child.lesions * 2


def shuffle(child: naive.Child) -> None:
    child.exposures.reverse()
    child.assessments.reverse()
    child.diagnoses.reverse()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("change", [split, relabel, duplicate, shuffle], ids=lambda f: f.__name__)
def test_what_changes_no_figure(before, seed, change, tmp_path):
    cohort = changed(made(seed), change)
    assert cohort.children != made(seed).children
    assert measured(cohort, tmp_path) == before(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_other_ids_files_and_ways_to_tell_the_same_change_no_figure(before, seed, tmp_path):
    assert measured(replace(made(seed), seed=seed + 1000), tmp_path) == before(seed)


def shifted(value: object, by: timedelta) -> object:
    """A copy with every date moved; a partial date becomes its middle first, for a month has no other of its length."""
    if isinstance(value, naive.When):
        day = value.at("point")
        return naive.on(day if day.year > 2060 else day + by)
    if isinstance(value, date):
        return value + by
    if isinstance(value, list | set | tuple):
        return type(value)(shifted(one, by) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: shifted(getattr(value, f.name), by) for f in dataclasses.fields(value)})
    return value


@pytest.mark.parametrize(("seed", "days"), [(3, 1), (11, 59), (26, 365), (11, -1461)])
def test_the_calendar_does_not_matter(seed, days, tmp_path):
    cohort, by, still = made(seed), timedelta(days=days), timedelta(0)
    pairs = [(shifted(child, still), shifted(child, by)) for child in cohort.children]
    kept = [  # a birthday, or twelve months, are a day more in some years than in others
        (one, two)
        for one, two in pairs
        if naive.count_child(one, cohort.since, cohort.until, cohort.orders_count)
        == naive.count_child(two, cohort.since + by, cohort.until + by, cohort.orders_count)
    ]
    assert len(kept) > 0.8 * len(pairs)
    here = replace(cohort, children=[one for one, _ in kept])
    there = replace(cohort, children=[two for _, two in kept], since=cohort.since + by, until=cohort.until + by)
    assert measured(there, tmp_path / "there") == measured(here, tmp_path / "here")


@pytest.mark.parametrize("seed", SEEDS)
def test_an_insufficient_course_more_never_raises_a_proportion(before, seed, tmp_path):
    cohort, added = copy.deepcopy(made(seed)), 0
    for child in cohort.children:
        ends = [e.start.high if e.once else e.end.high if e.end else naive.FAR for e in child.exposures]
        if not naive.eligible(child, cohort.since, cohort.until) or not ends or max(ends) > date(2020, 1, 1):
            continue
        free = [a for a in cohorts.BY_CLASS["TNF"] if all(e.agent != a for e in child.exposures)]
        rung = "order" if cohort.orders_only else "statement"
        if not free or child.died:
            continue
        start = max([*ends, *(a.day for a in child.assessments)]) + timedelta(days=200)
        end = start + timedelta(days=150)
        new = naive.Exposure(f"{child.name}.new", free[0], "TNF", rung, "yes", naive.on(start), naive.on(end))
        child.exposures.append(new)
        judged = start + timedelta(days=120)
        child.assessments.append(naive.Assessment(f"{child.name}.judged", "clinical", "bad", judged, focus=[new.name]))
        child.last_seen = max(child.last_seen or end, end)
        added += 1
    assert added > 3
    now, then = measured(cohort, tmp_path), before(seed)
    assert now["tnfi-clinical", "", ""] == (
        then["tnfi-clinical", "", ""][0],
        then["tnfi-clinical", "", ""][1] + added,
    )
    for group in ("nsaid-clinical", "mtx-clinical", "tnfi-clinical", "tnfi-clinical-patients", "tnfi-mri", "mtx-mri"):
        for stratifier, stratum in (("", ""), ("sex", "female"), ("focality", "multifocal")):
            key = (group, stratifier, stratum)
            if key in then:
                (n, total), (n_then, total_then) = now[key], then[key]
                assert n * total_then <= n_then * total or total_then == 0, key
