"""Promises 87 and 88 on the demonstration: a reader written apart (`attacker`) cannot work out what a release hides."""

import json
import shutil
from datetime import date
from pathlib import Path

import attacker
import plain
import pytest
from support import DEMONSTRATION, PRINTED

from crmo_fhir import pipeline
from crmo_fhir.model.parameters import Parameters

FILES = (
    "library.json",
    "measure-report.json",
    "measure.json",
    "outputs.json",
    "report.html",
    "results.csv",
    "table1.csv",
)


@pytest.fixture
def study(demo_study, tmp_path) -> Path:
    """A copy of the demonstration that a test may release and spoil."""
    return Path(shutil.copytree(demo_study, tmp_path / "study"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("threshold", "rounding"), [(3, 0), (5, 0), (7, 0), (10, 0), (5, 5)])
def test_promise_87_nobody_can_narrow_what_a_release_hides(crmo, study, threshold, rounding):
    ran = crmo("release", study, "--threshold", threshold, "--rounding", rounding, "--published", PRINTED)
    assert (ran.code, ran.err) == (0, "")
    said = attacker.read(study / "release")
    attack = attacker.Attack(said, rounding=rounding)
    assert attack.narrowed(threshold) == {}
    assert attack.revealed([attacker.truth_of(study / "results.csv")], threshold) == {}
    counts = len(said.rows) * 2
    assert f"{counts - len(said.hidden)} of {counts} counts are shown" in ran.out
    assert len(said.hidden) < {3: 0.3, 5: 0.4, 7: 0.5, 10: 0.6}[threshold] * counts, "most of it is still there"


@pytest.mark.parametrize("threshold", [3, 5, 7, 10])
def test_promise_87_plain_masking_does_not_hold(demo_study, threshold):
    """The reader bites: neither all that is there, nor primary masking, nor primary and margin masking stands it."""
    truth = attacker.truth_of(demo_study / "results.csv")
    for hidden in (
        set(),
        plain.hide_small(truth, threshold),
        plain.hide_small_and_margins(truth, threshold),
    ):
        attack = attacker.Attack(plain.said_of(truth, hidden))
        assert attack.revealed([truth], threshold), f"{len(hidden)} hidden"


def test_promise_87_one_unmasked_cell_is_found(crmo, study):
    crmo("release", study)
    truth = attacker.truth_of(study / "results.csv")
    said = attacker.read(study / "release")
    said.counts["mtx-clinical-best-case n"] = truth["mtx-clinical-best-case n"]  # which is mtx-clinical n
    assert "0 mtx-clinical n" in attacker.Attack(said).narrowed(5)


def test_promise_87_a_percentage_without_its_counts_is_found(crmo, study):
    crmo("release", study)
    said = attacker.read(study / "release")
    said.share("mtx-clinical", "16.7", 0.01, 1)
    assert "0 mtx-clinical n" in attacker.Attack(said).narrowed(5)


def test_promise_87_nothing_that_cannot_be_protected_leaves(crmo, study):
    crmo("release", study)
    files = bytes_of(study / "release")
    assert sorted(files) == list(FILES)
    page = files["report.html"].decode()
    for heading in ("From the records to the cohort", "Data quality", "To know before reading"):
        assert f"<h2>{heading}" not in page
    assert "Released: counts from 1 to 4" in page
    assert "Internal: small numbers are not masked" in (study / "report.html").read_text()
    assert "receipts" not in files
    for folder in (study / "release", study / "receipts"):
        assert folder.stat().st_mode & 0o077 == 0
        assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


def test_promise_87_the_mode_stands_in_the_report(crmo, study):
    crmo("release", study, "--threshold", 7, "--rounding", 5)
    stated = {}
    for folder in (study, study / "release"):
        report = json.loads((folder / "measure-report.json").read_text())
        (own,) = [one for one in report["contained"] if one["resourceType"] == "Parameters"]
        stated[folder.name] = {
            p["name"]: next(v for k, v in p.items() if k != "name")
            for p in own["parameter"]
            if p["name"].startswith("disclosure")
        }
    assert stated["study"] == {"disclosure": "internal"}
    assert stated["release"] == {"disclosure": "released", "disclosure_threshold": 7, "disclosure_rounding": 5}


def test_promise_87_a_date_of_one_child_is_widened_to_its_year(tmp_path):
    study = tmp_path / "study"
    pipeline.extract(str(DEMONSTRATION), study, Parameters())
    measured = pipeline.measure(study)
    released = pipeline._released_study(measured.study, measured.study.disclosure)
    assert (released.start.month, released.start.day) == (1, 1)
    assert {(day.month, day.day) for day in (released.end, released.data_lock)} == {(12, 31)}


def test_promise_87_too_few_children_are_refused(crmo, tmp_path):
    study = tmp_path / "study"
    pipeline.extract(str(DEMONSTRATION), study, Parameters(since=date(2002, 10, 1), until=date(2003, 10, 31)))
    pipeline.measure(study)
    ran = crmo("release", study)
    assert ran.code == 9
    assert len(ran.err.splitlines()) == 1
    assert "no figure can be shown" in ran.err
    assert not (study / "release").exists()
    assert not (study / "receipts").exists()


def test_promise_87_nobody_is_not_few(crmo, tmp_path):
    study = tmp_path / "study"
    pipeline.extract(str(DEMONSTRATION), study, Parameters(since=date(1990, 1, 1), until=date(1991, 12, 31)))
    pipeline.measure(study)
    assert crmo("release", study).code == 0
    assert attacker.read(study / "release").hidden == set()


def test_promise_88_the_same_figures_are_released_alike(crmo, study):
    assert crmo("release", study).code == 0
    first = bytes_of(study / "release")
    receipts = bytes_of(study / "receipts")
    assert crmo("release", study).code == 0
    assert bytes_of(study / "release") == first
    assert bytes_of(study / "receipts") == receipts, "one release, one receipt"
    ran = crmo("release", study, "--threshold", 3)
    assert ran.code == 9, "two ways of masking together tell what each hides"
    assert "--threshold 5 --rounding 0" in ran.err
    assert bytes_of(study / "release") == first


def test_promise_88_receipts_outlive_extract_and_measure(crmo, study):
    crmo("release", study)
    receipts = bytes_of(study / "receipts")
    pipeline.demo(study)
    assert bytes_of(study / "receipts") == receipts
    path = study / "receipts" / "release-1.json"
    path.write_text(path.read_text().replace("threshold", "Threshold"))
    ran = crmo("release", study)
    assert (ran.code, len(ran.err.splitlines())) == (6, 1)
    assert "release-1.json" in ran.err


def test_a_study_that_is_not_what_measure_gives_is_not_released(crmo, study):
    results = study / "results.csv"
    exact = results.read_text()
    results.write_text(exact.replace("mtx-clinical,,,patient,3,18", "mtx-clinical,,,patient,8,18"))
    for code in (6, 2):  # changed, and not there
        ran = crmo("release", study)
        assert (ran.code, len(ran.err.splitlines())) == (code, 1)
        assert "results.csv" in ran.err
        assert not (study / "release").exists()
        results.unlink(missing_ok=True)  # and then one that was never measured


def test_published_figures_of_what_is_hidden_are_left_out(crmo, study):
    crmo("release", study, "--published", PRINTED)
    page = (study / "release" / "report.html").read_text()
    assert "18 / 58%" in page
    assert "3 / 17%" not in page
    assert "15 + 12 + 3" not in page, "notes are free text"
