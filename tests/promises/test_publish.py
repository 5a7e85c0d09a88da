"""Promises 80-84: the way back. Whole commands against a server on a real socket, which loses answers, alters and conflicts."""

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Fault, Request, Resource, Writes, outcome
from fhir.resources.R4B import get_fhir_model_class
from support import Ran

from crmo_fhir import landing
from crmo_fhir.fhir.client import FhirClient
from promises.records import COHORT, effect
from promises.test_crash import end, none_is_left, start, until

__all__ = ["none_is_left"]

REPORTER = "Test Hospital"
WINDOW = ("--since", "2002", "--until", "2011")
KINDS = ("Library", "Measure", "MeasureReport", "Provenance")
WRITES = ("PUT", "POST")


def is_transaction(request: Request) -> bool:
    return request.method == "POST" and request.segments == [""]


def writes(kind: str) -> Callable[[Request], bool]:
    """Whether a request writes a type by itself."""
    return lambda request: (
        request.type == kind
        and request.method in WRITES
        and "urlencoded" not in request.headers.get("content-type", "")
    )


@pytest.fixture(scope="module")
def source() -> Iterator[FakeServer]:
    with FakeServer(COHORT, stamped=True) as server:
        yield server


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory) -> Path:
    """A study that was pulled from `source` and measured."""
    folder = tmp_path_factory.mktemp("publish")
    (folder / "crmo-fhir.toml").write_text(f'reporter = "{REPORTER}"\n')
    ran = end(start("run", source.base, *WINDOW, "-o", folder / "study", "-q", cwd=folder))
    assert ran.code == 0, ran.err
    return folder / "study"


class Way:
    """The way back of one study, by the command line; `folder` is where its configuration stands."""

    def __init__(self, crmo: Callable[..., Ran], server: FakeServer, study: Path, folder: Path) -> None:
        self.crmo, self.server, self.study, self.folder = crmo, server, study, folder

    def publish(self, *arguments: object) -> Ran:
        return self.crmo("publish", self.study, *arguments)

    def shown(self, *arguments: object) -> str:
        """The hash that a dry run shows."""
        ran = self.publish(*arguments)
        assert ran.code == 0, ran.err
        return re.search(r"--confirm ([0-9a-f]{64})\n", ran.out)[1]

    def confirmed(self, *arguments: object) -> Ran:
        """A dry run, and what it showed."""
        return self.publish(*arguments, "--confirm", self.shown(*arguments))

    def held(self, kind: str = "MeasureReport") -> list[Resource]:
        return [one.resource for one in self.server.store.find(kind, [])]

    def versions(self) -> dict[str, list[str]]:
        """The versions on the server, by type."""
        return {kind: [one["meta"]["versionId"] for one in self.held(kind)] for kind in KINDS}

    def report(self) -> Resource:
        return json.loads((self.study / "measure-report.json").read_text())

    def edit(self, **more: Any) -> None:
        """Somebody else changes the report."""
        (report,) = self.held()
        self.server.update({**report, **more})

    def judged(self, **more: Any) -> None:
        """Another judgement in the hospital's records, and the study again with it."""
        self.server.update(effect("o2", "p2", "m2", **more))
        self.again()

    def again(self) -> None:
        for arguments in (("extract", self.server.base, *WINDOW, "-o", self.study), ("measure", self.study)):
            ran = self.crmo(*arguments, "-q")
            assert ran.code == 0, ran.err

    def receipts(self) -> list[Resource]:
        return [json.loads(path.read_text()) for path in sorted((self.study / "receipts").glob("publish-0*.json"))]


@pytest.fixture
def way(crmo, source, finished, tmp_path, monkeypatch) -> Iterator[Way]:
    """A copy of the study, and its server as it was, with nothing published."""
    monkeypatch.setenv("CRMO_FHIR_CONFIG", str(finished.parent / "crmo-fhir.toml"))
    monkeypatch.setitem(FhirClient.__init__.__kwdefaults__, "sleep", lambda _: None)
    shutil.copytree(finished, tmp_path / "study")
    source.writes = Writes()
    source.requests.clear()
    observations = dict(source.store.types["Observation"])
    yield Way(crmo, source, tmp_path / "study", finished.parent)
    for kind in KINDS:
        source.store.types.pop(kind, None)
    source.store.types["Observation"] = observations
    source.store.writes += 1
    source.faults.clear()
    source.on_request, source.declare, source.authorized = None, lambda statement: statement, None


ONE_EACH = {kind: ["1"] for kind in KINDS}
NOTHING: dict[str, list[str]] = {kind: [] for kind in KINDS}


def assert_said(ran: Ran, code: int, *words: str) -> str:
    """The exit code and one line on stderr that holds the words."""
    assert ran.code == code, (ran.code, ran.err)
    lines = [line for line in ran.err.strip().splitlines() if "warning" not in line]
    assert len(lines) == 1, ran.err
    assert "Traceback" not in ran.err
    for word in words:
        assert word in lines[0], (word, lines[0])
    return lines[0]


def bare(resource: Resource) -> Resource:
    """A resource without what a server sets."""
    kept = {name: value for name, value in resource.items() if name not in ("id", "meta", "text")}
    return {**kept, "profile": resource.get("meta", {}).get("profile")}


