"""Random cohorts: the program's counts against the plain oracle's (`naive`), which knows only the clinical rules.

`CRMO_FHIR_ORACLE_SEEDS=500` tries that many cohorts, `CRMO_FHIR_ORACLE_FROM=1000` from another seed on.
"""

import os
from collections import Counter

import cohorts
import naive
import pytest

from crmo_fhir import pipeline
from crmo_fhir.model.parameters import Parameters

FIRST = int(os.environ.get("CRMO_FHIR_ORACLE_FROM", "0"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("CRMO_FHIR_ORACLE_SEEDS", "24")))
GROUPS = ("cohort", "foci", "nsaid-clinical", "nsaid-clinical-exposed", "mtx-clinical", "tnfi-clinical",
          "tnfi-clinical-patients", "mtx-mri", "tnfi-mri", "tnfi-lines")  # fmt: skip
Figures = dict[tuple[str, str, str], tuple[int, int]]


def measured(cohort: cohorts.Cohort, tmp_path) -> Figures:
    cohorts.write(cohort, tmp_path / "records")
    pipeline.extract(str(tmp_path / "records"), tmp_path / "study", Parameters(since=cohort.since, until=cohort.until))
    results = pipeline.measure(tmp_path / "study").results
    return {(r.group, r.stratifier, r.stratum): (r.n, r.N) for r in results if r.group in GROUPS}


def open_to_the_program(key: tuple[str, str, str]) -> bool:
    """Rows the documents do not ask for, or whose strata they do not define where the oracle has none either."""
    group, stratifier, _ = key
    return group == "tnfi-clinical-patients" or (group.startswith("nsaid") and stratifier in ("agent", "line"))


def differences(expected: Figures, got: Figures) -> list[str]:
    found = []
    for key in sorted(expected.keys() | got.keys()):
        want, have = expected.get(key), got.get(key)
        if key[0] == "tnfi-clinical-patients" and key[1]:
            continue
        if want is None and have is not None and (have[0] == 0 or open_to_the_program(key)):
            continue  # a stratum of nothing may be named
        if want != have:
            found.append(f"{' '.join(key)}: the rules give {want}, the program {have}")
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_the_program_counts_what_the_rules_say(seed, tmp_path):
    cohort = cohorts.make(seed)
    expected = naive.figures(cohort.children, cohort.since, cohort.until, cohort.orders_count)
    assert differences(expected, measured(cohort, tmp_path)) == []


def test_the_cohorts_reach_every_figure():
    reached: Counter[tuple[str, str]] = Counter()
    for seed in range(24):
        cohort = cohorts.make(seed)
        for key, (n, whole) in naive.figures(cohort.children, cohort.since, cohort.until, cohort.orders_count).items():
            reached[key[0], "n"] += n if not key[1] else 0
            reached[key[0], "N"] += whole if not key[1] else 0
    assert {group for group in GROUPS if reached[group, "n"] == 0} == set()
    assert all(reached[group, "N"] > reached[group, "n"] for group in GROUPS[2:9])
    assert reached["cohort", "n"] > 150
