"""Promises 30-39 (and 62, 63 where files are concerned): bulk exports, over real sockets. CLEAN or LOUD."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake.export import IG, Export, failing, in_progress
from fake_server import FakeServer, Fault, Request, Resource, outcome, seconds_between

from crmo_fhir.artifacts import Artifacts
from crmo_fhir.errors import CrmoFhirError, IncompleteError, NetworkError, SignInError, UsageError
from crmo_fhir.fhir.client import FhirClient, Static
from crmo_fhir.fhir.search import capabilities
from crmo_fhir.model.records import READ_TYPES
from crmo_fhir.source import bulk, files
from promises.records import COHORT, drug, figures, patient, raw
from promises.test_network import CHILDREN, Extraction, landed, serving

TOKEN = "canary-token"
CANARY = "PHI-CANARY"
SINCE = "2026-01-01T12:00:00Z"
MEDICATION = {"resourceType": "Medication", "id": "d1", "code": {"text": CANARY}}
RESOURCES = (*COHORT, MEDICATION)
WHOLE = {
    kind: sorted(json.dumps(one) for one in RESOURCES if one["resourceType"] == kind)
    for kind in ("Patient", "Condition", "MedicationStatement", "Observation", "Medication")
}


class KilledError(BaseException):
    """What ends a run as a kill does: nothing is cleaned up after it."""


class Exporting:
    """Exports into a folder; waits are taken down in `waits` and, unless `waiting`, not waited.

    `notes` and `told` are what a user hears, `progress` what the callback was given. With `kill_after` the run is killed
    after so many types have come.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ".export"
        self.waits: list[float] = []
        self.notes: list[str] = []
        self.told: list[str] = []
        self.progress: list[tuple[str, int, int | None]] = []
        self.waiting = False
        self.budget = 120.0
        self.workers = 4
        self.allow: tuple[str, ...] = ()
        self.kill_after = 0
        self.kill_waiting = False

    def _wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        if self.kill_waiting:
            raise KilledError
        if self.waiting:
            time.sleep(seconds)

    def _progress(self, kind: str, done: int, total: int | None) -> None:
        self.progress.append((kind, done, total))
        if self.kill_after and len(self.progress) >= self.kill_after:
            raise KilledError

    def client(self, server: FakeServer) -> FhirClient:
        return FhirClient(
            server.base,
            Static(token=TOKEN),
            retry_budget=self.budget,
            workers=self.workers,
            allow=self.allow,
            timeout=1.0,
            sleep=self._wait,
            tell=self.told.append,
        )

    def __call__(self, server: FakeServer, level: str = "system", **more: Any) -> bulk.Export:
        client = self.client(server)
        try:
            capability = capabilities(client)
            export = bulk.export(
                client, capability, self.folder, level, note=self.notes.append, progress=self._progress, **more
            )
        finally:
            client.close()
            assert CANARY not in "".join((*self.notes, *self.told))
        assert CANARY not in "".join((*export.problems, *export.warnings))
        return export

    def finish(self, server: FakeServer) -> None:
        client = self.client(server)
        bulk.finish(client, self.folder)
        client.close()

    def loud(self, server: FakeServer, kind: type[CrmoFhirError], *words: str, **more: Any) -> None:
        """An error of this kind in one line without anything secret; nothing is deleted on the server."""
        with pytest.raises(kind) as raised:
            self(server, **more)
        said = str(raised.value)
        assert "\n" not in said
        assert CANARY not in said
        assert TOKEN not in said
        for word in words:
            assert word.lower() in said.lower(), (word, said)
        assert [r for r in server.requests if r.method == "DELETE"] == []

    def held(self) -> dict[str, list[str]]:
        """The lines of the data that lie in the folder, by type."""
        found: dict[str, list[str]] = {}
        for path in sorted(self.folder.glob("[0-9]*.ndjson")):
            for line in path.read_text(encoding="utf-8").split("\n"):
                if line.strip("\ufeff\r "):
                    kind = json.loads(line.strip("\ufeff"))["resourceType"]
                    found.setdefault(kind, []).append(json.dumps(json.loads(line.strip("\ufeff"))))
        return {kind: sorted(lines) for kind, lines in found.items()}

    def clean(self, server: FakeServer, level: str = "system", **more: Any) -> bulk.Export:
        """An export without problems that brings everything."""
        export = self(server, level, **more)
        assert export.problems == []
        assert self.held() == WHOLE
        assert export.counts == {kind: len(lines) for kind, lines in sorted(WHOLE.items())}
        return export

    def candidates(self) -> set[tuple[str, str]]:
        """What is picked out of the folder for a study."""
        artifacts = Artifacts.load(None)
        pull = files.select_candidates(self.folder, artifacts.value_set("crmo"), artifacts.value_set("crmo-text"))
        assert pull.broken == []
        return {(record.type, record.id) for record in pull.records}


@pytest.fixture
def fetch(tmp_path) -> Exporting:
    return Exporting(tmp_path)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(RESOURCES) as fake:
        yield fake


@pytest.fixture
def exported(server) -> Export:
    export = Export(server)
    export.token = f"Bearer {TOKEN}"
    export.groups["g.1-A"] = {"p1", "p2"}
    return export


@pytest.fixture
def elsewhere() -> Iterator[FakeServer]:
    """Another origin."""
    with FakeServer(host="localhost") as fake:
        yield fake


def is_file(number: int) -> Callable[[Request], bool]:
    return lambda request: f"/bulk/file/0/{number}?" in request.path


def test_an_export_without_a_fault(fetch, server, exported):
    export = fetch.clean(server)
    assert fetch.waits == [1.0]
    assert export.warnings == []
    assert export.transaction_time == exported.jobs[0].time
    assert export.status_url == f"{server.origin}/bulk/status/0"
    assert [one["name"] for one in export.files] == [
        *("1.Patient.ndjson", "2.Condition.ndjson", "3.MedicationStatement.ndjson", "4.Medication.ndjson"),
        "5.Observation.ndjson",
    ]
    assert all(one["count"] == one["declared"] and one["framed"] for one in export.files)
    assert fetch.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in fetch.folder.iterdir()} == {0o600}
    assert TOKEN not in (fetch.folder / "job.json").read_text()
    assert ("Patient", 2, 2) in fetch.progress
    assert fetch.candidates() == {(one["resourceType"], one["id"]) for one in COHORT}


def test_what_is_picked_out_of_an_export_is_on_the_base_of_the_server(fetch, server, exported):
    absolute = drug("m3", "p1", subject={"reference": f"{server.base}/Patient/p1"})
    server.update(absolute)
    fetch(server)
    assert ("MedicationStatement", "m3") in fetch.candidates()


# ------------------------------------------------------------------------------------------------------ 30: the kick-off

PATHS = {"system": "/fhir/$export", "patient": "/fhir/Patient/$export", "group:g.1-A": "/fhir/Group/g.1-A/$export"}


@pytest.mark.parametrize("level", PATHS)
@pytest.mark.parametrize("version", ["3.0.0", "2.0.0", "1.0.1", ""])
def test_promise_30_begun_by_get(fetch, server, exported, level, version):
    exported.version = version
    filters = ("Condition?code=M86.3,M86.30", "Observation?category=laboratory")
    fetch.clean(server, level, type_filters=filters)
    (request,) = exported.kick_offs
    assert request.method == "GET"
    assert request.path.partition("?")[0] == PATHS[level]
    assert request.headers["accept"] == "application/fhir+json"
    assert request.headers["prefer"] == "respond-async"
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert "content-type" not in request.headers
    assert request.body == ""
    assert request.params == [
        ("_type", ",".join(READ_TYPES)),
        *(("_typeFilter", one) for one in filters),
        ("_outputFormat", "application/fhir+ndjson"),
    ]


@pytest.mark.parametrize("level", PATHS)
@pytest.mark.parametrize("version", ["4.0.0-ballot", "4.0.0"])
def test_promise_30_begun_by_post_where_stu4_is_declared(fetch, server, exported, level, version):
    exported.version, exported.methods = version, {"POST"}
    export = fetch(server, level, since="2025-01-01T00:00:00Z", type_filters=["Condition?code=M86.3"])
    assert export.problems == []
    (request,) = exported.kick_offs
    assert (request.method, request.path) == ("POST", PATHS[level])
    assert request.headers["accept"] == "application/fhir+json"
    assert request.headers["prefer"] == "respond-async"
    assert request.headers["content-type"] == "application/fhir+json"
    parameters = json.loads(request.body)
    assert parameters["resourceType"] == "Parameters"
    assert [p["valueString"] for p in parameters["parameter"] if p["name"] == "_type"] == list(READ_TYPES)
    assert {"name": "_since", "valueInstant": "2025-01-01T00:00:00Z"} in parameters["parameter"]
    assert {"name": "_typeFilter", "valueString": "Condition?code=M86.3"} in parameters["parameter"]
    assert fetch.held() == WHOLE