# ------------------------------------------------------------------------------------------------------------ 80, lost answers


@pytest.mark.parametrize("kind", ["lose", "status", "cut"])
@pytest.mark.parametrize("together", [True, False], ids=["transaction", "single"])
def test_promise_80_a_lost_answer_is_resolved_by_reading_back(way, kind, together):
    way.server.writes.transactions = together
    hash_ = way.shown()
    for written in [is_transaction] if together else list(map(writes, KINDS)):
        way.server.faults.append(Fault(kind, status=504, where=written))
    ran = way.publish("--confirm", hash_)
    assert ran.code == 0, ran.err
    assert way.versions() == ONE_EACH
    assert len(way.server.writes.done) == 4
    assert bare(way.held()[0]) == bare(way.report())
    again = way.publish("--confirm", hash_)
    assert again.code == 0, again.err
    assert len(way.server.writes.done) == 4


@pytest.mark.parametrize("together", [True, False], ids=["transaction", "single"])
def test_promise_80_a_request_that_never_arrived_is_not_repeated_blindly_and_the_same_command_goes_on(way, together):
    way.server.writes.transactions = together
    hash_ = way.shown()
    way.server.faults.append(Fault("drop", where=is_transaction if together else writes("MeasureReport")))
    sent = len(way.server.requests)
    assert_said(way.publish("--confirm", hash_), 5, "lost", "same command")
    struck = [r for r in way.server.requests[sent:] if (is_transaction(r) if together else writes("MeasureReport")(r))]
    assert len(struck) == 1
    assert way.held() == []
    ran = way.publish("--confirm", hash_)
    assert ran.code == 0, ran.err
    assert way.versions() == ONE_EACH


@pytest.mark.parametrize("together", [True, False], ids=["transaction", "single"])
def test_promise_80_killed_between_send_and_read_the_same_command_leaves_exactly_one(way, together):
    way.server.writes.transactions = together
    hash_ = way.shown()
    way.server.faults.append(Fault("hold", seconds=60, where=is_transaction if together else writes("MeasureReport")))
    killed = start("publish", way.study, "--confirm", hash_, cwd=way.folder)
    until(way.held)
    killed.send_signal(signal.SIGKILL)
    assert end(killed).code == -signal.SIGKILL
    (receipt,) = way.receipts()
    assert receipt["state"] == "begun"
    ran = way.publish("--confirm", hash_)
    assert ran.code == 0, ran.err
    assert way.versions() == ONE_EACH
    assert [one["state"] for one in way.receipts()] == ["begun", "written"]


def test_promise_80_after_a_kill_the_changed_result_is_a_new_version_of_the_same_report(way):
    hash_ = way.shown()
    way.server.faults.append(Fault("hold", seconds=60, where=is_transaction))
    killed = start("publish", way.study, "--confirm", hash_, cwd=way.folder)
    until(way.held)
    killed.send_signal(signal.SIGKILL)
    end(killed)
    way.judged()
    ran = way.confirmed()
    assert ran.code == 0, ran.err
    assert way.versions()["MeasureReport"] == ["2"]
    assert bare(way.held()[0]) == bare(way.report())


@pytest.mark.parametrize(
    ("lacking", "word"),
    [
        ("conditionalCreate", "conditional create"),
        ("identifier", "identifier"),
        ("update", "update"),
        ("type", "takes no"),
    ],
)
def test_promise_80_what_it_relies_on_is_looked_up_first(way, lacking, word):
    def declare(statement: Resource) -> Resource:
        (rest,) = statement["rest"]
        (entry,) = (one for one in rest["resource"] if one["type"] == "MeasureReport")
        if lacking == "type":
            rest["resource"].remove(entry)
        elif lacking == "conditionalCreate":
            entry["conditionalCreate"] = False
        else:
            entry["searchParam"] = [one for one in entry["searchParam"] if one["name"] != lacking]
            entry["interaction"] = [one for one in entry["interaction"] if one["code"] != lacking]
        return statement

    way.server.declare = declare
    assert_said(way.publish(), 3, "MeasureReport", word, "nothing was written")
    assert way.server.writes.done == []


def test_promise_80_a_server_of_another_version_gets_nothing(way):
    way.server.declare = lambda statement: {**statement, "fhirVersion": "5.0.0"}
    assert_said(way.publish(), 3, "5.0.0", "R4")


# --------------------------------------------------------------------------------------------------------------- 81, conflicts


def test_promise_81_published_again_nothing_is_written(way):
    assert way.confirmed().code == 0
    sent = len(way.server.requests)
    ran = way.publish()
    assert ran.code == 0, ran.err
    assert "nothing to write" in ran.out
    assert {request.method for request in way.server.requests[sent:]} == {"GET"}
    assert way.versions() == ONE_EACH


