"""A FHIR server at the other end: whole, or one line and no study that looks whole (a real socket on 127.0.0.1)."""

import json
import socket

import pytest
from fake_server import FakeServer, Fault
from test_bad_input import CONDITION, PATIENT, STATEMENT, folder, nothing_written, refused
from test_configuration import EFFECT

HTML = {"Content-Type": "text/html"}
RECORDS = (PATIENT, CONDITION, STATEMENT, EFFECT)


@pytest.fixture
def server():
    with FakeServer(RECORDS, page_size=1) as fake:
        yield fake


def test_the_same_cohort_served_and_in_a_folder_gives_the_same_bytes(crmo, server, tmp_path):
    source = folder(tmp_path / "s", *RECORDS)
    window = ("--since", "2002", "--until", "2011")
    assert crmo("run", source, *window, "-o", tmp_path / "read").code == 0
    served = crmo("run", server.base, *window, "-o", tmp_path / "served")
    assert served.code == 0, served.err
    for name in ("results.csv", "table1.csv", "measure.json", "measure-report.json"):
        assert (tmp_path / "read" / name).read_bytes() == (tmp_path / "served" / name).read_bytes()
    assert "tnfi-clinical,,,course,1,1" in (tmp_path / "served" / "results.csv").read_text()


def test_nothing_listens_there(crmo, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    study = tmp_path / "study"
    refused(crmo("run", f"http://127.0.0.1:{port}/fhir", "--retry-budget", "1", "-o", study), 5, str(port))
    assert not study.exists()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("status", status=401, times=99), 4),
        (Fault("status", status=403, path="Observation", times=99), 4),
        (Fault("status", status=404, path="MedicationStatement", times=99), 3),
        (Fault("status", status=400, path="Condition", times=99), 3),
        (Fault("status", status=500, path="Observation", times=99), 5),
        (Fault("status", status=200, body=b"<html>", headers=HTML, path="Observation", times=99), 3),
        (Fault("status", status=200, body=b"<html>", headers=HTML, times=99), 3),
    ],
    ids=[
        "401",
        "403 on one type",
        "404 on one type",
        "400 on the codes",
        "500 on one type",
        "HTML on one type",
        "HTML",
    ],
)
def test_a_search_that_fails_stops_the_run(crmo, server, tmp_path, monkeypatch, fault, code):
    monkeypatch.setenv("CRMO_FHIR_TOKEN", "very-secret-token")
    server.faults.append(fault)
    study = tmp_path / "study"
    ran = crmo("run", server.base, "--retry-budget", "1", "-o", study)
    refused(ran, code)
    assert "very-secret-token" not in ran.out + ran.err
    nothing_written(study)


@pytest.mark.parametrize("version", ["3.0.2", "1.0.2"])
def test_an_older_fhir_is_named_and_refused(crmo, tmp_path, version):
    with FakeServer(RECORDS, version=version) as fake:
        refused(crmo("run", fake.base, "-o", tmp_path / "study"), 3, version)


def test_plain_http_to_another_machine_is_refused(crmo, tmp_path):
    refused(crmo("run", "http://fhir.hospital.example/r4", "-o", tmp_path / "study"), 2, "http")


def test_the_token_stands_in_no_file_of_the_study(crmo, server, tmp_path, monkeypatch):
    monkeypatch.setenv("CRMO_FHIR_TOKEN", "very-secret-token")
    assert crmo("run", server.base, "-o", tmp_path / "study").code == 0
    for path in (tmp_path / "study").rglob("*"):
        assert path.is_dir() or b"very-secret-token" not in path.read_bytes()
    assert {r.headers.get("authorization") for r in server.requests} == {"Bearer very-secret-token"}


def test_the_manifest_accounts_for_every_search(crmo, server, tmp_path):
    assert crmo("run", server.base, "-o", tmp_path / "study").code == 0
    manifest = json.loads((tmp_path / "study" / "raw" / "manifest.json").read_text())
    asked = {search["type"] for search in manifest["source"]["searches"]}
    assert {"Condition", "Patient", "MedicationStatement", "Observation", "ImagingStudy"} <= asked
    assert manifest["source"]["server"]


ORDER = {
    "resourceType": "MedicationRequest",
    "id": "r1",
    "status": "active",
    "intent": "order",
    "subject": {"reference": "Patient/p1"},
    "medicationCodeableConcept": STATEMENT["medicationCodeableConcept"],
    "authoredOn": "2005-02-01",
}
ELSEWHERE = {**STATEMENT, "id": "m9", "subject": {"reference": "Patient/p9"}}


@pytest.mark.parametrize(
    ("others", "courses"), [((), 1), (({**PATIENT, "id": "p9"}, ELSEWHERE), 0)], ids=["orders only", "not"]
)
@pytest.mark.parametrize("served", [True, False], ids=["server", "folder"])
def test_orders_make_courses_only_where_the_whole_source_holds_nothing_stronger(
    crmo, tmp_path, others, courses, served
):
    records = (PATIENT, CONDITION, ORDER, *others)
    study = tmp_path / "study"
    with FakeServer(records) as fake:
        assert crmo("run", fake.base if served else folder(tmp_path / "s", *records), "-o", study).code == 0
    assert f"tnfi-clinical-treated,,,course,{courses},{courses}" in (study / "results.csv").read_text()
