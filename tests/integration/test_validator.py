"""What is written passes the profiles it claims, by a validator that is not ours."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from engines import cohorts
from support import DEMONSTRATION, missing_tools, skip_unless
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


RANDOM = (4, 5)
"""Seeds of random cohorts."""
CHILDREN = 3
"""So many reports of single children are validated; they are all made alike."""


@pytest.fixture(scope="session")
def written(demo_study, tmp_path_factory) -> Path:
    """What the program writes for several cohorts and in both families, what it releases, and reports spoilt on purpose."""
    folder = tmp_path_factory.mktemp("written")
    for name in ("measure.json", "library.json"):
        shutil.copy(demo_study / name, folder)
    shutil.copy(demo_study / "measure-report.json", folder / "demonstration.json")
    for name, (since, until) in WINDOWS.items():
        study = tmp_path_factory.mktemp(name) / "study"
        pipeline.extract(str(DEMONSTRATION), study, Parameters(since=since, until=until))
        pipeline.measure(study)
        shutil.copy(study / "measure-report.json", folder / f"{name}.json")
    for seed in RANDOM:
        study, records = tmp_path_factory.mktemp("random") / "study", tmp_path_factory.mktemp("records")
        cohorts.write(cohorts.generated(seed), records)
        pipeline.extract(str(records), study, Parameters())
        pipeline.measure(study)
        shutil.copy(study / "measure-report.json", folder / f"random-{seed}.json")
    study = Path(shutil.copytree(demo_study, tmp_path_factory.mktemp("forms") / "study"))
    pipeline.measure(study, form=pipeline.Form(deqm="us"))
    shutil.copy(study / "measure-report.json", folder / "us-summary.json")
    pipeline.measure(study, form=pipeline.Form(individual=True))
    shutil.copy(study / "subject-list-report.json", folder / "subject-list.json")
    for number, line in enumerate((study / "individual-reports.ndjson").read_text("utf-8").splitlines()[:CHILDREN]):
        (folder / f"child-{number}.json").write_text(line, encoding="utf-8")
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
def needed() -> None:
    """Skip where tools are missing, unless this run must not."""
    skip_unless("validator", "the FHIR validator", missing_tools("java", "mvn"))


@pytest.fixture(scope="session")
def findings(needed, written, tmp_path_factory) -> dict[str, Findings]:
    """What the validator says of every file, in one run."""
    artifacts = tmp_path_factory.mktemp("artifacts")
    for name in ("measure.json", "library.json"):
        shutil.copy(written / name, artifacts)
    return validate(sorted(written.iterdir()), [artifacts])


@pytest.fixture(scope="session")
def findings_in_r5(needed, demo_study, tmp_path_factory) -> dict[str, Findings]:
    """The same of what is written in R5, and of one report that is spoilt."""
    folder, study = tmp_path_factory.mktemp("r5"), tmp_path_factory.mktemp("study-r5") / "study"
    shutil.copytree(demo_study, study)
    pipeline.measure(study, form=pipeline.Form(fhir_version="R5", individual=True))
    for name in ("measure.json", "library.json", "measure-report.json", "subject-list-report.json"):
        shutil.copy(study / name, folder)
    for number, line in enumerate((study / "individual-reports.ndjson").read_text("utf-8").splitlines()[:CHILDREN]):
        (folder / f"child-{number}.json").write_text(line, encoding="utf-8")
    report = json.loads((study / "measure-report.json").read_text(encoding="utf-8"))
    del report["period"]
    (folder / "without-period.json").write_text(json.dumps(report), encoding="utf-8")
    report = json.loads((study / "measure-report.json").read_text(encoding="utf-8"))
    report["group"][0]["measureScore"] = report["group"][0].pop("measureScoreQuantity")
    (folder / "as-in-r4.json").write_text(json.dumps(report), encoding="utf-8")
    artifacts = tmp_path_factory.mktemp("artifacts-r5")
    for name in ("measure.json", "library.json"):
        shutil.copy(folder / name, artifacts)
    return validate(sorted(folder.iterdir()), [artifacts], r5=True)


VALID = [
    *("measure", "library", "demonstration", *WINDOWS, *RELEASES),
    *("us-summary", "subject-list"),
    *(f"random-{seed}" for seed in RANDOM),
    *(f"child-{number}" for number in range(CHILDREN)),
]
VALID_IN_R5 = [
    *("measure", "library", "measure-report", "subject-list-report"),
    *(f"child-{number}" for number in range(CHILDREN)),
]


@pytest.mark.parametrize("name", VALID)
def test_what_is_written_is_valid(findings, name):
    found = findings[f"{name}.json"]
    assert found.errors == 0, "\n".join(found.lines)


@pytest.mark.parametrize("name", VALID_IN_R5)
def test_what_is_written_in_r5_is_valid(findings_in_r5, name):
    found = findings_in_r5[f"{name}.json"]
    assert found.errors == 0, "\n".join(found.lines)


@pytest.mark.parametrize("name", BROKEN)
def test_the_validator_finds_what_is_broken(findings, name):
    found = findings[f"{name}.json"]
    assert found.errors > 0
    assert any(line.startswith("ERROR") for line in found.lines)


@pytest.mark.parametrize("name", ["without-period", "as-in-r4"])
def test_the_validator_finds_what_is_broken_in_r5(findings_in_r5, name):
    assert findings_in_r5[f"{name}.json"].errors > 0


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