def test_promise_81_a_changed_result_is_a_new_version_and_the_receipts_outlive_a_new_pull(way):
    assert way.confirmed().code == 0
    before = way.receipts()
    way.judged()
    assert way.receipts() == before
    ran = way.confirmed()
    assert ran.code == 0, ran.err
    assert way.versions() == {**ONE_EACH, "MeasureReport": ["2"], "Provenance": ["1", "1"]}
    assert bare(way.held()[0]) == bare(way.report())
    (put,) = (r for r in way.server.requests if writes("MeasureReport")(r))
    assert put.headers["if-match"] == 'W/"1"'
    assert way.held("Provenance")[1]["target"] == [{"reference": f"MeasureReport/{way.held()[0]['id']}/_history/2"}]
    first, second = way.receipts()
    assert [w["before"] for w in second["writes"]] == [first["writes"][2]["after"], None]


@pytest.mark.parametrize("stale", [412, 409])
@pytest.mark.parametrize("together", [True, False], ids=["transaction", "single"])
def test_promise_81_an_edit_at_the_very_moment_of_the_write_is_not_written_over(way, stale, together):
    assert way.confirmed().code == 0
    way.judged()
    way.server.writes.stale = stale
    if together:  # a second change, so that there are two to write
        way.server.update({**way.held("Measure")[0], "usage": "Changed."})
    over = f"Measure/{way.held('Measure')[0]['id']}/_history/2"
    hash_ = way.shown("--over", over)

    def edited(request: Request) -> None:
        if is_transaction(request) or writes("MeasureReport")(request):
            way.server.on_request = None
            way.edit(status="pending")

    way.server.on_request = edited
    identity = way.held()[0]["id"]
    ran = way.publish("--over", over, "--confirm", hash_)
    assert_said(ran, 8, f"MeasureReport/{identity}/_history/1", f"MeasureReport/{identity}/_history/2", str(stale))
    assert [one["status"] for one in way.held()] == ["pending"]
    assert way.versions()["MeasureReport"] == ["2"]
    assert way.versions()["Measure"] == (["2"] if together else ["1"])


def test_promise_81_an_edit_since_the_receipt_is_refused_until_it_is_named(way):
    assert way.confirmed().code == 0
    way.edit(status="pending")
    identity = way.held()[0]["id"]
    version = f"MeasureReport/{identity}/_history/2"
    for arguments in ((), ("--confirm", "0" * 64), ("--over", version.replace("/2", "/1"))):
        assert_said(way.publish(*arguments), 8, version, "version 1", "--over")
    assert [one["status"] for one in way.held()] == ["pending"]
    assert way.confirmed("--over", version).code == 0
    assert way.versions()["MeasureReport"] == ["3"]
    assert way.held()[0]["status"] == "complete"


def test_promise_81_a_report_that_came_since_the_dry_run_is_not_written_over(way):
    hash_ = way.shown()
    way.server.update({**way.report(), "id": "theirs", "status": "pending"})
    assert_said(way.publish("--confirm", hash_), 8, "no MeasureReport", "MeasureReport/theirs/_history/1")
    way.edit(status="error")
    assert way.versions() == {**NOTHING, "MeasureReport": ["2"]}


def test_promise_81_an_edit_between_our_write_and_the_look_at_it_is_not_taken_for_ours(way):
    def edited(request: Request) -> None:
        if way.held() and request.type == "MeasureReport" and way.held()[0]["status"] == "complete":
            way.edit(status="pending")

    hash_ = way.shown()
    way.server.on_request = edited
    assert_said(way.publish("--confirm", hash_), 8, "MeasureReport.status")
    way.server.on_request = None
    assert_said(way.publish(), 8, "/_history/2", "--over")
    assert way.held()[0]["status"] == "pending"


@pytest.mark.parametrize("together", [True, False], ids=["transaction", "single"])
@pytest.mark.parametrize("same", [True, False])
def test_promise_81_what_a_conditional_create_finds_already_there_is_compared(way, together, same):
    way.server.writes.transactions = together
    hash_ = way.shown()
    theirs = {**way.report(), "id": "theirs", **({} if same else {"status": "pending"})}

    def made(request: Request) -> None:
        if is_transaction(request) or writes("MeasureReport")(request):
            way.server.on_request = None
            way.server.update(theirs)

    way.server.on_request = made
    ran = way.publish("--confirm", hash_)
    assert way.versions()["MeasureReport"] == ["1"]
    assert [one["status"] for one in way.held()] == [theirs["status"]]
    if same:
        assert ran.code == 0, ran.err
    else:
        assert_said(ran, 8, "MeasureReport/theirs/_history/1", "MeasureReport.status")


def test_promise_81_two_with_one_identity_are_both_named(way):
    for identity in ("one", "two"):
        way.server.update({**way.report(), "id": identity})
    assert_said(way.publish(), 8, "MeasureReport/one/_history/1", "MeasureReport/two/_history/1")
    assert way.server.writes.done == []


@pytest.mark.parametrize("together", [True, False], ids=["transaction", "single"])
def test_promise_81_what_the_server_does_not_take_is_said_in_its_words(way, together):
    way.server.writes.transactions = together
    said = {
        "resourceType": "OperationOutcome",
        "issue": [
            {
                "severity": "error",
                "code": "invalid",
                "diagnostics": "Element type is missing a value for PHI-CANARY",
                "expression": ["MeasureReport.group[0].population", "PHI.canary"],
            }
        ],
    }
    where = is_transaction if together else writes("Library")
    hash_ = way.shown()
    way.server.writes.refuse = lambda _: 422
    way.server.faults.append(Fault("status", status=422, body=json.dumps(said).encode(), where=where))
    ran = way.publish("--confirm", hash_)
    line = assert_said(ran, 8, "422", "invalid", "missing")
    assert ("MeasureReport.group[0].population" in line) == together  # a Library has no such element
    assert "CANARY" not in ran.err.upper()
    assert way.versions() == NOTHING


