"""`crmo-fhir probe`: what a server offers, before a patient is read."""

import json

import pytest
from fake.export import Export
from fake_oauth import FakeOAuth
from fake_server import FakeServer, Fault
from promises.records import COHORT


@pytest.fixture
def server():
    with FakeServer(COHORT) as fake:
        yield fake


def read(server) -> list[str]:
    """The requests that could have shown a record: anything but the server's own description, and counts."""
    return [
        request.path
        for request in server.requests
        if not (
            request.segments == ["metadata"] or ".well-known" in request.path or request.param("_summary") == "count"
        )
    ]


def test_it_says_what_would_be_done_and_reads_no_patient(crmo, server):
    ran = crmo("probe", server.base)
    assert ran.code == 0, ran.err
    said = ran.out.splitlines()
    assert said[0] == "fake, FHIR 4.0.1"
    assert "way: search: the server declares no export of everything" in said
    assert "diagnoses with a code of the disease: 2" in said
    assert "impossible:" not in said
    assert [line.split() for line in said if line.startswith("  Patient ")] == [["Patient", "2"]]
    assert read(server) == []


def test_the_cost_it_names_is_about_what_the_pull_takes(crmo, server, tmp_path):
    said = crmo("probe", server.base).out
    cost = next(int(line.split()[2]) for line in said.splitlines() if line.startswith("cost: about"))
    server.requests.clear()
    assert crmo("extract", server.base, "-q", "-o", tmp_path / "study").code == 0
    assert 0.5 * len(server.requests) <= cost <= 2 * len(server.requests)


def test_an_export_is_chosen_where_it_is_asked_for(crmo, server):
    Export(server)
    assert "way: bulk (system): asked for with --mode bulk" in crmo("probe", server.base, "--mode", "bulk").out
    assert "way: search: 2 diagnoses of the disease, 2 patients in all" in crmo("probe", server.base).out


@pytest.mark.parametrize(
    ("types", "words"),
    [
        (("Condition", "Observation"), "Patient: not in the CapabilityStatement"),
        (("Patient", "Observation"), "Condition: not in the CapabilityStatement"),
        (("Patient", "Condition", "Observation"), "MedicationStatement: not in the CapabilityStatement"),
    ],
)
def test_what_cannot_be_had_is_named_and_the_exit_code_says_so(crmo, server, types, words):
    server.types = types
    ran = crmo("probe", server.base)
    assert ran.code == 3
    assert words in ran.out
    assert len(ran.err.splitlines()) == 1
    assert read(server) == []


def test_a_type_that_the_hospital_does_not_have_is_no_obstacle(crmo, server, tmp_path, monkeypatch):
    server.types = tuple(kind for kind in server.types if kind != "AdverseEvent")
    assert crmo("probe", server.base).code == 3
    config = tmp_path / "crmo-fhir.toml"
    config.write_text('absent = ["AdverseEvent"]\n')
    monkeypatch.setenv("CRMO_FHIR_CONFIG", str(config))
    assert crmo("probe", server.base).code == 0


def test_a_scope_that_does_not_reach_is_named_before_a_pull_meets_it(crmo, server):
    server.faults.append(Fault("status", path="/Observation", status=403, times=99))
    ran = crmo("probe", server.base)
    assert ran.code == 3
    assert "Observation" in ran.out
    assert "403" in ran.out


def test_the_sign_in_that_is_offered_is_named(crmo, server):
    oauth = FakeOAuth("client", [])
    oauth.origin = server.origin
    server.parts.append(oauth)
    assert "sign-in: SMART backend services" in crmo("probe", server.base).out


def test_a_folder_is_no_server(crmo, tmp_path):
    ran = crmo("probe", tmp_path)
    assert ran.code == 2
    assert "base URL" in ran.err


def test_a_server_that_is_no_fhir_server_is_named(crmo, server):
    server.faults.append(Fault("html", path="metadata", times=99))
    ran = crmo("probe", server.base)
    assert ran.code == 3
    assert "check the base URL" in ran.err
    assert json.dumps(COHORT[0])[:20] not in ran.out + ran.err
