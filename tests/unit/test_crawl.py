"""Crawling a server: what it does wrong is noticed, what it gives is whole."""

from typing import Any

import pytest
from fake_server import FakeServer, Fault

from crmo_fhir.artifacts import Artifacts
from crmo_fhir.errors import IncompleteError
from crmo_fhir.fhir.client import FhirClient
from crmo_fhir.model.records import Pull
from crmo_fhir.source import plan
from crmo_fhir.source.crawl import crawl

Resource = dict[str, Any]
ICD10 = "http://hl7.org/fhir/sid/icd-10"
ARTIFACTS = Artifacts.load()
CRMO, TEXT = ARTIFACTS.value_set("crmo"), ARTIFACTS.value_set("crmo-text")


def of(kind: str, identity: str, patient: str = "", **more: Any) -> Resource:
    subject = {"subject": {"reference": f"Patient/{patient}"}} if patient else {}
    return {"resourceType": kind, "id": identity, **subject, **more}


def coded(code: str, system: str = ICD10) -> Resource:
    return {"coding": [{"system": system, "code": code}]}


CATEGORY = [
    {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "laboratory"}]}
]
MRN = [{"system": "urn:mrn", "value": "7"}]
COHORT = [
    of("Patient", "p1", identifier=MRN),
    of("Patient", "p1b", identifier=MRN),
    of("Patient", "p1c", link=[{"type": "replaced-by", "other": {"reference": "Patient/p1"}}]),
    of("Patient", "p2", link=[{"type": "replaced-by", "other": {"reference": "Patient/p2new"}}]),
    of("Patient", "p2new"),
    of("Patient", "p3"),
    of("Patient", "other"),
    of("Condition", "c1", "p1", code=coded("M86.3")),
    of("Condition", "c2", "p2", code=coded("M86.3", "urn:local")),
    of("Condition", "c2b", "p2", code=coded("DM863+TUL2", "urn:oid:1.2.208.176.2.4")),
    of("Condition", "c3", "p3", code={"text": "suspected CRMO"}),
    of("Condition", "c4", "other", code=coded("J45")),
    *(of("Observation", f"o{n}", "p1", code=coded("1988-5"), category=CATEGORY) for n in range(7)),
    of("Observation", "ox", "other", code=coded("1988-5")),
    of("Observation", "o1b", "p1b", code=coded("1988-5"), category=CATEGORY),
    of("MedicationStatement", "s1", "p1", medicationReference={"reference": "Medication/m1"}),
    of("Medication", "m1", ingredient=[{"itemReference": {"reference": "Medication/m2"}}]),
    of("Medication", "m2"),
    of("AdverseEvent", "a1", "p3"),
]
KEPT = sorted(one["id"] for one in COHORT if one["id"] not in ("other", "c4", "ox"))


def pull_of(server: FakeServer) -> Pull:
    client = FhirClient(server.base, token="t", sleep=lambda _: None)
    try:
        return crawl(client, CRMO, TEXT)
    finally:
        client.close()


def ids(pull: Pull) -> list[str]:
    return sorted(record.id for record in pull.records)


def test_everything_of_the_candidates_comes() -> None:
    with FakeServer(COHORT, page_size=3) as server:
        pull = pull_of(server)
        assert ids(pull) == KEPT
        assert {record.base for record in pull.records} == {server.base}
        assert all("urn:mrn" not in request.path for request in server.requests)
    rows = {(row.patient, row.type): (row.state, row.count) for row in pull.ledger}
    assert rows["p1", "Medication"] == ("complete", 2)
    assert rows["p3", "AdverseEvent"] == ("complete", 1)
    assert rows["p3", "Observation"] == ("empty", 0)
    assert pull.server["fhirVersion"] == "4.0.1"
    assert pull.warnings == []
    assert all(search["matches"] == search["total"] for search in pull.searches)


@pytest.mark.parametrize("switch", ["totals", "modes", "self_links"])
def test_poor_servers_give_the_same(switch: str) -> None:
    with FakeServer(COHORT, page_size=3) as server:
        setattr(server, switch, False)
        pull = pull_of(server)
    assert ids(pull) == KEPT
    assert bool(pull.warnings) is (switch == "totals")