# ----------------------------------------------------------------------------------------------------------- 82, entry by entry


def test_promise_82_one_bad_entry_under_200_is_named(way):
    way.server.writes.atomic = False
    way.server.writes.refuse = lambda resource: 422 if resource["resourceType"] == "MeasureReport" else 0
    assert_said(way.confirmed(), 8, "entry 3 (MeasureReport)", "422")
    assert way.versions() == {**ONE_EACH, "MeasureReport": [], "Provenance": []}
    way.server.writes.refuse = lambda _: 0
    assert way.confirmed().code == 0  # what there was is left alone, the rest is written
    assert way.versions() == ONE_EACH


def test_promise_82_a_transaction_with_one_bad_entry_leaves_nothing(way):
    way.server.writes.refuse = lambda resource: 422 if resource["resourceType"] == "MeasureReport" else 0
    assert_said(way.confirmed(), 8, "422", "not written")
    assert way.versions() == NOTHING


def changed(change: Callable[[Resource], Resource], **more: Any) -> Fault:
    return Fault("change", change=change, where=is_transaction, **more)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (changed(lambda b: {**b, "entry": b["entry"][:-1]}), ("entry 3 (MeasureReport)", "missing")),
        (changed(lambda b: {**b, "entry": []}), ("entry 1 (Library)", "missing")),
        (changed(lambda b: {**b, "entry": [*b["entry"], b["entry"][0]]}), ("3 entries",)),
        (changed(lambda b: {**b, "type": "searchset"}), ("transaction-response",)),
        (
            changed(lambda b: {**b, "entry": [*b["entry"][:2], {"response": {"status": "202 Accepted"}}]}),
            ("entry 3 (MeasureReport)", "202"),
        ),
        (changed(lambda b: {**b, "entry": [{"response": None}, *b["entry"][1:]]}), ("entry 1 (Library)",)),
        (Fault("status", status=202, body=b"{}", where=is_transaction), ("202",)),
        (Fault("outcome", where=is_transaction), ("transaction",)),
    ],
    ids=["one less", "none", "one more", "another type", "accepted entry", "no response", "accepted", "outcome"],
)
def test_promise_82_an_answer_that_does_not_vouch_for_every_entry_is_loud(way, fault, words):
    hash_ = way.shown()
    way.server.faults.append(fault)
    assert_said(way.publish("--confirm", hash_), 8, *words)
    ran = way.publish("--confirm", hash_)  # what was stored all the same is found, and only the rest is written
    assert ran.code == 0, ran.err
    assert way.versions() == ONE_EACH


def test_promise_82_a_single_write_that_is_only_accepted_is_loud(way):
    way.server.writes.transactions = False
    hash_ = way.shown()
    way.server.faults.append(Fault("status", status=202, body=b"{}", where=writes("MeasureReport")))
    assert_said(way.publish("--confirm", hash_), 8, "MeasureReport", "202")


# ------------------------------------------------------------------------------------------------------------- 83, read back


@pytest.mark.parametrize(
    ("alter", "word"),
    [
        (lambda report: {**report, "group": report["group"][:-1]}, "MeasureReport.group"),
        (lambda report: {**report, "status": "pending"}, "MeasureReport.status"),
        (lambda report: {n: v for n, v in report.items() if n != "reporter"}, "MeasureReport.reporter"),
        (lambda report: {**report, "improvementNotation": {"text": "decrease"}}, "something was added"),
    ],
)
@pytest.mark.parametrize("together", [True, False], ids=["transaction", "single"])
def test_promise_83_what_the_server_altered_is_loud(way, alter, word, together):
    way.server.writes.transactions = together
    way.server.writes.alter = lambda r: alter(r) if r["resourceType"] == "MeasureReport" else r
    line = assert_said(way.confirmed(), 8, word)
    assert f"MeasureReport/{way.held()[0]['id']}/_history/1" in line
    assert way.versions()["Provenance"] == []  # nothing vouches for it
    assert_said(way.publish(), 8, "is not what this study sent", "--over")
    assert way.versions()["MeasureReport"] == ["1"]


def test_promise_83_what_a_server_adds_of_its_own_is_no_difference(way):
    def alter(resource: Resource) -> Resource:
        told = {**resource.get("meta", {}), "source": "#1", "tag": [{"code": "theirs"}]}
        return {
            **dict(reversed(resource.items())),
            "meta": told,
            "text": {"status": "generated", "div": "<div>Theirs</div>"},
        }

    way.server.writes.alter = alter
    assert way.confirmed().code == 0
    assert "nothing to write" in way.publish().out