def test_promise_30_since_is_sent_and_only_changes_come(fetch, server, exported):
    server.update(patient("p1", birthDate="1996-01-02"))
    export = fetch(server, since=SINCE)
    assert exported.kick_offs[0].param("_since") == SINCE
    assert export.counts["Patient"] == 1


@pytest.mark.parametrize("status", [405, 501, 404, 400])
@pytest.mark.parametrize(("version", "right"), [("3.0.0", "POST"), ("4.0.0", "GET")])
def test_promise_30_what_refuses_one_method_is_asked_once_by_the_other(fetch, server, exported, status, version, right):
    exported.version, exported.methods, exported.other_method = version, {right}, status
    fetch.clean(server)
    assert [request.method for request in exported.kick_offs] == [{"POST": "GET", "GET": "POST"}[right], right]


def test_promise_30_a_server_that_refuses_both_is_loud(fetch, server, exported):
    exported.methods = set()
    fetch.loud(server, IncompleteError, "405", "$export")
    assert [request.method for request in exported.kick_offs] == ["GET", "POST"]
    assert not fetch.folder.exists()


@pytest.mark.parametrize("status", [400, 404, 422])
def test_promise_30_another_refusal_is_not_repeated(fetch, server, exported, status):
    server.faults.append(Fault("status", path="$export", status=status, body=outcome("not-found"), times=9))
    fetch.loud(server, IncompleteError, str(status), "$export")
    assert len(exported.kick_offs) == 1
    assert fetch.waits == []


def test_promise_30_a_server_that_does_not_know_the_format_is_asked_without_it(fetch, server, exported):
    exported.refused = {"_outputFormat": "invalid"}
    fetch.clean(server)
    assert [bool(request.param("_outputFormat")) for request in exported.kick_offs] == [True, False]


@pytest.mark.parametrize("level", ["patient", "group:g.1-A"])
def test_promise_30_a_type_that_is_no_patients_may_be_refused_below_the_system(fetch, server, exported, level):
    exported.refused = {"Medication": "processing"}
    export = fetch(server, level)
    assert [("Medication," in request.param("_type")) for request in exported.kick_offs] == [True, False]
    assert export.problems == []
    assert fetch.held() == WHOLE
    assert export.counts["Medication"] == 1
    assert [(one["name"], one["declared"]) for one in export.files][-1] == ("0.Medication.ndjson", 1)


def test_promise_30_a_type_that_can_neither_be_exported_nor_searched_makes_the_export_partial(fetch, server, exported):
    exported.refused = {"Medication": "processing"}
    server.faults.append(Fault("status", path="/fhir/Medication", status=400, times=9))
    export = fetch(server, "patient")
    assert export.problems == ["Medication: the server neither exports it at this level nor lets it be searched for"]


def test_promise_30_a_type_refused_for_the_whole_system_is_loud(fetch, server, exported):
    exported.refused = {"Medication": "processing"}
    fetch.loud(server, IncompleteError, "400")
    assert len(exported.kick_offs) == 1


@pytest.mark.parametrize("kind", ["reset", "drop", "cut", "stall-first"])
@pytest.mark.parametrize("version", ["3.0.0", "4.0.0"])
def test_promise_30_a_kick_off_whose_answer_is_lost_is_not_repeated(fetch, server, exported, kind, version):
    exported.version, exported.methods = version, {"GET", "POST"}
    exported.kick_off_headers = {"X-Long": "x" * 100}
    server.faults.append(Fault(kind, path="$export", body=b"x" * 100))
    if kind == "cut":
        exported.kick_off_polls = [(202, {"Content-Location": "/bulk/status/0"}, b"x" * 100)]
    fetch.loud(server, NetworkError, "not known", "$export")
    assert len(exported.kick_offs) == 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("version", ["3.0.0", "4.0.0"])
def test_promise_30_a_kick_off_that_a_busy_server_did_not_take_is_repeated_as_asked(
    fetch, server, exported, status, version
):
    exported.version, exported.methods = version, {"GET", "POST"}
    exported.kick_off_polls = [failing(status, "throttled", Retry_After="7"), failing(status, Retry_After="9")]
    fetch.clean(server)
    assert fetch.waits == [7.0, 9.0, 1.0]
    assert len(exported.kick_offs) == 3


def test_promise_30_a_busy_server_spends_the_retry_budget_and_no_more(fetch, server, exported):
    fetch.budget = 10
    exported.kick_off_polls = [failing(503) for _ in range(99)]
    fetch.loud(server, NetworkError, "503", "$export")
    assert sum(fetch.waits) <= 10.0001  # a sum of floats


@pytest.mark.parametrize("group", ["group:", "group:../1", "group:..", "group:a b", "Group/1", ""])
def test_promise_30_a_group_is_named_by_an_id(fetch, server, exported, group):
    with pytest.raises(UsageError):
        fetch(server, group)
    assert exported.kick_offs == []


def test_promise_30_an_unknown_group_is_loud(fetch, server, exported):
    fetch.loud(server, IncompleteError, "404", level="group:nobody")


@pytest.mark.parametrize("status", [401, 403])
def test_promise_30_a_refused_sign_in_is_loud(fetch, server, exported, status):
    server.faults.append(Fault("status", path="$export", status=status, times=9))
    fetch.loud(server, SignInError, str(status))
    assert len(exported.kick_offs) == 1


HAPI = {
    "instantiates": [f"{IG}/CapabilityStatement/bulk-data"],
    "rest": [
        {
            "operation": [
                {"name": "export-poll-status", "definition": "http://h/OperationDefinition/-s-export-poll-status"},
                {"name": "export", "definition": f"{IG}/OperationDefinition/export"},
            ],
            "resource": [
                {
                    "type": "Group",
                    "operation": [{"name": "export", "definition": f"{IG}/OperationDefinition/group-export"}],
                },
                {
                    "type": "Patient",
                    "operation": [
                        {"name": "export", "definition": "http://h/OperationDefinition/GroupPatient-its-export"}
                    ],
                },
            ],
        }
    ],
}


def operation(name: str, definition: str = "") -> Resource:
    return {"rest": [{"operation": [{"name": name, "definition": definition}]}]}


@pytest.mark.parametrize(
    ("statement", "levels"),
    [
        (HAPI, {"system", "patient", "group"}),
        ({**HAPI, "rest": []}, {"system", "patient", "group"}),
        ({"rest": [{"resource": [{"type": "Group", "operation": [{"name": "group-export"}]}]}]}, {"group"}),
        (operation("export", f"{IG}/OperationDefinition/patient-export|2.0.0"), {"patient"}),
        (operation("export", f"{IG}/OperationDefinition/group-export"), {"group"}),
        (operation("$export", "http://h/OperationDefinition/mine"), {"system"}),
        (operation("everything"), set()),
        ({"rest": [{"mode": "server"}]}, set()),
        ({"rest": [None, {"operation": None, "resource": [1, {"type": "Patient", "operation": ["export"]}]}]}, set()),
        ({"instantiates": "no list", "rest": {}}, set()),
        ({}, set()),
    ],
)
def test_promise_30_the_levels_are_those_the_server_declares(statement, levels):
    assert bulk.levels(statement) == levels


@pytest.mark.parametrize(
    ("canonicals", "method"),
    [
        ({"instantiates": [f"{IG}/CapabilityStatement/bulk-data|4.0.0-ballot"]}, "POST"),
        ({"implementationGuide": [f"{IG}/ImplementationGuide/hl7.fhir.uv.bulkdata|4.0.0"]}, "POST"),
        ({"instantiates": [f"{IG}/CapabilityStatement/bulk-data|2.0.0"]}, "GET"),
        ({"instantiates": [f"{IG}/CapabilityStatement/bulk-data"]}, "GET"),
    ],
)
def test_promise_30_the_version_may_stand_in_the_guides(fetch, server, exported, canonicals, method):
    exported.version, exported.methods = "", {"GET", "POST"}
    declare = server.declare
    server.declare = lambda statement: {**declare(statement), **canonicals}
    fetch.clean(server)
    assert [request.method for request in exported.kick_offs] == [method]


# ----------------------------------------------------------------------------------------------- 31: the answer to it


def test_promise_31_no_content_location_is_loud(fetch, server, exported):
    exported.location = lambda _: ""
    fetch.loud(server, IncompleteError, "Content-Location")
    assert exported.looks == []
    assert not fetch.folder.exists()


@pytest.mark.parametrize("status", [200, 201, 204])
def test_promise_31_another_status_than_202_is_loud(fetch, server, exported, status):
    exported.kick_off_status = status
    fetch.loud(server, IncompleteError, str(status), "202")
    assert exported.looks == []