@pytest.mark.parametrize("parameter", ["code", "_id", "patient", "subject", "identifier", "link"])
@pytest.mark.parametrize("self_links", [True, False])
def test_an_ignored_filter_ends_the_run(parameter: str, self_links: bool) -> None:
    with FakeServer([*COHORT, of("AdverseEvent", "a2", "other")]) as server:
        server.ignored = {parameter}
        server.self_links = self_links
        with pytest.raises(IncompleteError, match="ignore"):
            pull_of(server)


def test_a_text_search_that_is_refused_is_a_warning() -> None:
    with FakeServer(COHORT) as server:
        server.text_search = False
        pull = pull_of(server)
    assert "c3" not in ids(pull)
    assert any("text" in warning for warning in pull.warnings)


def test_observations_by_category() -> None:
    with FakeServer(COHORT) as server:
        server.needs_category = True
        pull = pull_of(server)
    assert ids(pull) == KEPT
    assert any("category" in warning for warning in pull.warnings)


def test_types_that_the_server_does_not_have() -> None:
    with FakeServer(COHORT) as server:
        server.types = tuple(kind for kind in server.types if kind not in ("AdverseEvent", "Medication"))
        pull = pull_of(server)
    rows = {(row.patient, row.type): row for row in pull.ledger}
    assert rows["p1", "AdverseEvent"].state == "unsupported"
    assert any("no AdverseEvent" in warning for warning in pull.warnings)
    assert {"m1", "m2"} <= set(ids(pull))  # read one by one


@pytest.mark.parametrize("missing", ["p1", "p2new"])
def test_a_patient_that_is_not_given_ends_the_run(missing: str) -> None:
    with (
        FakeServer([one for one in COHORT if one["id"] != missing]) as server,
        pytest.raises(IncompleteError, match="are not given"),
    ):
        pull_of(server)


def test_a_medication_that_is_not_there_is_counted() -> None:
    with FakeServer([one for one in COHORT if one["id"] != "m2"]) as server:
        pull = pull_of(server)
    assert any("1 Medication" in warning for warning in pull.warnings)


def test_a_failed_search_ends_the_run() -> None:
    with FakeServer(COHORT) as server:
        server.faults.append(Fault("status", path="Procedure", status=404))
        with pytest.raises(IncompleteError, match="404"):
            pull_of(server)


def test_faults_that_pass_leave_no_trace() -> None:
    with FakeServer(COHORT, page_size=3) as server:
        clean = [record.text for record in pull_of(server).records]
        for path in ("metadata", "Condition", "_search", "Observation", "Medication?"):
            server.faults += [Fault(kind, path=path) for kind in ("reset", "cut", "gzip-cut", "status")]
        assert [record.text for record in pull_of(server).records] == clean
        assert all(fault.times == 0 for fault in server.faults)


def test_no_candidates() -> None:
    with FakeServer([of("Patient", "p"), of("Condition", "c", "p", code=coded("J45"))]) as server:
        pull = pull_of(server)
    assert (pull.records, pull.ledger) == ([], [])


def test_searches_stay_short_and_hold_every_code() -> None:
    searches = plan.plan_conditions(CRMO, 60)
    joined = ",".join(search.params[0][1] for search in searches).split(",")
    for system, code in plan.condition_tokens(CRMO):
        assert f"{plan.escaped(system)}|{code}" in joined
        assert code in joined
    capability = {"rest": [{"mode": "server", "resource": [{"type": "Observation"}, {"type": "AdverseEvent"}]}]}
    batches = plan.plan_patient("Observation", [f"{n:064d}" for n in range(45)], capability, 60)
    assert sorted(one for batch in batches for one in batch.patients) == [f"{n:064d}" for n in range(45)]
    assert all(len(batch.patients) <= plan.BATCH for batch in batches)
    assert plan.plan_patient("AdverseEvent", ["1"], capability)[0].params[0] == ("subject", "Patient/1")
    assert plan.plan_patient("Procedure", ["1"], capability) == []


def test_values_are_escaped() -> None:
    assert plan.escaped("a,b|c$d\\e") == "a\\,b\\|c\\$d\\\\e"


def test_the_parameter_the_server_declares() -> None:
    assert plan.patient_parameter("Observation", {"subject"}) == "subject"
    assert plan.patient_parameter("Observation", {"subject", "patient"}) == "patient"
    assert plan.patient_parameter("Observation", set()) == "patient"
    assert plan.patient_parameter("AdverseEvent", set()) == "subject"