@pytest.mark.parametrize("together", [True, False], ids=["transaction", "single"])
def test_promise_83_a_location_elsewhere_is_not_followed(way, monkeypatch, together):
    monkeypatch.setenv("CRMO_FHIR_TOKEN", "canary-token")
    way.server.writes.transactions = together
    with FakeServer(COHORT) as elsewhere:
        place = f"{elsewhere.base}/MeasureReport/1/_history/1"
        told = {"headers": {"Location": place}}
        away = changed(
            lambda b: {**b, "entry": [{"response": {**e["response"], "location": place}} for e in b["entry"]]}
        )
        way.server.faults.append(
            away if together else Fault("change", change=lambda r: r, where=writes("MeasureReport"), **told)
        )
        ran = way.confirmed()
        assert ran.code == 0, ran.err
        assert elsewhere.requests == []
    assert not way.server.faults[0].times
    assert way.versions() == ONE_EACH


@pytest.mark.parametrize("status", [307, 308])
def test_promise_83_a_write_is_not_sent_elsewhere_by_a_redirect(way, status):
    hash_ = way.shown()
    with FakeServer() as elsewhere:
        headers = {"Location": f"{elsewhere.base}/"}
        way.server.writes.refuse = lambda _: 500
        way.server.faults.append(Fault("status", status=status, headers=headers, where=is_transaction))
        ran = way.publish("--confirm", hash_, "--allow-origin", elsewhere.base)
        assert_said(ran, 3, "another origin")
        assert elsewhere.requests == []
    assert way.versions() == NOTHING


# --------------------------------------------------------------------------------------------------------------- 84, approval


def test_promise_84_a_dry_run_shows_exactly_what_is_sent_and_its_hash(way):
    ran = way.publish()
    assert ran.code == 0, ran.err
    assert {request.method for request in way.server.requests} == {"GET"}
    text, _, rest = ran.out.partition("In the Provenance,")
    hash_ = hashlib.sha256(text[:-1].encode()).hexdigest()
    assert f"--confirm {hash_}" in rest
    assert way.publish("--confirm", hash_).code == 0
    (sent,) = (request for request in way.server.requests if is_transaction(request))
    assert f"POST {way.server.base}\n\n{sent.body}" in text
    entries = json.loads(sent.body)["entry"]
    assert [entry["resource"]["resourceType"] for entry in entries] == list(KINDS[:3])
    (put,) = (request for request in way.server.requests if request.method == "PUT")
    shown = json.loads(text[text.index(f"PUT {way.server.base}/Provenance") :].partition("\n\n")[2])
    assert {**json.loads(put.body), "target": shown["target"]} == {
        **shown,
        "recorded": json.loads(put.body)["recorded"],
    }
    get_fhir_model_class("Provenance").model_validate(json.loads(put.body))
    for path in (way.study / "receipts").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert (way.study / "receipts").stat().st_mode & 0o777 == 0o700


def test_promise_84_single_writes_show_each_request(way):
    way.server.writes.transactions = False
    text = way.publish().out.partition("In the Provenance,")[0]
    assert re.findall(rf"^(POST|PUT) {way.server.base}/(\w+)", text, re.MULTILINE) == [
        ("POST", "Library"),
        ("POST", "Measure"),
        ("POST", "MeasureReport"),
        ("PUT", "Provenance"),
    ]
    assert way.publish("--confirm", hashlib.sha256(text[:-1].encode()).hexdigest()).code == 0
    sent = [request for request in way.server.requests if request.method in WRITES]
    assert all(request.body in text for request in sent[:3])
    assert [request.headers["if-none-exist"].partition("=")[0] for request in sent[:3]] == ["url", "url", "identifier"]


def test_promise_84_a_wrong_hash_writes_nothing(way):
    shown = way.shown()
    for wrong in ("0" * 64, shown[:-1] + ("0" if shown[-1] != "0" else "1"), "yes"):
        assert_said(way.publish("--confirm", wrong), 2, "--confirm")
    assert way.server.writes.done == []


def test_promise_84_the_hash_of_results_that_have_changed_since_writes_nothing(way):
    shown = way.shown()
    way.judged()
    assert_said(way.publish("--confirm", shown), 2, "changed since")
    assert way.server.writes.done == []


def test_promise_84_the_hash_depends_on_the_version_that_is_written_over(way):
    seen = set()
    for status in ("pending", "complete", "pending"):
        way.server.update({**way.report(), "id": "theirs", "status": status, "date": "2011"})
        seen.add(way.shown())
    assert len(seen) == 3


@pytest.mark.parametrize(
    "name", ["results.csv", "measure-report.json", "measure.json", "raw/Patient.ndjson", "raw/manifest.json"]
)
def test_promise_84_what_does_not_verify_is_refused(way, name):
    shown = way.shown()
    path = way.study / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    sent = len(way.server.requests)
    for arguments in ((), ("--confirm", shown)):
        assert_said(way.publish(*arguments), 6, name)
    assert len(way.server.requests) == sent


def test_promise_84_a_partial_pull_is_refused(way, tmp_path):
    way.server.hidden, study = set(), tmp_path / "partial"
    way.server.faults.append(Fault("status", path="AdverseEvent", status=403, times=1000))
    for arguments in (("extract", way.server.base, *WINDOW, "-o", study), ("measure", study)):
        ran = way.crmo(*arguments, "--accept-partial", "-q")
        assert ran.code == 0, ran.err
    assert (study / "measure-report.json").is_file()
    assert_said(way.crmo("publish", study), 3, "incomplete")
    assert way.server.writes.done == []


