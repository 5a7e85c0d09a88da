"""The main job from servers that differ: an export of HAPI, Helios that checks tokens, Medplum that links to no next page."""

import json
import time

import pytest
from servers import helios as helios_server
from servers import medplum as medplum_server
from servers.records import load, resources
from support import DEMONSTRATION, OUTPUTS, PRINTED, missing_tools, skip_unless

from crmo_fhir.fhir.client import FhirClient
from crmo_fhir.model.records import READ_TYPES

WINDOW = ("--since", "2002", "--until", "2011")
SCOPES = tuple(f"system/{kind}.rs" for kind in READ_TYPES)
LOADING = "system/*.cruds"


@pytest.fixture(scope="module")
def helios(tmp_path_factory):
    """A real Helios server that holds the demonstration and checks tokens, with the OAuth 2 server that gives them."""
    skip_unless("helios", "the Helios server", missing_for_helios())
    with helios_server.running(tmp_path_factory.mktemp("helios"), (LOADING, "system/*.rs", *SCOPES)) as server:
        load(server.base, resources(DEMONSTRATION), token=server.token(LOADING))
        yield server


def missing_for_helios() -> list[str]:
    missing = missing_tools("node", "npm")
    return missing if helios_server.program() else [*missing, f"hfs {helios_server.VERSION} (tests/servers/README.md)"]


@pytest.fixture(scope="module")
def medplum(tmp_path_factory):
    """The base URL of a Medplum router that holds the demonstration."""
    skip_unless("medplum", "the Medplum server", missing_tools("node", "npm"))
    with medplum_server.running(tmp_path_factory.mktemp("medplum") / "medplum.log") as base:
        load(base, resources(DEMONSTRATION))
        yield base


@pytest.fixture
def signing_in(helios, monkeypatch):
    """The environment of a SMART backend service that Helios knows."""
    monkeypatch.setenv("CRMO_FHIR_CLIENT_ID", helios.client)
    monkeypatch.setenv("CRMO_FHIR_KEY_FILE", str(helios.jwk))
    return helios


@pytest.fixture
def impatient(monkeypatch):
    """Both servers ask for 120 s between polls and are done in five: wait a second instead."""
    monkeypatch.setitem(FhirClient.__init__.__kwdefaults__, "sleep", lambda seconds: time.sleep(min(seconds, 1)))


def same_bytes(crmo, study, demo_study) -> None:
    """The study, measured, gives the files of the folder, and lost the same candidates."""
    measured = crmo("measure", study, "--published", PRINTED)
    assert measured.code == 0, measured.err
    for name in OUTPUTS:
        assert (study / name).read_bytes() == (demo_study / name).read_bytes(), name
    attrition = "cohort/attrition.csv"
    assert (study / attrition).read_bytes() == (demo_study / attrition).read_bytes()


def refused(ran, code, study, *words) -> None:
    """One line that says what is wrong, no secret in it, and nothing that looks like a pull."""
    assert ran.code == code, ran.err
    lines = ran.err.splitlines()
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines
    assert "eyJ" not in ran.out + ran.err, "a token or an assertion was printed"
    manifest = study / "raw" / "manifest.json"
    assert not manifest.exists() or json.loads(manifest.read_text())["complete"] is False
    assert not (study / "results.csv").exists()


# ------------------------------------------------------------------------------------------------------------ HAPI, export


@pytest.mark.hapi
def test_an_export_of_hapi_and_the_folder_give_the_same_bytes(hapi, demo_study, crmo, tmp_path, impatient):
    study = tmp_path / "study"
    ran = crmo("extract", hapi, *WINDOW, "--mode", "bulk", "-o", study)
    assert ran.code == 0, ran.err
    same_bytes(crmo, study, demo_study)


# --------------------------------------------------------------------------------------------------------- Helios, tokens


def test_signed_in_to_helios_the_same_bytes(signing_in, demo_study, crmo, tmp_path):
    study, before = tmp_path / "study", signing_in.granted()
    ran = crmo("extract", signing_in.base, *WINDOW, "--mode", "search", "-o", study)
    assert ran.code == 0, ran.err
    same_bytes(crmo, study, demo_study)
    assert signing_in.granted() == before + 1, "one token serves the whole pull"


