"""Releases of random cohorts, alone and one after another, against a reader written apart from the program (`attacker`).

`CRMO_FHIR_RELEASES=200` releases that many cohorts at every threshold.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import attacker
import cohorts
import pytest

from crmo_fhir import pipeline
from crmo_fhir.errors import PrivacyError
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.study import Disclosure

THRESHOLDS = (3, 5, 7, 10)
MANY = int(os.environ.get("CRMO_FHIR_RELEASES", "0"))
CASES = [
    *((seed, (threshold,)) for seed, threshold in zip((4, 11, 20, 35), THRESHOLDS, strict=True) if not MANY),
    *((seed, THRESHOLDS) for seed in range(MANY)),
]
ADDED = [
    (5, 40, 1, 5),
    (6, 40, 10, 5),
    *((seed, 40, 1 + seed % 12, THRESHOLDS[seed % 4]) for seed in range(MANY // 10)),
]


def measure(cohort: cohorts.Cohort, folder: Path) -> Path:
    shutil.rmtree(folder / "records", ignore_errors=True)
    cohorts.write(cohort, folder / "records")
    window = Parameters(since=cohort.since, until=cohort.until)
    pipeline.extract(str(folder / "records"), folder / "study", window)
    pipeline.measure(folder / "study")
    return folder / "study"


@pytest.mark.parametrize(("seed", "thresholds"), CASES)
def test_promise_87_nobody_can_narrow_what_a_release_of_a_random_cohort_hides(seed, thresholds, tmp_path):
    study = measure(cohorts.make(seed), tmp_path)
    truth = attacker.truth_of(study / "results.csv")
    for threshold in thresholds:
        shutil.rmtree(study / "receipts", ignore_errors=True)  # as if it were the only one
        try:
            pipeline.release(study, Disclosure(threshold))
        except PrivacyError:
            assert truth["cohort n"] < 2 * threshold, "there was enough to show"
            continue
        said = attacker.read(study / "release")
        attack = attacker.Attack(said)
        assert attack.narrowed(threshold) == {}
        assert attack.revealed([truth], threshold) == {}


@pytest.mark.parametrize(("seed", "size", "added", "threshold"), ADDED)
def test_promise_88_two_releases_tell_no_more_together(seed, size, added, threshold, tmp_path):
    cohort = cohorts.make(seed, size=size)
    said, truths = [], []
    for children in (cohort.children[:-added], cohort.children):
        study = measure(replace(cohort, children=children), tmp_path)
        try:
            pipeline.release(study, Disclosure(threshold))
        except PrivacyError:
            assert len(said) == 1, "the first one stands alone"
            return
        said.append(attacker.read(study / "release"))
        truths.append(attacker.truth_of(study / "results.csv"))
    attack = attacker.Attack(*said, grows=True)  # whoever knows that nobody left knows more than who does not
    assert attack.is_possible()
    assert attack.narrowed(threshold) == {}
    assert attack.revealed(truths, threshold) == {}


def test_promise_88_the_reader_finds_a_difference(tmp_path):
    """The reader bites: a later release that was not held against the earlier one gives itself away."""
    cohort = cohorts.make(5, size=40)
    said, truths = [], []
    for children in (cohort.children[:-1], cohort.children):
        study = measure(replace(cohort, children=children), tmp_path)
        shutil.rmtree(study / "receipts", ignore_errors=True)
        pipeline.release(study, Disclosure(5))
        said.append(attacker.read(study / "release"))
        truths.append(attacker.truth_of(study / "results.csv"))
    assert attacker.Attack(*said).revealed(truths, 5)
