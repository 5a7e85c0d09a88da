"""Bad input: one line on stderr, the right exit code, no traceback, nothing half-written."""

import gzip
import json
import os
import shutil

import pytest
from support import DEMONSTRATION

PATIENT = {"resourceType": "Patient", "id": "p1", "gender": "female", "birthDate": "1996-01-01"}
CONDITION = {
    "resourceType": "Condition",
    "id": "c1",
    "subject": {"reference": "Patient/p1"},
    "code": {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10", "code": "M86.3"}]},
    "recordedDate": "2005-01-01",
}
STATEMENT = {
    "resourceType": "MedicationStatement",
    "id": "m1",
    "status": "completed",
    "subject": {"reference": "Patient/p1"},
    "medicationCodeableConcept": {"coding": [{"system": "http://www.whocc.no/atc", "code": "L04AB04"}]},
    "effectivePeriod": {"start": "2005-02-01", "end": "2006-02-01"},
}


def folder(path, *resources, **files):
    path.mkdir()
    for resource in resources:
        with (path / f"{resource['resourceType']}.ndjson").open("a", encoding="utf-8") as file:
            file.write(json.dumps(resource) + "\n")
    for name, content in files.items():
        (path / name.replace("__", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(ran, code, *words):
    assert ran.code == code, (ran.code, ran.err)
    lines = ran.err.strip().splitlines()
    assert len([line for line in lines if "warning" not in line]) == 1, ran.err
    assert "Traceback" not in ran.err
    for word in words:
        assert word.lower() in lines[-1].lower(), (word, lines[-1])


def nothing_written(study):
    assert not (study / "results.csv").exists()
    manifest = study / "raw" / "manifest.json"
    assert not manifest.exists() or json.loads(manifest.read_text())["complete"] is False


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda p: p / "nowhere", 2, ["nowhere", "no such"]),
        (lambda p: folder(p / "empty"), 3, ["empty"]),
        (lambda p: folder(p / "s", PATIENT), 3, ["Condition"]),
        (lambda p: folder(p / "s", CONDITION), 3, ["Patient"]),
        (lambda p: folder(p / "s", package__json='{"name": "left-pad"}'), 3, ["FHIR"]),
        (lambda p: folder(p / "s", PATIENT, CONDITION, other__json='{"name": "left-pad"}'), 3, ["other.json"]),
        (
            lambda p: folder(
                p / "s", PATIENT, CONDITION, cut__gz=gzip.compress(json.dumps(STATEMENT).encode() * 200)[:-20]
            ),
            3,
            ["cut.gz"],
        ),
        (
            lambda p: folder(
                p / "s", PATIENT, CONDITION, Observation__ndjson='{"resourceType": "Observation", "id": \n'
            ),
            3,
            ["Observation.ndjson:1"],
        ),
        (
            lambda p: folder(p / "s", PATIENT, {**CONDITION, "verificationStatus": "confirmed"}),
            3,
            ["STU3"],
        ),
        (
            lambda p: folder(p / "s", PATIENT, CONDITION, {"resourceType": "MedicationOrder", "id": "x"}),
            3,
            ["DSTU2"],
        ),
        (lambda p: folder(p / "s", PATIENT, {**CONDITION, "code": "M86.3"}), 3, ["Condition.ndjson"]),
        (
            lambda p: folder(p / "s", PATIENT, CONDITION, {**STATEMENT, "effectivePeriod": []}),
            3,
            ["MedicationStatement.ndjson:1"],
        ),
    ],
    ids=[
        "missing folder",
        "empty folder",
        "no Condition",
        "no Patient",
        "not FHIR",
        "not FHIR beside FHIR",
        "truncated gzip",
        "broken line",
        "STU3",
        "DSTU2",
        "a code of the wrong shape",
        "a period of the wrong shape",
    ],
)
def test_a_bad_source_is_one_line(crmo, tmp_path, make, code, words):
    study = tmp_path / "study"
    refused(crmo("run", make(tmp_path), "--since", "2002", "-o", study), code, *words)
    nothing_written(study)


def test_a_broken_line_of_a_type_nobody_reads_does_not_matter(crmo, tmp_path):
    source = folder(
        tmp_path / "s",
        PATIENT,
        CONDITION,
        Claim__ndjson='{"resourceType": "Claim", "id": "x"}\n{"resourceType": "Claim", \n',
    )
    assert crmo("run", source, "-o", tmp_path / "study").code == 0
    (line,) = (tmp_path / "study" / "raw" / "quarantine.ndjson").read_text().splitlines()
    assert json.loads(line)["matters"] is False


@pytest.mark.parametrize("which", ["source", "study"])
def test_a_path_that_is_no_text_is_refused(crmo, tmp_path, which):
    odd = os.fsdecode(b"b\xf8rn")
    source = folder(tmp_path / (odd if which == "source" else "s"), PATIENT, CONDITION)
    study = tmp_path / (odd if which == "study" else "study")
    refused(crmo("extract", source, "-o", study), 2, "b\\xf8rn", "no UTF-8")
    assert not study.exists()


def test_a_study_in_its_own_source_is_no_part_of_it(crmo, tmp_path, monkeypatch):
    monkeypatch.chdir(folder(tmp_path / "s", PATIENT, CONDITION, STATEMENT))
    assert crmo("run", ".", "-o", "study").code == 0
    before = {path: path.read_bytes() for path in sorted((tmp_path / "s" / "study").rglob("*.*")) if path.is_file()}
    assert crmo("run", ".", "-o", "study").code == 0
    assert {path: path.read_bytes() for path in before} == before