def test_a_key_in_pem_signs_in_too(signing_in, demo_study, crmo, tmp_path, monkeypatch):
    monkeypatch.setenv("CRMO_FHIR_KEY_ID", json.loads(signing_in.jwk.read_text())["kid"])
    study = tmp_path / "study"
    ran = crmo("extract", signing_in.base, *WINDOW, "--mode", "search", "--key-file", signing_in.pem, "-o", study)
    assert ran.code == 0, ran.err
    same_bytes(crmo, study, demo_study)


def test_an_export_of_helios_needs_the_token_for_its_files_too(
    signing_in, demo_study, crmo, tmp_path, monkeypatch, impatient
):
    # Helios takes the address of an export's state for a type of resource: only a scope of all types reaches it.
    monkeypatch.setenv("CRMO_FHIR_SCOPE", "system/*.rs")
    study = tmp_path / "study"
    ran = crmo("extract", signing_in.base, *WINDOW, "--mode", "bulk", "-o", study)
    assert ran.code == 0, ran.err
    same_bytes(crmo, study, demo_study)


def test_without_a_sign_in_helios_refuses(helios, crmo, tmp_path):
    refused(crmo("extract", helios.base, *WINDOW, "-o", tmp_path / "study"), 4, tmp_path / "study", "401")


def test_a_static_token_whose_scope_is_too_narrow_names_the_type(helios, crmo, tmp_path, monkeypatch):
    monkeypatch.setenv("CRMO_FHIR_TOKEN", helios.token("system/Patient.rs system/Condition.rs"))
    study = tmp_path / "study"
    refused(crmo("extract", helios.base, *WINDOW, "--mode", "search", "-o", study), 4, study, "Encounter", "403")


def test_a_key_the_server_does_not_know_is_refused(signing_in, crmo, tmp_path, monkeypatch):
    other = tmp_path / "other.jwk"
    other.write_text(json.dumps({**json.loads(signing_in.jwk.read_text()), "kid": "nobody-knows-it"}))
    other.chmod(0o600)
    monkeypatch.setenv("CRMO_FHIR_KEY_FILE", str(other))
    study = tmp_path / "study"
    refused(crmo("extract", signing_in.base, *WINDOW, "-o", study), 4, study, "invalid_client")


def test_a_granted_scope_narrower_than_asked_ends_the_run_and_says_what_is_missing(crmo, tmp_path, monkeypatch):
    skip_unless("helios", "the Helios server", missing_for_helios())
    narrower = [scope for scope in SCOPES if "AdverseEvent" not in scope]
    with helios_server.running(tmp_path, narrower) as server:
        monkeypatch.setenv("CRMO_FHIR_CLIENT_ID", server.client)
        monkeypatch.setenv("CRMO_FHIR_KEY_FILE", str(server.jwk))
        study = tmp_path / "study"
        refused(crmo("extract", server.base, *WINDOW, "-o", study), 4, study, "system/AdverseEvent.rs")


# ---------------------------------------------------------------------------------------------------------------- Medplum


def test_a_server_without_next_links_gives_the_same_bytes(medplum, demo_study, crmo, tmp_path):
    study = tmp_path / "study"
    ran = crmo("extract", medplum, *WINDOW, "-o", study)
    assert ran.code == 0, ran.err
    assert "search by text leaves out" in ran.err
    measured = crmo("measure", study, "--published", PRINTED)
    assert measured.code == 0, measured.err
    for name in OUTPUTS:
        assert (study / name).read_bytes() == (demo_study / name).read_bytes(), name


def test_an_export_of_a_server_without_one_is_refused(medplum, crmo, tmp_path):
    study = tmp_path / "study"
    ran = crmo("extract", medplum, *WINDOW, "--mode", "bulk", "-o", study)
    assert ran.code in (2, 3), ran.err
    assert len(ran.err.splitlines()) == 1
    assert not study.exists()
