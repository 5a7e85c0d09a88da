"""Random scores: the derived effect against a plain reading of its rules, and what must not matter to it."""

import random
from datetime import date, timedelta

import pytest

from crmo_fhir.cohort.courses import Course
from crmo_fhir.cohort.derived import derive_answers, derive_series
from crmo_fhir.model.parameters import Parameters

START, END = date(2005, 1, 1), date(2005, 12, 1)
ITEMS = ("esr", "lesion-count", "physician-global", "patient-global", "chaq")
STEPS = {"esr": 10_000, "lesion-count": 1_000, "physician-global": 1_000, "patient-global": 1_000, "chaq": 125}
DEFAULT = Parameters()


def random_labs(rng: random.Random) -> list[dict]:
    """Scores of one child: values in thousandths, so that the plain reading needs no fractions."""
    rows = []
    for item in rng.sample(ITEMS, rng.choice([2, 3, 4, 5, 5])):
        for _ in range(rng.randint(1, 6)):
            day = rng.choice([START - timedelta(days=rng.randint(0, 100)), START + timedelta(days=rng.randint(0, 400))])
            number = rng.choice([0, 1000, 1000, 700, 500, 300, 100, rng.randint(0, 2000)]) * (
                10 if item == "esr" else 1
            )
            units = ["mm/h"] if item == "esr" else ["{score}", "{score}", "mm"] if "global" in item else ["{score}"]
            rows.append(lab(len(rows), item, day, number, rng.choice(units)))
    return rows


def lab(number: int, analyte: str, day: date, value: int, unit: str) -> dict:
    return {
        "lab": f"Observation/{number}",
        "patient": "Patient/A",
        "analyte": analyte,
        "status": "final",
        "date_low": day,
        "date_high": day,
        "value": value / 1000,
        "unit": unit,
        "comparator": None,
        "studies": [],
    }


def derived(labs: list[dict], days: int = 0) -> tuple:
    """PedCNO and the answers of one course; no ids in it."""
    course = Course(
        "Patient/A", "adalimumab", "TNF", START + timedelta(days=days), END + timedelta(days=days), "statement", []
    )
    course.course_no = 1
    answers, changes = derive_answers({"Patient/A": [course]}, derive_series({"Patient/A": labs}, {}), DEFAULT)
    told = [(a.kind, a.value, a.when - timedelta(days=days), len(a.sources)) for a in answers]
    return changes.get(course.name, {}).get("pedcno"), changes.get(course.name, {}).get("lesion_change"), told


def plainly(labs: list[dict]) -> int | None:
    """PedCNO as the rules tell it."""
    better, worse, there = {30: 0, 50: 0, 70: 0, 90: 0}, 0, 0
    for item in ITEMS:
        found = []
        for unit in ("mm", "mm/h", "{score}"):
            own = [(r["date_low"], round(r["value"] * 1000)) for r in labs if (r["analyte"], r["unit"]) == (item, unit)]
            early = [(d, v) for d, v in own if -90 <= (d - START).days <= 14]
            if not early:
                continue
            first = max(d for d, _ in early)
            late = [(d, v) for d, v in own if first < d <= END + timedelta(days=30) and d >= START]
            if late:
                last = max(d for d, _ in late)
                before = min(v for d, v in early if d == first)
                found.append((last, unit == "mm", before, max(v for d, v in late if d == last), unit))
        if not found:
            continue
        _, _, before, after, unit = max(found)
        there += 1
        for level in better:
            better[level] += before > 0 and after * 100 <= before * (100 - level)
        if before:
            worse += after * 100 > before * 130
        else:
            worse += after > 0 and after >= STEPS[item] * (10 if unit == "mm" else 1)
    if there < 3:
        return None
    return max((level for level, count in better.items() if count >= 3 and worse <= 1), default=0)


@pytest.mark.parametrize("seed", range(400))
def test_pedcno_is_what_the_rules_say_and_nothing_else_matters(seed):
    rng = random.Random(seed)
    labs = random_labs(rng)
    expected = derived(labs)
    assert expected[0] == plainly(labs)
    shuffled = rng.sample(labs, len(labs))
    renamed = [{**row, "lab": f"Observation/{rng.random()}"} for row in labs]
    assert derived(shuffled) == expected
    assert derived(renamed) == expected
    assert derived([*labs, *({**row, "lab": f"{row['lab']}-again"} for row in labs)]) == expected
    k = timedelta(days=rng.randint(-3000, 3000))
    moved = [{**row, "date_low": row["date_low"] + k, "date_high": row["date_high"] + k} for row in labs]
    assert derived(moved, k.days) == expected


def test_the_random_scores_reach_every_level():
    assert {plainly(random_labs(random.Random(seed))) for seed in range(400)} == {None, 0, 30, 50, 70, 90}