def test_promise_84_only_the_source_or_a_listed_server_is_written_to(way, tmp_path, monkeypatch):
    with FakeServer() as elsewhere:
        elsewhere.writes = Writes()
        assert_said(way.publish("--server", elsewhere.base), 9, "publish = ")
        (tmp_path / "crmo-fhir.toml").write_text(f'reporter = "{REPORTER}"\npublish = ["{elsewhere.base}/"]\n')
        monkeypatch.setenv("CRMO_FHIR_CONFIG", str(tmp_path / "crmo-fhir.toml"))
        assert_said(way.publish("--server", elsewhere.base), 9, "release")
        assert elsewhere.requests == []


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Iterator[FakeServer]:
    """A server that is not where the records came from, and may be published to."""
    with FakeServer() as server:
        server.writes = Writes()
        (tmp_path / "crmo-fhir.toml").write_text(f'reporter = "{REPORTER}"\npublish = ["{server.base}"]\n')
        monkeypatch.setenv("CRMO_FHIR_CONFIG", str(tmp_path / "crmo-fhir.toml"))
        yield server


@pytest.fixture
def released(crmo, demo_study, registry, tmp_path) -> Path:
    """A released study of 25 children out of a folder."""
    study = Path(shutil.copytree(demo_study, tmp_path / "study"))
    for arguments in (("measure", study), ("release", study)):
        ran = crmo(*arguments, "-q")
        assert ran.code == 0, ran.err
    return study


def test_promise_84_elsewhere_only_the_masked_copy_goes(crmo, released, registry):
    shown = crmo("publish", released)
    assert shown.code == 0, shown.err
    ran = crmo("publish", released, "--confirm", re.search(r"--confirm ([0-9a-f]{64})\n", shown.out)[1])
    assert ran.code == 0, ran.err
    (report,) = (one.resource for one in registry.store.find("MeasureReport", []))
    assert bare(report) == bare(json.loads((released / "release" / "measure-report.json").read_text()))
    assert bare(report) != bare(json.loads((released / "measure-report.json").read_text()))


def change(name: str) -> Callable[[Path], None]:
    return lambda study: (study / "release" / name).write_text("{}")


def unmask(study: Path) -> None:
    """The exact figures in the place of the masked ones, their account mended to fit."""
    account = json.loads((study / "release" / "outputs.json").read_text())
    files = {name: (study / name).read_text() for name in account["files"]}
    landing.write_release(study, files, {n: v for n, v in account.items() if n not in ("files", "build", "seal")})


def forget(study: Path) -> None:
    (study / "receipts" / "release-1.json").unlink()


@pytest.mark.parametrize("spoil", [change("measure-report.json"), change("results.csv"), unmask, forget])
def test_promise_84_a_release_that_is_not_what_was_released_goes_nowhere(crmo, released, registry, spoil):
    spoil(released)
    assert_said(crmo("publish", released), 6, "release")
    assert registry.requests == []


def test_promise_84_the_organization_that_reports_must_be_on_the_server(way, tmp_path, monkeypatch):
    (tmp_path / "crmo-fhir.toml").write_text('reporter_reference = "Organization/ward-7"\n')
    monkeypatch.setenv("CRMO_FHIR_CONFIG", str(tmp_path / "crmo-fhir.toml"))
    assert way.crmo("measure", way.study, "-q").code == 0
    assert_said(way.publish(), 3, "no Organization", "nothing was written")
    assert way.server.writes.done == []
    way.server.update({"resourceType": "Organization", "id": "ward-7", "name": "Ward 7"})
    assert way.confirmed().code == 0
    assert way.held()[0]["reporter"] == {"reference": "Organization/ward-7"}
    way.server.store.types.pop("Organization")


def test_promise_84_a_report_that_names_nobody_is_warned_of(way, tmp_path, monkeypatch):
    monkeypatch.setenv("CRMO_FHIR_CONFIG", os.devnull)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CRMO_FHIR_CONFIG")
    assert way.crmo("measure", way.study, "-q").code == 0
    ran = way.publish()
    assert ran.code == 0, ran.err
    assert "warning: the report does not name who reports" in ran.err


def token(scope: str) -> str:
    parts = ({"alg": "none"}, {"scope": scope, "sub": "canary"})
    return ".".join(base64.urlsafe_b64encode(json.dumps(one).encode()).decode().rstrip("=") for one in parts) + ".c2ln"


@pytest.mark.parametrize("scope", ["system/*.rs", "system/*.read", "user/*.read", "system/*.rs system/Measure.cud"])
def test_promise_84_a_token_for_reading_is_refused_before_anything_is_sent(way, scope, monkeypatch):
    monkeypatch.setenv("CRMO_FHIR_TOKEN", token(scope))
    for arguments in ((), ("--confirm", "0" * 64)):
        ran = way.publish(*arguments)
        assert_said(ran, 4, "system/MeasureReport.crus", "nothing was written")
        assert "eyJ" not in ran.err
    assert way.server.requests == []


@pytest.mark.parametrize("scope", ["system/*.*", "system/*.cruds", "user/*.*", "openid"])
def test_promise_84_a_token_for_writing_or_that_does_not_say_is_taken(way, scope, monkeypatch):
    monkeypatch.setenv("CRMO_FHIR_TOKEN", token(scope))
    assert way.confirmed().code == 0
    assert way.versions() == ONE_EACH