@pytest.mark.parametrize(
    "write",
    [
        lambda server, other: f"{other.origin}/bulk/status/0",
        lambda server, other: f"//localhost:{other.port}/bulk/status/0",
        lambda server, other: server.origin.replace("127.0.0.1", "localhost") + "/bulk/status/0",
        lambda server, other: "file:///etc/passwd",
        lambda server, other: "ftp://127.0.0.1/x",
        lambda server, other: "http://[::1",
    ],
    ids=["another port", "without a scheme", "another name", "a file", "another scheme", "no URL"],
)
def test_promise_31_a_content_location_elsewhere_is_loud(fetch, server, exported, elsewhere, write):
    exported.location = lambda _: write(server, elsewhere)
    fetch.loud(server, IncompleteError, "another origin")
    assert elsewhere.requests == []
    assert exported.looks == []


@pytest.mark.parametrize(
    "location", ["/bulk/status/0", "../bulk/status/0", "/bulk/status/0?a=%2Cx"], ids=["host", "up", "query"]
)
def test_promise_31_a_relative_content_location_is_resolved(fetch, server, exported, location):
    exported.location = lambda _: location
    export = fetch.clean(server)
    assert export.status_url.startswith(f"{server.origin}/bulk/status/0")
    assert exported.looks[0].path == export.status_url.removeprefix(server.origin)


def test_promise_31_an_allowed_origin_may_hold_the_state(fetch, server, exported, elsewhere):
    elsewhere.parts.append(exported)
    exported.token = ""
    exported.location = lambda url: url.replace(server.origin, elsewhere.origin)
    fetch.allow = (elsewhere.origin,)
    fetch.clean(server)
    assert [r.path for r in elsewhere.requests] == ["/bulk/status/0"]
    assert "authorization" not in elsewhere.requests[0].headers


# ------------------------------------------------------------------------------------------------------- 32: polling


@pytest.mark.parametrize(
    ("asked", "waited"),
    [
        ("7", 7.0),
        ("120", 120.0),
        ("Thu, 01 Jan 2026 00:00:09 GMT", 9.0),
        ("0", 1.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 1.0),
        ("soon", 1.0),
        ("-5", 1.0),
        ("", 1.0),
    ],
)
def test_promise_32_the_next_look_comes_when_it_was_asked_for(fetch, server, exported, asked, waited):
    exported.polls = [in_progress("42%", asked, Date="Thu, 01 Jan 2026 00:00:00 GMT")]
    fetch.clean(server)
    assert fetch.waits == [1.0, waited]


def test_promise_32_no_look_comes_earlier_by_the_clock_of_the_server(fetch, server, exported):
    fetch.waiting = True
    exported.polls = [in_progress(retry_after="2"), in_progress(retry_after="1")]
    fetch.clean(server)
    first, second = seconds_between(exported.looks)
    assert 2.0 <= first < 4.0
    assert 1.0 <= second < 3.0


def test_promise_32_without_retry_after_the_waits_double_to_a_minute(fetch, server, exported):
    exported.polls = [in_progress(f"{n} of 9") for n in range(9)]
    fetch.clean(server)
    assert fetch.waits == [1, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_promise_32_the_kick_off_may_ask_to_wait_too(fetch, server, exported):
    exported.kick_off_headers = {"Retry-After": "30"}
    fetch.clean(server)
    assert fetch.waits == [30.0]


def test_promise_32_a_server_that_prepares_is_no_failing_one(fetch, server, exported):
    fetch.budget = 0
    exported.polls = [in_progress(retry_after="120") for _ in range(10)]
    fetch.clean(server)
    assert sum(fetch.waits) == 1201


def test_promise_32_an_absurd_wait_is_capped_and_that_is_said(fetch, server, exported):
    exported.polls = [in_progress(retry_after="1000000000")]
    fetch.clean(server)
    assert fetch.waits == [1.0, 300.0]
    assert "300 s" in fetch.told[0]


@pytest.mark.parametrize(
    ("said", "shown"),
    [("42%", "42%"), (f"{CANARY} 7.5 % of {CANARY}", "7.5 %"), (f"Build in progress {CANARY}", ""), ("\x1b[31m", "")],
)
def test_promise_32_of_the_progress_only_a_share_is_shown(fetch, server, exported, said, shown):
    exported.polls = [in_progress(said, "120")]
    fetch.clean(server)
    assert fetch.notes == [f"the server prepares the export{f' ({shown})' if shown else ''}; the next look is in 120 s"]


def test_promise_32_an_export_that_never_ends_is_given_up_after_a_day(fetch, server, exported):
    exported.polls = [in_progress(retry_after="300")] * 1000
    fetch.loud(server, NetworkError, "24 h", "run again")
    assert sum(fetch.waits) <= 24 * 3600 + 1
    exported.polls = []
    fetch.clean(server)
    assert len(exported.kick_offs) == 1


@pytest.mark.parametrize("code", ["transient", "timeout", "throttled"])
@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_promise_32_what_is_called_transient_is_waited_out(fetch, server, exported, code, status):
    exported.polls = [failing(status, code), in_progress(), failing(status, code)]
    fetch.clean(server)
    assert len(exported.looks) == 4


@pytest.mark.parametrize("status", [408, 502, 503, 504])
def test_promise_32_what_a_gateway_answers_is_waited_out(fetch, server, exported, status):
    exported.polls = [failing(status), failing(status)]
    fetch.clean(server)
    assert len(exported.looks) == 3


@pytest.mark.parametrize("status", [429, 503])
def test_promise_32_a_server_asked_too_soon_is_left_alone_as_long_as_it_says(fetch, server, exported, status):
    exported.polls = [failing(status, "exception", Retry_After="9")]
    fetch.clean(server)
    assert fetch.waits == [1.0, 9.0]


def test_promise_32_too_soon_again_and_again_is_loud(fetch, server, exported):
    exported.polls = [failing(429, "throttled", Retry_After="200")] * 99
    fetch.loud(server, NetworkError, "429")
    assert len(exported.looks) == 11


def test_promise_32_a_lasting_transient_error_spends_the_retry_budget_and_no_more(fetch, server, exported):
    fetch.budget = 20
    exported.polls = [failing(500, "transient")] * 99
    fetch.loud(server, NetworkError, "500", "--retry-budget")
    assert 10 <= sum(fetch.waits) < 21.01
    exported.polls = []
    fetch.clean(server)
    assert len(exported.kick_offs) == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "invalid"),
        (409, "conflict"),
        (410, "expired"),
        (422, ""),
        (500, "exception"),
        (500, ""),
        (503, "exception"),
    ],
)
def test_promise_32_another_failure_is_loud_at_once(fetch, server, exported, status, code):
    exported.polls = [failing(status, code)]
    fetch.loud(server, IncompleteError, str(status), code)
    assert len(exported.looks) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_promise_32_a_look_that_is_not_allowed_is_loud(fetch, server, exported, status):
    exported.polls = [failing(status, "forbidden")]
    fetch.loud(server, SignInError, str(status))


@pytest.mark.parametrize("kind", ["html", "outcome", "empty"])
def test_promise_32_a_look_that_brings_no_manifest_is_loud(fetch, server, exported, kind):
    server.faults.append(Fault(kind, path="/bulk/status/", times=9))
    fetch.loud(server, IncompleteError)
    assert len(exported.looks) == 1


@pytest.mark.parametrize("kind", ["reset", "drop", "cut", "gzip-cut", "stall"])
def test_promise_32_a_look_that_is_cut_is_repeated(fetch, server, exported, kind):
    server.faults.append(Fault(kind, path="/bulk/status/"))
    fetch.clean(server)
    assert len(exported.looks) == 2
    assert len(exported.kick_offs) == 1


def test_promise_32_a_separate_status_of_202_is_not_taken_for_the_end(fetch, server, exported):
    manifest = json.dumps({"transactionTime": "2026-01-01T00:00:00Z", "requiresAccessToken": False, "output": []})
    exported.polls = [
        (200, {"X-Export-Status": "202 Accepted", "Retry-After": "5", "X-Progress": "50%"}, b""),
        (200, {"X-Export-Status": "202"}, manifest.encode()),
        (200, {"X-Export-Status": "500", "Content-Type": "application/fhir+json"}, outcome("transient")),
    ]
    fetch.clean(server)
    assert fetch.waits[:3] == [1.0, 5.0, 2.0]
    assert "50%" in fetch.notes[0]
    assert len(exported.looks) == 4


@pytest.mark.parametrize("said", ["500", "500 Internal Server Error", "404", "soon"])
def test_promise_32_a_separate_status_of_failure_is_loud(fetch, server, exported, said):
    exported.polls = [(200, {"X-Export-Status": said, "Content-Type": "application/fhir+json"}, outcome("exception"))]
    fetch.loud(server, IncompleteError)
    assert len(exported.looks) == 1


def test_promise_32_a_separate_status_of_200_is_the_end(fetch, server, exported):
    server.faults.append(
        Fault("change", path="/bulk/status/", change=lambda m: m, headers={"X-Export-Status": "200 OK"})
    )
    fetch.clean(server)


