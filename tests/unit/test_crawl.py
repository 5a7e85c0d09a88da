"""Crawling a server: what it does wrong is noticed, what it gives is whole."""

from typing import Any

import pytest
from fake_server import SEARCH_PARAMETERS, FakeServer, Fault

from crmo_fhir.artifacts import Artifacts
from crmo_fhir.errors import IncompleteError
from crmo_fhir.fhir.client import WORKERS, FhirClient, Static
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


def pull_of(server: FakeServer, *, need_text: bool = False) -> Pull:
    """The pull; the first of its failures is raised, as landing would."""
    client = FhirClient(server.base, Static(token="t"), sleep=lambda _: None)
    try:
        pull = crawl(client, CRMO, TEXT, need_text=need_text)
    finally:
        client.close()
    for failure in pull.failures:
        if not str(failure).startswith(f"{client.host}: its CapabilityStatement lists no"):
            raise failure
    return pull


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
    assert pull.warnings == []  # a server without totals counts when it is asked to
    assert all(search["matches"] == search["total"] for search in pull.searches)


def test_without_any_count_the_links_alone_tell() -> None:
    with FakeServer(COHORT, page_size=3) as server:
        server.totals = server.counts = False
        pull = pull_of(server)
        # Each worker asks twice, for one answer may be a fault, and then no more.
        assert 2 <= len(server.paths("_summary")) <= 2 * WORKERS
    assert ids(pull) == KEPT
    assert any("without a total" in warning for warning in pull.warnings)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_COUNT", (("_count", "3"),))


@pytest.mark.parametrize("totals", [True, False])
def test_a_server_without_next_links_is_asked_for_larger_pages(totals: bool, small_pages: None) -> None:
    with FakeServer(COHORT) as server:
        server.next_links, server.totals = False, totals
        pull = pull_of(server)
    assert ids(pull) == KEPT
    assert any("_count=8" in search["query"] for search in pull.searches if search["type"] == "Observation")
    assert all(search["matches"] == search["total"] for search in pull.searches)


@pytest.mark.parametrize("totals", [True, False])
def test_a_server_with_small_pages_and_no_next_links_is_asked_for_fewer_patients(totals: bool) -> None:
    with FakeServer([one for one in COHORT if one["id"] not in ("o5", "o6")], page_size=5) as server:
        server.next_links, server.totals = False, totals
        pull = pull_of(server)
    assert ids(pull) == [one for one in KEPT if one not in ("o5", "o6")]


@pytest.mark.parametrize("counted", [True, False])
def test_what_no_page_can_hold_ends_the_run(counted: bool, small_pages: None) -> None:
    with FakeServer(COHORT, page_size=6) as server:
        server.next_links = False
        server.totals = server.counts = counted
        with pytest.raises(IncompleteError, match="counts 7 matches and sent 3" if counted else "full page"):
            pull_of(server)


def test_references_are_asked_for_with_their_type() -> None:
    with FakeServer(COHORT) as server:
        server.typed_only = True
        assert ids(pull_of(server)) == KEPT


@pytest.mark.parametrize("hidden", ["c1", "e1"])
def test_a_search_by_patient_that_leaves_out_what_is_known_ends_the_run(hidden: str) -> None:
    visit = of("Observation", "oe", "p1", code=coded("1988-5"), encounter={"reference": "Encounter/e1"})
    with FakeServer([*COHORT, visit, of("Encounter", "e1", "p1")]) as server:
        server.hidden = {hidden}
        with pytest.raises(IncompleteError, match="leaves out 1 records"):
            pull_of(server)


def test_what_is_somebody_elses_is_not_taken() -> None:
    visit = of("Observation", "oe", "p1", code=coded("1988-5"), encounter={"reference": "Encounter/e1"})
    with FakeServer([*COHORT, visit, of("Encounter", "e1", "other")]) as server:
        pull = pull_of(server)
    assert "e1" not in ids(pull)
    assert any("1 Encounter" in warning for warning in pull.warnings)


def test_a_server_that_lists_no_types_is_asked_for_all() -> None:
    with FakeServer(COHORT) as server:
        server.lists_types = False
        assert ids(pull_of(server)) == KEPT


@pytest.mark.parametrize("name", ["link", "identifier"])
def test_what_the_server_does_not_list_for_patients_is_a_warning(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(one for one in SEARCH_PARAMETERS["Patient"] if one != name)
    monkeypatch.setitem(SEARCH_PARAMETERS, "Patient", names)
    with FakeServer(COHORT) as server:
        assert any(f"no search Patient?{name}" in warning for warning in pull_of(server).warnings)


WORDED = [of("Condition", "c5", "p1", code={**coded("M86.3"), "text": "CRMO, active"})]


def test_a_text_search_taken_for_a_code_is_a_warning() -> None:
    with FakeServer([*COHORT, *WORDED]) as server:
        server.text_as_code = True
        pull = pull_of(server)
        assert "c3" not in ids(pull)
        assert any("leaves out 1 of 1 Conditions" in warning for warning in pull.warnings)
        with pytest.raises(IncompleteError, match="text-diagnosis"):
            pull_of(server, need_text=True)


def test_diagnoses_in_words_that_are_not_indexed_are_found_as_missing_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer([*COHORT, *WORDED]) as server:
        server.text_indexed = False
        assert ids(pull_of(server, need_text=True)) == sorted([*KEPT, "c5"])
        monkeypatch.setattr(plan, "LARGEST_PAGE", 0)
        pull = pull_of(server)
        assert "c3" not in ids(pull)
        assert any("1 Conditions without a code" in warning for warning in pull.warnings)


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
        with pytest.raises(IncompleteError, match="text-diagnosis"):
            pull_of(server, need_text=True)
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
    assert [str(failure).partition("lists ")[2].partition(",")[0] for failure in pull.failures] == ["no AdverseEvent"]
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
        for path in ("metadata", "Condition", "_search", "Observation", "Medication/_search"):
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


def test_a_search_is_divided_between_its_values() -> None:
    search = plan.Search(
        "Patient", (("identifier", "a\\,b|1,c|2,d\\\\|3"), ("_count", plan.PAGE)), patients=("x", "y", "z")
    )
    parts = plan.halves(search)
    assert [part.params for part in parts] == [
        (("identifier", "a\\,b|1"), ("_count", plan.PAGE)),
        (("identifier", "c|2,d\\\\|3"), ("_count", plan.PAGE)),
    ]
    assert [part.patients for part in parts] == [("x",), ("y", "z")]
    assert plan.halves(parts[0]) == []


def test_a_larger_page_is_asked_for_once_and_within_reason() -> None:
    search = plan.Search("Patient", (("_id", "a"), ("_count", plan.PAGE)))
    wider = plan.widened(search, 800)
    assert wider is not None
    assert wider.params == (("_id", "a"), ("_count", "800"))
    assert plan.widened(wider, 800) is None
    assert plan.widened(search, plan.LARGEST_PAGE + 1) is None
