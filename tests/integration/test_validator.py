"""What is written passes the profiles it claims, by a validator that is not ours."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from support import DEMONSTRATION, required
from validator.runner import Findings, validate

from crmo_fhir import pipeline
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.study import Disclosure

pytestmark = pytest.mark.validator

WINDOWS = {
    "empty-cohort": (date(1990, 1, 1), date(1991, 12, 31)),
    "small-cohort": (date(2002, 10, 1), date(2003, 10, 31)),
}
"""Dates of diagnosis within which the demonstration holds nobody, and three children without a TNF-α inhibitor."""

RELEASES = {"masked": Disclosure(5), "masked-and-rounded": Disclosure(10, 5)}


def without_status(report: dict[str, Any]) -> None:
    """Break R4 itself."""
    del report["status"]


def with_another_group(report: dict[str, Any]) -> None:
    """Break the match with the Measure."""
    report["group"][0]["code"]["coding"][0]["code"] = "no-such-group"


def without_scoring(report: dict[str, Any]) -> None:
    """Break the profile: how a group is scored."""
    group = report["group"][0]
    group["extension"] = [e for e in group["extension"] if not e["url"].endswith("measureScoring")]


def with_a_patient(report: dict[str, Any]) -> None:
    """Break the profile: a summary names nobody's record."""
    report["evaluatedResource"] = [{"reference": "Patient/1"}]


BROKEN: dict[str, Callable[[dict[str, Any]], None]] = {
    "without-status": without_status,
    "with-another-group": with_another_group,
    "without-scoring": without_scoring,
    "with-a-patient": with_a_patient,
}


@pytest.fixture(scope="session")
def written(demo_study, tmp_path_factory) -> Path:
    """What the program writes for three cohorts, what it releases, and reports spoilt on purpose."""
    folder = tmp_path_factory.mktemp("written")
    for name in ("measure.json", "library.json"):
        shutil.copy(demo_study / name, folder)
    shutil.copy(demo_study / "measure-report.json", folder / "demonstration.json")
    for name, (since, until) in WINDOWS.items():
        study = tmp_path_factory.mktemp(name) / "study"
        pipeline.extract(str(DEMONSTRATION), study, Parameters(since=since, until=until))
        pipeline.measure(study)
        shutil.copy(study / "measure-report.json", folder / f"{name}.json")
    for name, disclosure in RELEASES.items():
        study = tmp_path_factory.mktemp(name) / "study"
        pipeline.demo(study)
        pipeline.release(study, disclosure)
        shutil.copy(study / "release" / "measure-report.json", folder / f"{name}.json")
    report = json.loads((demo_study / "measure-report.json").read_text(encoding="utf-8"))
    for name, spoil in BROKEN.items():
        broken = deepcopy(report)
        spoil(broken)
        (folder / f"{name}.json").write_text(json.dumps(broken), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def findings(written, tmp_path_factory) -> dict[str, Findings]:
    """What the validator says of every file, in one run."""
    missing = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    if missing and not required("validator"):
        pytest.skip(f"the FHIR validator needs {' and '.join(missing)}")
    artifacts = tmp_path_factory.mktemp("artifacts")
    for name in ("measure.json", "library.json"):
        shutil.copy(written / name, artifacts)
    return validate(sorted(written.iterdir()), [artifacts])


@pytest.mark.parametrize("name", ["measure", "library", "demonstration", *WINDOWS, *RELEASES])
def test_what_is_written_is_valid(findings, name):
    found = findings[f"{name}.json"]
    assert found.errors == 0, "\n".join(found.lines)


@pytest.mark.parametrize("name", BROKEN)
def test_the_validator_finds_what_is_broken(findings, name):
    found = findings[f"{name}.json"]
    assert found.errors > 0
    assert any(line.startswith("ERROR") for line in found.lines)


def test_masked_counts_are_there_to_be_validated(written):
    for name in RELEASES:
        text = (written / f"{name}.json").read_text(encoding="utf-8")
        assert text.count('"valueCode": "masked"') > 20


def test_the_cohorts_are_what_they_are_meant_to_be(written):
    scored = {}
    for name in WINDOWS:
        report = json.loads((written / f"{name}.json").read_text(encoding="utf-8"))
        scored[name] = {group["id"] for group in report["group"] if "measureScore" in group}
    assert scored == {"empty-cohort": set(), "small-cohort": {"nsaid-clinical", "mtx-clinical", "mtx-mri"}}