def test_promise_84_a_server_that_refuses_an_opaque_token_is_left_as_it_was(way, monkeypatch):
    monkeypatch.setenv("CRMO_FHIR_TOKEN", "opaque")
    hash_ = way.shown()
    way.server.faults.append(Fault("status", status=403, body=outcome("forbidden"), where=is_transaction))
    way.server.writes.refuse = lambda _: 403
    assert_said(way.publish("--confirm", hash_), 4, "403")
    assert way.versions() == NOTHING


def test_promise_84_no_server_no_study(way, tmp_path):
    assert_said(way.crmo("publish", tmp_path / "none"), 2, "no such study")
    way.server.declare = lambda statement: {**statement, "resourceType": "Patient"}
    assert_said(way.publish(), 3, "CapabilityStatement")


# -------------------------------------------------------------------------------------------------------------- withdrawal


def test_a_withdrawal_is_shown_approved_and_kept_like_any_write(way):
    assert_said(way.publish("--withdraw"), 2, "nothing to withdraw")
    assert way.confirmed().code == 0
    (way.study / "results.csv").write_text("spoilt")  # what is withdrawn may well be wrong, or gone
    measured = way.report()
    (way.study / "measure-report.json").unlink()
    ran = way.publish("--withdraw")
    assert way.held()[0]["status"] == "complete"
    assert "Withdrawn" in ran.out
    assert way.confirmed("--withdraw").code == 0
    (report,) = way.held()
    assert (report["status"], report["meta"]["versionId"]) == ("error", "2")
    assert bare(report) == {**bare(measured), "status": "error"}
    assert "Withdrawn" in report["text"]["div"]
    assert way.held("Provenance")[1]["activity"]["coding"][0]["code"] == "NULLIFY"
    again = way.publish("--withdraw")
    assert again.code == 0
    assert "nothing to write" in again.out
    assert way.versions()["MeasureReport"] == ["2"]


def test_a_withdrawal_does_not_write_over_somebody_else(way):
    assert way.confirmed().code == 0
    hash_ = way.shown("--withdraw")
    way.edit(date="2011")
    assert_said(way.publish("--withdraw", "--confirm", hash_), 8, "/_history/2", "version 1")
    assert way.held()[0]["status"] == "complete"


def test_what_was_withdrawn_is_published_again_only_by_a_new_approval(way):
    first = way.shown()
    assert way.publish("--confirm", first).code == 0
    assert way.confirmed("--withdraw").code == 0
    assert_said(way.publish("--confirm", first), 2, "--confirm")
    ran = way.publish()
    assert "withdrawn" in ran.err
    assert way.confirmed().code == 0
    assert (way.held()[0]["status"], way.held()[0]["meta"]["versionId"]) == ("complete", "3")


# ------------------------------------------------------------------------------------------------- effects on the patients


def ours(way: Way) -> list[Resource]:
    return [one for one in way.held("Observation") if "identifier" in one]


def test_effects_attributed_by_the_study_are_written_on_the_patients_only_when_asked_for(way):
    way.judged(partOf=[])  # nothing says which treatment it judges; o1 says so, and is not written again
    figures = (way.study / "results.csv").read_bytes()
    assert way.confirmed().code == 0
    assert ours(way) == []
    ran = way.confirmed("--observations")
    assert ran.code == 0, ran.err
    (made,) = ours(way)
    assert made["subject"] == {"reference": "Patient/p2"}
    assert made["partOf"] == [{"reference": "MedicationStatement/m2"}]
    assert made["derivedFrom"] == [{"reference": "Observation/o2"}]
    assert made["valueCodeableConcept"]["coding"][0]["code"] == "sufficient"
    assert (made["effectiveDateTime"], made["status"]) == ("2005-07-01", "final")
    assert {"reference": f"Observation/{made['id']}/_history/1"} in way.held("Provenance")[-1]["target"]
    get_fhir_model_class("Observation").model_validate(made)
    (value,) = (one["value"] for one in made["identifier"])
    assert all(value not in request.path for request in way.server.requests if request.type == "Observation")
    assert "nothing to write" in way.publish("--observations").out
    way.again()  # what was written is no evidence for the next pull
    assert (way.study / "results.csv").read_bytes() == figures
    assert "nothing to write" in way.publish("--observations").out


def test_an_effect_that_the_study_no_longer_attributes_is_taken_back(way):
    way.judged(partOf=[])
    assert way.confirmed("--observations").code == 0
    way.judged()  # now the record says itself which treatment it judges
    assert way.confirmed("--observations").code == 0
    assert [one["status"] for one in ours(way)] == ["entered-in-error"]
    assert way.confirmed("--withdraw").code == 0
    assert [one["status"] for one in (*ours(way), *way.held())] == ["entered-in-error", "error"]