# ------------------------------------------------------------------------------------------------ 33: whose credentials


@pytest.mark.parametrize("needed", [True, False])
def test_promise_33_the_manifest_decides_over_the_header(fetch, server, exported, needed):
    exported.requires_token = needed
    fetch.clean(server)
    assert len(exported.files) == 5
    for request in exported.files:
        assert request.headers.get("authorization") == (f"Bearer {TOKEN}" if needed else None)
        assert request.headers["accept"] == "application/fhir+ndjson"
    assert {r.headers["authorization"] for r in [*exported.kick_offs, *exported.looks]} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("needed", [True, False])
def test_promise_33_files_on_another_origin_are_not_fetched(fetch, server, exported, elsewhere, needed):
    exported.files_on(elsewhere)
    exported.requires_token = needed
    fetch.loud(server, IncompleteError, "another origin", "--allow-origin")
    assert elsewhere.requests == []
    assert exported.files == []


@pytest.mark.parametrize("needed", [True, False])
def test_promise_33_on_an_allowed_origin_the_manifest_decides_too(fetch, server, exported, elsewhere, needed):
    exported.files_on(elsewhere)
    exported.requires_token = needed
    fetch.allow = (elsewhere.origin,)
    fetch.clean(server)
    assert len(elsewhere.requests) == 5
    assert {r.headers.get("authorization") for r in elsewhere.requests} == {f"Bearer {TOKEN}" if needed else None}


@pytest.mark.parametrize("needed", [True, False])
def test_promise_33_a_redirect_to_another_origin_is_not_followed(fetch, server, exported, elsewhere, needed):
    exported.requires_token = needed
    server.faults.append(
        Fault("status", where=is_file(2), status=302, headers={"Location": f"{elsewhere.origin}/bulk/file/0/2?round=0"})
    )
    fetch.loud(server, IncompleteError, "another origin")
    assert elsewhere.requests == []


@pytest.mark.parametrize("said", [None, "false", 0, 1, []])
def test_promise_33_a_manifest_that_does_not_say_is_loud(fetch, server, exported, said):
    exported.requires_token = said
    fetch.loud(server, IncompleteError, "requiresAccessToken")
    assert exported.files == []


# ------------------------------------------------------------------------------------------------- 34: faulty files


def line(resource: Resource) -> bytes:
    return json.dumps(resource).encode() + b"\n"


FILE_FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "fewer": lambda body: body[: body[:-1].rfind(b"\n") + 1],
    "more": lambda body: body + line(patient("p9")),
    "none": lambda body: b"",
    "other type": lambda body: body + line(MEDICATION),
    "first of another type": lambda body: line(drug("x", "p1")) + body[body.find(b"\n") + 1 :],
    "cut": lambda body: body[:-30],
    "cut, with a line feed": lambda body: body[:-30] + b"\n",
    "cut before the last bracket": lambda body: body[:-2],
    "cut in a number": lambda body: body[:-2] + b', "x": 1e',
    "half": lambda body: body[: len(body) // 2 - 9],
    "html": lambda body: b"\n<!DOCTYPE html><html><body>PHI-CANARY</body></html>\n",
    "words": lambda body: b"PHI-CANARY is not here",
    "array": lambda body: b"[" + body.rstrip().replace(b"\n", b",") + b"]\n",
    "pretty": lambda body: json.dumps([json.loads(one) for one in body.split(b"\n") if one], indent=1).encode(),
    "outcome": lambda body: outcome("timeout"),
    "nulls": lambda body: b"null\n" * 2,
    "no type": lambda body: body + b'{"id": "p9"}\n',
    "ill type": lambda body: body + b'{"resourceType": 5}\n',
}


@pytest.mark.parametrize(
    ("fault", "counted"),
    [
        pytest.param(fault, counted, id=f"{fault}, {'counts' if counted else 'no counts'}")
        for fault in FILE_FAULTS
        for counted in (True, False)
        if counted or fault not in ("fewer", "more")  # of which only a count tells
    ],
)
def test_promise_34_a_faulty_file_is_loud_and_nothing_is_deleted(fetch, server, exported, fault, counted):
    exported.counts = counted
    exported.spoil = lambda kind, body: FILE_FAULTS[fault](body) if kind == "Patient" else body
    if fault == "none" and not counted:
        export = fetch(server)
        assert "empty" in export.problems[0]
        return
    fetch.loud(server, IncompleteError, "file 1 (Patient)", "run again")
    # The job and the good files stay, and when the server mends the file all is well.
    exported.spoil = lambda _, body: body
    fetch.clean(server)
    assert len(exported.kick_offs) == 1
    assert sum(map(is_file(1), exported.files)) == 2


@pytest.mark.parametrize("error", [-1, 1, 100])
def test_promise_34_a_count_that_does_not_agree_is_loud(fetch, server, exported, error):
    exported.count_error = error
    fetch.loud(server, IncompleteError, "the manifest says")


@pytest.mark.parametrize("kind", ["cut", "chunked-cut", "gzip-cut", "reset", "drop", "stall"])
def test_promise_34_a_file_cut_on_the_way_is_fetched_again(fetch, server, exported, kind):
    server.faults.append(Fault(kind, where=is_file(3)))
    fetch.clean(server)
    assert sum(map(is_file(3), exported.files)) == 2


@pytest.mark.parametrize("kind", ["cut", "chunked-cut", "gzip-cut"])
def test_promise_34_a_file_that_stays_cut_is_loud(fetch, server, exported, kind):
    fetch.budget = 5
    server.faults.append(Fault(kind, where=is_file(3), times=999))
    fetch.loud(server, NetworkError, "file of the export")


@pytest.mark.parametrize("counted", [True, False])
def test_promise_34_gzip_without_its_second_member_is_loud(fetch, server, exported, counted):
    exported.counts = counted
    server.faults.append(Fault("gzip-half", where=is_file(5), times=9))
    fetch.loud(server, IncompleteError, "file 5 (Observation)", "cut off")


def test_promise_34_an_html_page_is_loud(fetch, server, exported):
    server.faults.append(Fault("html", where=is_file(3), times=9))
    fetch.loud(server, IncompleteError, "HTML")
    assert sum(map(is_file(3), exported.files)) == 1


@pytest.mark.parametrize("status", [500, 503])
def test_promise_34_a_passing_status_is_waited_out(fetch, server, exported, status):
    server.faults.append(Fault("status", where=is_file(3), status=status, times=3))
    fetch.clean(server)


def test_promise_34_an_unframed_file_cut_at_a_line_end_is_told_by_its_count(fetch, server, exported):
    server.faults.append(Fault("unframed-cut", where=is_file(2)))
    fetch.loud(server, IncompleteError, "file 2 (Condition)", "the manifest says 2 resources and 1 came")


def test_promise_05_a_file_with_neither_length_nor_count_is_said_to_be_unverified(fetch, server, exported):
    exported.counts = False
    server.faults.append(Fault("unframed", where=is_file(2)))
    export = fetch.clean(server)
    assert [one["framed"] for one in export.files] == [True, False, True, True, True]
    assert [one["declared"] for one in export.files] == [None] * 5
    assert any("length unverified: 1 files" in warning for warning in export.warnings)


def test_promise_34_a_manifest_without_counts_is_said_to_be_unverified(fetch, server, exported):
    exported.counts = False
    export = fetch.clean(server)
    assert export.warnings == ["the export's manifest has no counts: that all resources came cannot be told from it"]
    assert ("Patient", 2, None) in fetch.progress


def test_promise_04_gzip_of_two_members_is_read_to_its_end(fetch, server, exported):
    server.zipped = True
    fetch.clean(server)


@pytest.mark.parametrize(
    "write",
    [
        lambda body: b"\xef\xbb\xbf" + body,
        lambda body: body.replace(b"\n", b"\r\n"),
        lambda body: b"\n\r\n" + body.replace(b"\n", b"\n\n  \n"),
        lambda body: body.rstrip(b"\n"),
        lambda body: body.replace(b"}\n{", b"}\r\n\xef\xbb\xbf{"),
    ],
    ids=["BOM", "CRLF", "blank lines", "no last line feed", "BOM within"],
)
def test_promise_41_lines_may_be_written_in_many_ways(fetch, server, exported, write):
    exported.spoil = lambda _, body: write(body)
    fetch.clean(server)


def test_promise_40_lines_are_divided_at_line_feeds_only(fetch, server, exported):
    server.update(patient("p3", name=[{"text": "a\u2028b\u2029c\u0085d"}]))
    assert fetch(server).counts["Patient"] == 3