def test_a_window_that_ends_before_it_begins(crmo, tmp_path):
    refused(crmo("run", DEMONSTRATION, "--since", "2012", "--until", "2002", "-o", tmp_path / "s"), 2, "--until")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("date", ["soon", "02-2002", "2002-13", "20020101"])
def test_a_date_that_is_none(crmo, tmp_path, date):
    refused(crmo("extract", DEMONSTRATION, "--since", date, "-o", tmp_path / "s"), 2, "--since")


def test_a_study_made_with_other_arguments_is_refused_and_kept(crmo, tmp_path):
    source, study = folder(tmp_path / "s", PATIENT, CONDITION), tmp_path / "study"
    assert crmo("run", source, "--since", "2002", "-o", study).code == 0
    before = {p: p.read_bytes() for p in study.rglob("*") if p.is_file()}
    refused(crmo("run", source, "--since", "2003", "-o", study), 2, "other arguments", "since")
    assert {p: p.read_bytes() for p in study.rglob("*") if p.is_file()} == before


def test_a_folder_that_is_no_study_is_refused_and_kept(crmo, tmp_path):
    source, study = folder(tmp_path / "s", PATIENT, CONDITION), folder(tmp_path / "mine", thesis__txt="years of work")
    refused(crmo("run", source, "-o", study), 2, "mine")
    assert [p.name for p in study.iterdir()] == ["thesis.txt"]


def test_nobody_in_the_window_is_an_honest_empty_result(crmo, tmp_path):
    source, study = folder(tmp_path / "s", PATIENT, CONDITION, STATEMENT), tmp_path / "study"
    ran = crmo("run", source, "--since", "2010", "--until", "2011", "-o", study)
    assert ran.code == 0
    assert "the cohort is empty" in ran.err
    report = json.loads((study / "measure-report.json").read_text())
    assert not any("measureScore" in group for group in report["group"])


@pytest.mark.parametrize("change", ["flip", "add", "remove"])
def test_a_hand_edited_pull_is_refused(crmo, tmp_path, change):
    source, study = folder(tmp_path / "s", PATIENT, CONDITION, STATEMENT), tmp_path / "study"
    assert crmo("run", source, "-o", study).code == 0
    path = study / "raw" / "Condition.ndjson"
    if change == "flip":
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    elif change == "add":
        (study / "raw" / "Condition@9.ndjson").write_text("{}\n")
    else:
        path.unlink()
    for command in ("build", "measure"):
        refused(crmo(command, study), 6, "raw")


def test_a_hand_edited_cohort_is_refused(crmo, tmp_path):
    source, study = folder(tmp_path / "s", PATIENT, CONDITION, STATEMENT), tmp_path / "study"
    assert crmo("run", source, "-o", study).code == 0
    (study / "cohort" / "attrition.csv").write_text("step,reason,kept,dropped\n")
    refused(crmo("measure", study), 6, "attrition.csv")


def test_measure_without_a_study(crmo, tmp_path):
    refused(crmo("measure", tmp_path / "none"), 2, "none")


def test_a_failed_pull_leaves_the_earlier_one(crmo, tmp_path):
    source, study = folder(tmp_path / "s", PATIENT, CONDITION), tmp_path / "study"
    assert crmo("run", source, "-o", study).code == 0
    before = (study / "results.csv").read_bytes()
    (source / "Observation.ndjson").write_text('{"resourceType": \n')
    refused(crmo("run", source, "-o", study), 3, "Observation.ndjson:1")
    assert (study / "results.csv").read_bytes() == before
    assert crmo("measure", study).code == 0


def test_a_study_that_is_held_is_refused_at_once(crmo, tmp_path):
    from crmo_fhir import landing

    source, study = folder(tmp_path / "s", PATIENT, CONDITION), tmp_path / "study"
    with landing.hold(study, create=True):
        refused(crmo("run", source, "-o", study), 7, "another run")


@pytest.mark.parametrize(
    "arguments",
    [["frobnicate"], ["extract", "--no-such-option"], ["measure"], ["extract", "--max-age", "old", "x"], ["extract"]],
    ids=str,
)
def test_wrong_usage_is_one_line(crmo, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CRMO_FHIR_SERVER", raising=False)
    refused(crmo(*arguments), 2)


def test_files_are_for_their_owner_only(crmo, tmp_path):
    source, study = folder(tmp_path / "s", PATIENT, CONDITION), tmp_path / "study"
    assert crmo("run", source, "-o", study).code == 0
    for path in [study, *study.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_source_that_changed_is_pulled_again(crmo, tmp_path):
    source, study = folder(tmp_path / "s", PATIENT, CONDITION), tmp_path / "study"
    assert crmo("run", source, "-o", study).code == 0
    before = (study / "results.csv").read_text()
    shutil.rmtree(source)
    folder(
        source,
        PATIENT,
        CONDITION,
        {**PATIENT, "id": "p2"},
        {**CONDITION, "id": "c2", "subject": {"reference": "Patient/p2"}},
    )
    assert crmo("run", source, "-o", study).code == 0
    assert "cohort,,,patient,1,1" in before
    assert "cohort,,,patient,2,2" in (study / "results.csv").read_text()