def reviewed(way: Way, folder: Path, name: str, **cells: str) -> Ran:
    """A worksheet of all courses, filled in for p2."""
    assert way.crmo("review", way.study, "--out", folder / f"{name}.csv", "--all", "-q").code == 0
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as text:
        rows = list(csv.DictReader(text))
    given = {"reviewer": "Dr Åse Ø", "reviewed_on": "2026-11-20", "comment": "not for the records", **cells}
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(
            {**row, **(given if row["course"] == "Patient/p2/TNF-1" and row["kind"] == "clinical" else {})}
            for row in rows
        )
    ran = way.crmo("review", way.study, "--in", folder / f"{name}.csv")
    assert ran.code == 0, ran.err
    assert way.crmo("measure", way.study, "-q").code == 0
    return ran


def test_judgements_of_a_review_are_written_on_the_patients_only_when_asked_for(way, tmp_path):
    code = {"coding": [{"system": "http://loinc.org", "code": "1988-5"}]}
    value = {"value": 4, "unit": "mg/L", "system": "http://unitsofmeasure.org", "code": "mg/L"}
    crp = {"resourceType": "Observation", "id": "l1", "status": "final", "code": code, "valueQuantity": value}
    way.server.update({**crp, "subject": {"reference": "Patient/p2"}, "effectiveDateTime": "2005-07-01"})
    way.again()
    reviewed(way, tmp_path, "first", answer="sufficient", judged_on="2005-09-01")
    figures = (way.study / "results.csv").read_bytes()
    assert way.confirmed().code == 0
    assert ours(way) == []
    ran = way.confirmed("--observations")
    assert ran.code == 0, ran.err
    (made,) = ours(way)
    assert made["subject"] == {"reference": "Patient/p2"}
    assert made["performer"] == [{"display": "Dr Åse Ø"}]
    assert made["partOf"] == [{"reference": "MedicationStatement/m2"}]
    assert made["derivedFrom"] == [{"reference": "Observation/l1"}]
    assert made["valueCodeableConcept"]["coding"][0]["code"] == "sufficient"
    assert (made["effectiveDateTime"], made["status"]) == ("2005-09-01", "final")
    assert "2026-11-20" in made["method"]["text"]
    assert "not for the records" not in json.dumps(made)
    get_fhir_model_class("Observation").model_validate(made)
    assert {"reference": f"Observation/{made['id']}/_history/1"} in way.held("Provenance")[-1]["target"]
    way.again()  # what was written is no evidence for the next pull, nor a day on which the child was seen
    assert (way.study / "results.csv").read_bytes() == figures
    assert "reviewed-effect" not in (way.study / "cohort" / "unmapped.csv").read_text()
    assert "nothing to write" in way.publish("--observations").out

    reviewed(way, tmp_path, "second", answer="insufficient", judged_on="2005-09-01")
    assert way.confirmed("--observations").code == 0
    (changed,) = ours(way)
    assert (changed["id"], changed["meta"]["versionId"]) == (made["id"], "2")
    assert changed["valueCodeableConcept"]["coding"][0]["code"] == "insufficient"


def of_children(way: Way, *children: str) -> None:
    """A report for each child, as `measure --individual` leaves them."""
    system = "https://crmo-fhir.org/measure-report"
    reports = [
        {
            **way.report(),
            "type": "individual",
            "subject": {"reference": f"Patient/{child}"},
            "identifier": [{"system": system, "value": hashlib.sha256(child.encode()).hexdigest()}],
        }
        for child in children
    ]
    (way.study / "individual-reports.ndjson").write_text("".join(f"{json.dumps(report)}\n" for report in reports))


def test_reports_of_single_children_are_written_only_when_asked_for(way):
    assert_said(way.publish("--individual"), 2, "measure", "--individual")
    of_children(way, "p1", "p2")
    assert way.confirmed().code == 0
    assert len(way.held()) == 1
    assert way.confirmed("--individual").code == 0
    assert way.versions()["MeasureReport"] == ["1"] * 3
    assert "nothing to write" in way.publish("--individual").out
    of_children(way, "p1")  # the other one is no longer in the cohort
    assert "nothing to write" in way.publish().out
    assert way.confirmed("--individual").code == 0
    said = {one.get("subject", {}).get("reference"): one["status"] for one in way.held()}
    assert said == {None: "complete", "Patient/p1": "complete", "Patient/p2": "error"}
    assert way.confirmed("--withdraw").code == 0
    assert {one["status"] for one in way.held()} == {"error"}


def test_what_is_about_patients_goes_nowhere_but_to_the_source(way, tmp_path, monkeypatch):
    with FakeServer() as elsewhere:
        (tmp_path / "crmo-fhir.toml").write_text(f'reporter = "{REPORTER}"\npublish = ["{elsewhere.base}"]\n')
        monkeypatch.setenv("CRMO_FHIR_CONFIG", str(tmp_path / "crmo-fhir.toml"))
        shutil.copytree(way.study, way.study / "release", ignore=lambda *_: ["raw", "cohort", ".lock"])
        for option in ("--observations", "--individual"):
            assert_said(way.publish("--server", elsewhere.base, option), 9, "patients")
        assert elsewhere.requests == []


def test_a_receipt_that_was_changed_is_refused(way):
    assert way.confirmed().code == 0
    path = way.study / "receipts" / "publish-0001.json"
    path.write_text(path.read_text().replace('"version": "1"', '"version": "2"', 1))
    assert_said(way.publish(), 6, "publish-0001.json")