@pytest.mark.parametrize(
    "bad", [b'{"resourceType":"Patient","x":NaN}', b"{", b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"]
)
def test_promise_45_a_line_that_is_no_json_is_left_to_who_reads_the_data(fetch, server, exported, bad):
    exported.spoil = lambda kind, body: body.replace(b"\n", b"\n" + bad + b"\n", 1) if kind == "Patient" else body
    exported.count_error = 0
    exported.change = lambda m: {
        **m,
        "output": [{**o, "count": o["count"] + (o["type"] == "Patient")} for o in m["output"]],
    }
    export = fetch(server)
    assert export.files[0]["count"] == 3
    assert export.counts["Patient"] == 2
    artifacts = Artifacts.load(None)
    pull = files.select_candidates(fetch.folder, artifacts.value_set("crmo"), artifacts.value_set("crmo-text"))
    assert [(one.file, one.place) for one in pull.broken] == [("1.Patient.ndjson", "line 2")]


ILL: dict[str, Callable[[dict[str, Any]], Any]] = {
    "transactionTime absent": lambda m: {k: v for k, v in m.items() if k != "transactionTime"},
    "transactionTime a day": lambda m: {**m, "transactionTime": "2026-01-01"},
    "transactionTime without offset": lambda m: {**m, "transactionTime": "2026-01-01T00:00:00"},
    "transactionTime a number": lambda m: {**m, "transactionTime": 5},
    "output absent": lambda m: {k: v for k, v in m.items() if k != "output"},
    "output an object": lambda m: {**m, "output": {}},
    "output of text": lambda m: {**m, "output": ["x"]},
    "url absent": lambda m: {**m, "output": [{"type": "Patient"}]},
    "url empty": lambda m: {**m, "output": [{"type": "Patient", "url": " "}]},
    "type absent": lambda m: {**m, "output": [{k: v for k, v in o.items() if k != "type"} for o in m["output"]]},
    "type a number": lambda m: {**m, "output": [{**o, "type": 5} for o in m["output"]]},
    "count negative": lambda m: {**m, "output": [{**o, "count": -1} for o in m["output"]]},
    "count text": lambda m: {**m, "output": [{**o, "count": "2"} for o in m["output"]]},
    "count true": lambda m: {**m, "output": [{**o, "count": True} for o in m["output"]]},
    "error an object": lambda m: {**m, "error": {}},
    "deleted of text": lambda m: {**m, "deleted": ["x"]},
    "outputOrganizedBy a number": lambda m: {**m, "outputOrganizedBy": 1},
    "link without url": lambda m: {**m, "link": [{"relation": "next"}]},
    "empty": lambda m: {},
}


@pytest.mark.parametrize("fault", ILL)
def test_promise_34_a_manifest_that_is_none_is_loud(fetch, server, exported, fault):
    exported.change = ILL[fault]
    fetch.loud(server, IncompleteError, fault.split(" ")[0].replace("empty", "transactionTime"))
    assert exported.files == []


# ------------------------------------------------------------------------------------ 62, 63: names and sizes of files


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "name", ["../../evil", "/tmp/evil", "..", "CON.txt", "Patient/x", "P" * 4000, "patient", "", "Patient\n"]
)
def test_promise_62_a_type_that_is_none_is_loud_and_touches_no_path(fetch, server, exported, tmp_path, name):
    before = tree(tmp_path)
    exported.extra = [{"type": name, "url": f"{server.origin}/bulk/file/0/1?round=0"}]
    fetch.loud(server, IncompleteError, "output.type")
    assert tree(tmp_path) - before == {".export", ".export/job.json"}
    assert exported.files == []


def test_promise_62_a_type_that_was_not_asked_for_is_not_fetched(fetch, server, exported):
    exported.extra = [{"type": kind, "url": f"{server.origin}/bulk/file/0/1?round=0"} for kind in ("Binary", "CON")]
    export = fetch.clean(server)
    assert export.warnings == ["2 files of the export are of types not asked for; they were not fetched"]
    assert len(exported.files) == 5


def test_promise_63_a_line_of_more_than_the_limit_is_loud(fetch, server, exported, monkeypatch):
    monkeypatch.setattr(bulk, "MAX_LINE", 2 * 2**20)
    server.update(patient("p3", text={"div": "x" * (3 * 2**20)}))
    fetch.loud(server, IncompleteError, "file 1 (Patient)", "a line of more than 2 MiB")


def test_promise_63_a_long_line_below_the_limit_is_read(fetch, server, exported):
    server.update(patient("p3", text={"div": "x" * (3 * 2**20)}))
    server.update(patient("p4", text={"div": "x" * (2**20 - 87)}))
    assert fetch(server).counts["Patient"] == 4


@pytest.mark.parametrize("length", [2**20 - 1, 2**20, 2**20 + 1, 2 * 2**20])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_promise_63_lines_are_found_wherever_they_end(tmp_path, length, end):
    path = tmp_path / "x"
    path.write_bytes(b"a" * (length - 1) + b"\n" + b"b" * (length - len(end)) + end)
    found = [(len(line), is_ended) for line, is_ended in bulk._lines(path, "", bulk.MAX_LINE)]
    assert found == [(length, True), (length, bool(end))]


def test_promise_63_an_endless_line_is_given_up_in_bounded_memory(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(2**30)
    tracemalloc.start()
    try:
        with pytest.raises(IncompleteError, match="128 MiB"):
            list(bulk._lines(path, "x", bulk.MAX_LINE))
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally:
        tracemalloc.stop()


def test_promise_63_a_bomb_is_loud(fetch, server, exported):
    server.faults.append(Fault("bomb", where=is_file(1), times=9, size=200 * 2**20))
    fetch.loud(server, IncompleteError, "larger than")


# ------------------------------------------------------------------------------------------ 35: errors of the export


def issue(severity: str, code: str = "processing", text: str = "") -> Resource:
    said = {"diagnostics": text} if text else {}
    return {"resourceType": "OperationOutcome", "issue": [{"severity": severity, "code": code, **said}]}


@pytest.mark.parametrize("version", ["2.0.0", "3.0.0", "4.0.0"])
@pytest.mark.parametrize("severity", ["error", "fatal"])
def test_promise_35_an_error_makes_the_export_partial_and_its_data_are_kept(fetch, server, exported, version, severity):
    exported.version, exported.methods = version, {"GET", "POST"}
    text = f"Observation resource {CANARY} could not be generated"
    exported.outcomes = [issue(severity, "processing", text), issue("warning", "not-supported", CANARY)]
    export = fetch(server)
    (problem,) = export.problems
    assert "processing" in problem
    assert "Observation resource … could not be generated" in problem
    assert export.warnings == ["the server says of its export: not-supported"]
    assert fetch.held() == WHOLE
    assert fetch.candidates() == {(one["resourceType"], one["id"]) for one in COHORT}


@pytest.mark.parametrize("severity", ["warning", "information"])
def test_promise_35_a_warning_does_not(fetch, server, exported, severity):
    exported.outcomes = [issue(severity, "informational", CANARY)] * 3
    export = fetch.clean(server)
    assert export.warnings == ["the server says of its export: informational"]


def test_promise_35_success_says_nothing(fetch, server, exported):
    exported.outcomes = [issue("success", "success")]
    assert fetch.clean(server).warnings == []


@pytest.mark.parametrize(
    "said", ['{"resourceType":"OperationOutcome"}', '{"resourceType":"OperationOutcome","issue":[{"severity":"bad"}]}']
)
def test_promise_35_an_outcome_that_cannot_be_read_counts_as_an_error(fetch, server, exported, said):
    exported.outcomes = [said]
    assert fetch(server).problems == ["the server could not export everything: an outcome that cannot be read"]


def test_promise_35_a_file_of_errors_that_is_none_is_loud(fetch, server, exported):
    exported.outcomes = [MEDICATION]
    fetch.loud(server, IncompleteError, "file 6 (OperationOutcome)")


def test_promise_35_many_errors_are_few_lines(fetch, server, exported):
    exported.outcomes = [issue("error", "processing", CANARY)] * 500
    assert (
        fetch(server).problems == ["the server could not export everything: processing: … (500 times)"]
        or len(fetch(server).problems) == 1
    )
    exported.outcomes = [issue("error", f"code-{'abcdefghijklmnopqrstuvwxyz'[n]}") for n in range(26)]
    fetch.folder = fetch.folder.with_name("other")
    export = fetch(server)
    assert len(export.problems) == bulk.MAX_PROBLEMS + 1
    assert "6 more" in export.problems[-1]


def test_promise_35_files_of_errors_need_the_token_as_the_others_do(fetch, server, exported):
    exported.outcomes = [issue("error")]
    exported.requires_token = False
    fetch(server)
    assert {r.headers.get("authorization") for r in exported.files} == {None}
    assert len(exported.files) == 6


# ---------------------------------------------------------------------------------------------- 36: parts and blocks


@pytest.mark.parametrize("size", [1, 2, 3])
def test_promise_36_all_manifests_are_followed(fetch, server, exported, size):
    exported.per_manifest = size
    exported.per_file = 1
    export = fetch.clean(server)
    assert len(export.files) == 8
    assert len(exported.looks) == -(-8 // size)
    assert {r.headers["accept"] for r in exported.looks} == {"application/json"}


def test_promise_36_a_next_manifest_may_have_to_be_waited_for(fetch, server, exported):
    exported.per_manifest = 2
    server.faults.append(Fault("status", path="part=1", status=202, headers={"Retry-After": "9"}, body=b" "))
    server.faults.append(Fault("status", path="part=2", status=500, body=outcome("transient")))
    fetch.clean(server)
    assert fetch.waits[1] == 9.0


@pytest.mark.parametrize("status", [404, 500])
def test_promise_36_a_next_manifest_that_fails_is_loud(fetch, server, exported, status):
    exported.per_manifest = 2
    server.faults.append(Fault("status", path="part=1", status=status, body=outcome("exception"), times=9))
    fetch.loud(server, IncompleteError, str(status))
    assert exported.files == []


def test_promise_36_a_next_manifest_on_another_origin_is_not_fetched(fetch, server, exported, elsewhere):
    exported.change = lambda m: {**m, "link": [{"relation": "next", "url": f"{elsewhere.origin}/bulk/status/0?part=1"}]}
    fetch.loud(server, IncompleteError, "next manifest", "another origin")
    assert elsewhere.requests == []


@pytest.mark.parametrize("endless", ["circle", "unique"])
def test_promise_36_manifests_in_circles_are_loud(fetch, server, exported, endless):
    exported.endless, exported.per_manifest = endless, 3
    fetch.loud(server, IncompleteError, "circles")
    assert len(exported.looks) < 8


def test_promise_36_a_file_listed_again_is_fetched_once(fetch, server, exported):
    exported.change = lambda m: {**m, "output": m["output"] * 2}
    fetch.clean(server)
    assert len(exported.files) == 5


def test_promise_36_of_several_snapshots_the_earliest_counts(fetch, server, exported):
    exported.per_manifest = 2
    times = iter(["2026-01-01T00:00:00.5Z", "2026-01-01T01:00:00+02:00", "2026-01-01T00:00:01Z"])
    exported.change = lambda m: {**m, "transactionTime": next(times)}
    assert fetch.clean(server).transaction_time == "2026-01-01T01:00:00+02:00"


@pytest.mark.parametrize("counted", [True, False])
def test_promise_36_the_heads_of_organised_files_are_no_data(fetch, server, exported, counted):
    exported.organised, exported.counts = True, counted
    export = fetch(server)
    assert export.problems == []
    assert {kind: lines for kind, lines in fetch.held().items() if kind != "Parameters"} == WHOLE
    assert export.counts == {kind: len(lines) for kind, lines in sorted(WHOLE.items())}
    assert [one["name"] for one in export.files] == ["1.mixed.ndjson", "2.mixed.ndjson"]
    assert [one["count"] for one in export.files] == [5, 3]
    assert fetch.candidates() == {(one["resourceType"], one["id"]) for one in COHORT}


def test_promise_36_a_count_of_organised_files_that_does_not_agree_is_loud(fetch, server, exported):
    fetch.workers = 1
    exported.organised = exported.heads_counted = True
    fetch.loud(server, IncompleteError, "the manifest says 6 resources and 5 came")


def test_promise_36_heads_in_files_of_one_type_are_loud(fetch, server, exported):
    exported.spoil = lambda kind, body: line({"resourceType": "Parameters"}) + body if kind == "Patient" else body
    fetch.loud(server, IncompleteError, "another type")


# -------------------------------------------------------------------------------------------------------- 37: deletions


def test_promise_37_what_was_deleted_leaves_the_set(fetch, server, exported):
    exported.deletions = True
    gone = {"resourceType": "Bundle", "type": "transaction"}
    gone["entry"] = [{"request": {"method": "DELETE", "url": url}} for url in ("Observation/o1", "Patient/p2")]
    with FakeServer() as other:
        exported.change = lambda m: {**m, "deleted": [{"url": f"{server.origin}/gone", "count": 1}]}
        server.parts.append(Gone(line(gone)))
        export = fetch(server)
        assert other.requests == []
    assert export.deletions is True
    assert sorted(path.name for path in fetch.folder.glob("deleted*")) == ["deleted.6.ndjson"]
    assert [one["name"] for one in export.files][-1] == "5.Observation.ndjson"
    kept = fetch.candidates()
    assert ("Observation", "o1") not in kept
    assert ("Patient", "p2") not in kept
    assert ("Patient", "p1") in kept


class Gone:
    """A part that serves one file of deletions."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def handle(self, method: str, path: str, headers: Any, body: str) -> Any:
        return (200, {"Content-Type": "application/fhir+ndjson"}, self.body) if path == "/gone" else None


@pytest.mark.parametrize("absolute", [False, True])
def test_promise_37_deletions_may_be_absolute(fetch, server, exported, absolute):
    url = f"{server.base}/Observation/o1" if absolute else "Observation/o1"
    gone = {"resourceType": "Bundle", "type": "transaction", "entry": [{"request": {"method": "DELETE", "url": url}}]}
    exported.change = lambda m: {**m, "deleted": [{"url": f"{server.origin}/gone"}]}
    server.parts.append(Gone(line(gone)))
    fetch(server)
    assert ("Observation", "o1") not in fetch.candidates()


def test_promise_37_an_increment_names_what_was_deleted_since(fetch, server, exported):
    exported.deletions = True
    server.update(patient("p1"))
    server.delete("Observation", "o1")
    export = fetch(server, since=SINCE)
    assert export.counts == {"Patient": 1}
    assert export.deletions is True
    assert export.warnings == []
    (path,) = fetch.folder.glob("deleted*")
    assert json.loads(path.read_text())["entry"] == [{"request": {"method": "DELETE", "url": "Observation/o1"}}]


@pytest.mark.parametrize("said", [True, False])
def test_promise_37_an_increment_that_does_not_say_what_was_deleted_is_told_of(fetch, server, exported, said):
    exported.deletions = said
    export = fetch(server, since="2025-01-01T00:00:00Z")
    assert export.deletions is said
    assert any("deleted" in warning for warning in export.warnings) is not said


@pytest.mark.parametrize("count", [1, 2, None])
def test_promise_37_the_count_of_deletions_is_of_bundles_or_of_entries(fetch, server, exported, count):
    entries = [{"request": {"method": "DELETE", "url": f"Observation/{n}"}} for n in range(2)]
    exported.change = lambda m: {**m, "deleted": [{"url": f"{server.origin}/gone", "count": count}]}
    server.parts.append(Gone(line({"resourceType": "Bundle", "entry": entries})))
    fetch.clean(server)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (line({"resourceType": "Bundle", "entry": []}), 3),
        (line(patient("p1")), 1),
        (line({"resourceType": "Bundle", "entry": {}}), 1),
        (line({"resourceType": "Bundle"})[:-5], None),
    ],
    ids=["count", "another type", "no list", "cut"],
)
def test_promise_37_a_faulty_file_of_deletions_is_loud(fetch, server, exported, body, count):
    exported.change = lambda m: {**m, "deleted": [{"url": f"{server.origin}/gone", "count": count}]}
    server.parts.append(Gone(body))
    fetch.loud(server, IncompleteError, "file 6 (Bundle)")


# --------------------------------------------------------------------------------------------------- 38: expired links


@pytest.mark.parametrize("status", [403, 404, 410])
@pytest.mark.parametrize("workers", [1, 4])
def test_promise_38_links_that_expire_are_asked_for_again_once(fetch, server, exported, status, workers):
    fetch.workers = workers
    exported.expired_status, exported.expire_after = status, 2
    fetch.clean(server)
    assert len(exported.looks) == 2
    assert len(exported.kick_offs) == 1
    assert sum("round=1" in request.path for request in exported.files) == 3


@pytest.mark.parametrize(("status", "kind"), [(403, SignInError), (404, IncompleteError), (410, IncompleteError)])
def test_promise_38_a_link_that_stays_expired_is_loud_and_the_job_is_kept(fetch, server, exported, status, kind):
    exported.expired_status, exported.expired = status, {4}
    fetch.loud(server, kind, str(status))
    assert len(exported.looks) == 2
    assert sum(map(is_file(4), exported.files)) == 2
    exported.expired = set()
    fetch.clean(server)
    assert len(exported.kick_offs) == 1
    assert [sum(map(is_file(n), exported.files)) for n in range(1, 6)] == [1, 1, 1, 3, 1]


@pytest.mark.parametrize("status", [400, 401, 422])
def test_promise_38_another_refusal_of_a_file_is_loud_at_once(fetch, server, exported, status):
    exported.expired_status, exported.expired = status, {4}
    fetch.loud(server, (IncompleteError, SignInError), str(status))
    assert len(exported.looks) == 1
    assert sum(map(is_file(4), exported.files)) == 1


def test_promise_38_a_manifest_that_lists_other_files_now_is_loud(fetch, server, exported):
    exported.expire_after = 2
    looks: list[int] = []
    exported.change = lambda m: (
        {**m, "output": m["output"][len(looks) :]} if not looks.append(1) and len(looks) > 1 else m
    )
    fetch.loud(server, IncompleteError, "other files")


def test_promise_38_a_job_that_goes_while_its_files_are_fetched_is_loud_and_a_new_one_is_begun_by_the_next_run(
    fetch, server, exported
):
    def forget(request: Request) -> None:
        exported.jobs[0].deleted = exported.jobs[0].deleted or is_file(4)(request)

    exported.expired = {4}
    server.on_request = lambda request: forget(request) if exported.jobs else None
    fetch.loud(server, IncompleteError, "no longer holds", "404")
    assert len(exported.kick_offs) == 1
    exported.expired = set()
    exported.jobs[0].files[3] = ("output", "Medication", [], 1)
    fetch.clean(server)
    assert len(exported.kick_offs) == 2
    assert any("a new one is begun" in told for told in fetch.told)


@pytest.mark.parametrize("fault", ["other type", "cut", "fewer"])
def test_promise_39_a_fault_that_stays_in_an_export_is_left_behind_with_it(fetch, server, exported, fault):
    exported.spoil = lambda kind, body: (
        FILE_FAULTS[fault](body) if kind == "Patient" and len(exported.jobs) == 1 else body
    )
    fetch.loud(server, IncompleteError, "file 1 (Patient)")
    fetch.clean(server)
    assert len(exported.kick_offs) == 2
    assert any("a new one is begun" in told for told in fetch.told)
    assert exported.deletes == []


# --------------------------------------------------------------------------------------------------- 39: end and resume


def test_promise_39_one_delete_with_the_token_after_all(fetch, server, exported):
    fetch.clean(server)
    assert exported.deletes == []
    fetch.finish(server)
    (request,) = exported.deletes
    assert request.path == "/bulk/status/0"
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert not fetch.folder.exists()
    assert fetch.told == []


@pytest.mark.parametrize("status", [200, 202, 204, 404, 405, 410, 501])
def test_promise_39_a_server_that_has_no_such_job_is_fine(fetch, server, exported, status):
    exported.delete_status = status
    fetch(server)
    fetch.finish(server)
    assert len(exported.deletes) == 1
    assert fetch.told == []
    assert not fetch.folder.exists()


@pytest.mark.parametrize("kind", ["reset", "drop", "stall-first", "500", "403", "401", "409"])
def test_promise_39_a_delete_that_fails_is_told_and_not_repeated(fetch, server, exported, kind):
    fetch(server)
    fault = Fault("status", status=int(kind)) if kind.isdecimal() else Fault(kind)
    fault.times, fault.where = 9, lambda request: request.method == "DELETE"
    server.faults.append(fault)
    fetch.finish(server)
    assert len(exported.deletes) == 1
    assert len(fetch.told) == 1
    assert "could not be deleted" in fetch.told[0]
    assert not fetch.folder.exists()


def test_promise_39_a_run_that_died_before_the_delete_is_finished_later(fetch, server, exported):
    fetch(server)
    fetch.finish(server)
    fetch.finish(server)
    assert len(exported.deletes) == 1


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_promise_39_a_run_killed_while_it_fetches_goes_on_without_a_second_kick_off(fetch, server, exported, after):
    fetch.workers = 1
    fetch.kill_after = after
    with pytest.raises(KilledError):
        fetch(server)
    whole = set(json.loads((fetch.folder / "job.json").read_text())["done"])
    assert len(whole) >= after
    before = len(exported.files)
    fetch.kill_after = 0
    fetch.clean(server)
    assert len(exported.kick_offs) == 1
    assert len(exported.looks) == 1
    assert len(exported.files) - before == 5 - len(whole)
    fetch.finish(server)
    assert len(exported.deletes) == 1


def test_promise_39_a_run_killed_while_it_waits_goes_on_without_a_second_kick_off(fetch, server, exported):
    exported.polls = [in_progress()] * 3
    fetch.kill_waiting = True
    with pytest.raises(KilledError):
        fetch(server)
    fetch.kill_waiting = False
    fetch.clean(server)
    assert len(exported.kick_offs) == 1


@pytest.mark.parametrize("harm", ["changed", "cut", "removed"])
def test_promise_39_a_file_that_is_not_as_it_was_left_is_fetched_again(fetch, server, exported, harm):
    fetch.clean(server)
    path = fetch.folder / "3.MedicationStatement.ndjson"
    if harm == "removed":
        path.unlink()
    else:
        body = path.read_bytes()
        path.write_bytes(body[:-5] if harm == "cut" else body.replace(b"m1", b"m9"))
    fetch.clean(server)
    assert [sum(map(is_file(n), exported.files)) for n in range(1, 6)] == [1, 1, 2, 1, 1]
    assert len(exported.kick_offs) == 1


@pytest.mark.parametrize("state", [b"", b"{", b"[]", b'{"transactionTime": 5}', b"\xff"])
def test_promise_39_a_state_that_cannot_be_read_is_begun_anew(fetch, server, exported, state):
    fetch.clean(server)
    (fetch.folder / "job.json").write_bytes(state)
    (fetch.folder / "9.Patient.ndjson").write_bytes(line(patient("left over")))
    fetch.clean(server)
    assert len(exported.kick_offs) == 2


@pytest.mark.parametrize(
    "more", [{"since": SINCE}, {"types": ("Patient",)}, {"type_filters": ("Patient?_id=p1",)}, {"level": "patient"}]
)
def test_promise_39_another_export_is_not_mixed_with_an_earlier_one(fetch, server, exported, more):
    fetch.clean(server)
    fetch(server, **more)
    assert len(exported.kick_offs) == 2
    names = {request.path.split("/")[3] for request in exported.files[5:]}
    assert names <= {"1"}


def test_promise_39_a_job_that_has_expired_is_begun_anew(fetch, server, exported):
    exported.polls = [in_progress()] * 2
    fetch.kill_waiting = True
    with pytest.raises(KilledError):
        fetch(server)
    fetch.kill_waiting = False
    exported.forgotten = True
    server.on_request = lambda r: setattr(exported, "forgotten", exported.forgotten and "$export" not in r.path)
    fetch.clean(server)
    assert len(exported.kick_offs) == 2
    assert any("a new one is begun" in told for told in fetch.told)


def test_promise_39_a_job_that_a_new_run_loses_is_loud(fetch, server, exported):
    exported.forgotten = True
    fetch.loud(server, IncompleteError, "404", "no longer holds")
    assert len(exported.kick_offs) == 1


def test_promise_39_a_full_disk_is_loud_and_nothing_is_deleted(fetch, server, exported, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("crmo_fhir.fhir.client.os.fsync", full)
        with pytest.raises(CrmoFhirError) as raised:
            fetch(server)
        assert raised.value.exit_code == 6
        assert "No space left" in str(raised.value)
    assert exported.deletes == []
    fetch.clean(server)


@pytest.mark.parametrize("workers", [1, 3])
def test_promise_10_no_more_files_are_fetched_at_once_than_workers(fetch, server, exported, workers):
    fetch.workers = workers
    exported.per_file = 1
    server.delay = 0.02
    fetch.clean(server)
    assert server.most_open == workers


# --------------------------------------------------------------------------------------- by the command line: CLEAN or LOUD


class Pulling(Extraction):
    """Extracts by a bulk export, by the command line."""

    def __call__(self, base: FakeServer, *options: object) -> Any:
        return super().__call__(base, "--mode", "bulk", *options)


@pytest.fixture
def pull(crmo, monkeypatch, tmp_path) -> Pulling:
    return Pulling(crmo, monkeypatch, tmp_path)


@pytest.fixture
def hospital() -> Iterator[FakeServer]:
    """A server of children with CRMO, and others."""
    with serving() as fake:
        yield fake


@pytest.fixture
def ward(hospital) -> Export:
    """The hospital's export."""
    export = Export(hospital)
    export.token = f"Bearer {TOKEN}"
    export.per_file = 2
    export.groups["crmo"] = {"p1", "p2", "p3"}
    return export


def file_of(kind: str, ward: Export) -> Callable[[Request], bool]:
    """Whether a request is for the first file of a type."""

    def check(request: Request) -> bool:
        number = next((n for n, (_, t, _, _) in enumerate(ward.jobs[0].files, 1) if t == kind), 0) if ward.jobs else 0
        return f"/bulk/file/0/{number}?" in request.path

    return check


@pytest.mark.parametrize("options", [(), ("--group", "crmo")], ids=["system", "group"])
@pytest.mark.parametrize("version", ["3.0.0", "4.0.0"])
def test_promise_30_an_export_lands_what_a_search_lands(pull, hospital, ward, options, version):
    ward.version, ward.methods = version, {"POST" if version > "4" else "GET"}
    pull.clean(pull(hospital, *options))
    (request,) = ward.kick_offs
    assert request.headers["prefer"] == "respond-async"
    assert request.headers["accept"] == "application/fhir+json"
    assert hospital.searches("Condition") == []
    assert pull.manifest()["source"]["serverTime"] == ward.jobs[0].time
    assert not (pull.study / ".export").exists()
    assert len(ward.deletes) == 1


def test_promise_30_an_export_and_a_search_give_the_same_figures(crmo, tmp_path, monkeypatch, server, exported):
    monkeypatch.setitem(FhirClient.__init__.__kwdefaults__, "sleep", lambda _: None)
    monkeypatch.setenv("CRMO_FHIR_TOKEN", TOKEN)
    ways = {mode: tmp_path / mode for mode in ("search", "bulk")}
    for mode, study in ways.items():
        ran = crmo("run", server.base, "--mode", mode, "-o", study)
        assert ran.code == 0, ran.err
    assert raw(ways["search"]) == raw(ways["bulk"])
    assert figures(ways["search"]) == figures(ways["bulk"])


def test_promise_31_a_status_elsewhere_ends_the_pull(pull, hospital, ward, elsewhere):
    ward.location = lambda _: f"{elsewhere.origin}/bulk/status/0"
    pull.loud(pull(hospital), 3, "another origin")
    assert elsewhere.requests == []
    assert ward.deletes == []


def test_promise_32_waits_are_shown_and_stand_outside_the_budget(pull, hospital, ward):
    ward.polls = [
        in_progress("42% PHI-CANARY", "120"),
        failing(503, "transient", Retry_After="3"),
        in_progress("", "120"),
    ]
    ran = pull(hospital, "--retry-budget", "5")
    pull.clean(ran)
    assert "(42%)" in ran.out
    assert "120 s" in ran.out
    assert pull.waits == [1.0, 120.0, 3.0, 120.0]


@pytest.mark.parametrize(("poll", "code"), [(failing(500, "exception"), 3), (failing(403, "forbidden"), 4)])
def test_promise_32_a_failed_export_ends_the_pull(pull, hospital, ward, poll, code):
    ward.polls = [poll]
    pull.loud(pull(hospital), code, str(poll[0]))
    assert ward.deletes == []


@pytest.mark.parametrize("needed", [True, False])
def test_promise_33_files_elsewhere_are_fetched_only_where_allowed(pull, hospital, ward, elsewhere, needed):
    ward.files_on(elsewhere)
    ward.requires_token = needed
    pull.loud(pull(hospital), 3, "another origin", "--allow-origin")
    assert elsewhere.requests == []
    pull.clean(pull(hospital, "--allow-origin", elsewhere.origin))
    assert {r.headers.get("authorization") for r in elsewhere.requests} == {f"Bearer {TOKEN}" if needed else None}


@pytest.mark.parametrize("fault", [name for name in FILE_FAULTS if name != "none"])
def test_promise_34_a_faulty_file_ends_the_pull_and_the_next_one_mends_it(pull, hospital, ward, fault):
    ward.spoil = lambda kind, body: FILE_FAULTS[fault](body) if kind == "Patient" else body
    pull.loud(pull(hospital), 3, "(Patient)")
    assert ward.deletes == []
    assert (pull.study / ".export" / "job.json").exists()
    ward.spoil = lambda _, body: body
    pull.clean(pull(hospital))
    assert len(ward.kick_offs) == 1
    assert len(ward.deletes) == 1


@pytest.mark.parametrize("counts", [True, False])
def test_promise_34_what_an_export_without_counts_leaves_out_is_counted_by_search(pull, hospital, ward, counts):
    ward.counts = False
    hospital.counts = hospital.totals = counts
    pull.clean(pull(hospital), landed(CHILDREN))
    assert ("does not count" in " ".join(pull.manifest()["warnings"])) is not counts
    ward.spoil = lambda kind, body: body[: body.find(b"\n") + 1] if kind == "Observation" else body
    pull.study = pull.study.with_name("again")
    ran = pull(hospital)
    if counts:
        pull.loud(ran, 3, "Observation", "counts")
        assert len(ward.deletes) == 1
    else:
        assert ran.code == 0, ran.err
        assert "no counts" in ran.err


def test_promise_35_errors_of_the_export_make_the_pull_partial(pull, hospital, ward):
    ward.outcomes = [
        issue("error", "processing", f"Observation {CANARY} failed"),
        issue("warning", "informational", CANARY),
    ]
    ran = pull(hospital)
    pull.loud(ran, 3, "processing", "Observation … failed")
    assert raw(pull.study) == landed(CHILDREN)
    assert ward.deletes == []
    taken = pull(hospital, "--accept-partial")
    assert taken.code == 0, taken.err
    assert pull.manifest()["complete"] is False
    assert "Observation … failed" in pull.manifest()["failures"][0]
    assert ward.deletes == []


@pytest.mark.parametrize("organised", [True, False])
def test_promise_36_parts_and_blocks_land_the_same(pull, hospital, ward, organised):
    ward.per_manifest, ward.organised = 2, organised
    pull.clean(pull(hospital))
    assert len(ward.looks) > 1


def test_promise_37_an_increment_by_export_equals_a_pull_of_everything(crmo, monkeypatch, tmp_path):
    monkeypatch.setitem(FhirClient.__init__.__kwdefaults__, "sleep", lambda _: None)
    study, other = tmp_path / "study", tmp_path / "other"
    with FakeServer(COHORT, stamped=True) as fake:
        export = Export(fake)
        export.deletions = True
        assert crmo("run", fake.base, "--mode", "bulk", "-o", study).code == 0
        fake.update(drug("m2", "p2", status="stopped"))
        fake.delete("Observation", "o1")
        ran = crmo("run", fake.base, "--mode", "bulk", "--updated-since", "last", "-o", study)
        assert ran.code == 0, ran.err
        assert [bool(request.param("_since")) for request in export.kick_offs] == [False, True]
        assert crmo("run", fake.base, "--mode", "bulk", "-o", other).code == 0
    assert not (study / "raw" / "Observation.ndjson").exists()
    assert b"stopped" in raw(study)["MedicationStatement.ndjson"]
    assert raw(study) == raw(other)
    assert figures(study) == figures(other)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_promise_38_a_link_that_stays_expired_ends_the_pull_and_the_next_one_goes_on(pull, hospital, ward, status):
    ward.expired_status, ward.expired = status, {4}
    pull.loud(pull(hospital), 4 if status == 403 else 3, str(status))
    ward.expired = set()
    pull.clean(pull(hospital))
    assert len(ward.kick_offs) == 1
    assert len(ward.deletes) == 1


def run_until_killed(hospital: FakeServer, ward: Export, study: Path, when: Callable[[Request], bool]) -> None:
    """Extract in a process of its own, and kill it when a request comes."""
    environment = {**os.environ, "CRMO_FHIR_TOKEN": TOKEN}
    command = [
        sys.executable,
        "-m",
        "crmo_fhir",
        "extract",
        hospital.base,
        "--mode",
        "bulk",
        "--workers",
        "1",
        "-o",
        study,
    ]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:

        def kill(request: Request) -> None:
            if process.poll() is None and when(request):
                process.send_signal(signal.SIGKILL)
                process.wait()

        hospital.on_request = kill
        assert process.wait(60) == -signal.SIGKILL
    hospital.on_request = None


@pytest.mark.parametrize("number", [1, 4, 9])
def test_promise_39_killed_while_it_fetches_a_pull_goes_on_with_the_same_export(pull, hospital, ward, number):
    run_until_killed(hospital, ward, pull.study, is_file(number))
    assert not (pull.study / "raw").exists()
    pull.clean(pull(hospital))
    assert len(ward.kick_offs) == 1
    asked = [sum(map(is_file(n), ward.files)) for n in range(1, len(ward.jobs[0].files) + 1)]
    assert asked == [2 if n == number else 1 for n in range(1, len(asked) + 1)]
    (request,) = ward.deletes
    assert request.headers["authorization"] == f"Bearer {TOKEN}"


def test_promise_39_killed_before_the_delete_the_next_pull_ends_the_export(pull, hospital, ward):
    run_until_killed(hospital, ward, pull.study, lambda request: request.method == "DELETE")
    assert (pull.study / "raw" / "manifest.json").exists()
    assert (pull.study / ".export").exists()
    pull.clean(pull(hospital))
    assert not (pull.study / ".export").exists()
    assert len(ward.kick_offs) == 1


def test_promise_39_killed_while_it_waits_a_pull_goes_on_with_the_same_export(pull, hospital, ward):
    ward.polls = [in_progress()] * 3
    run_until_killed(hospital, ward, pull.study, lambda request: "/bulk/status/" in request.path)
    pull.clean(pull(hospital))
    assert len(ward.kick_offs) == 1
