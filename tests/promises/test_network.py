"""Promises 2-13: what goes wrong on the way to a server. Whole extracts by the command line; CLEAN or LOUD."""

import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake.certificates import Authority
from fake_server import FakeServer, Fault, Request, Resource, seconds_between
from support import Ran

from crmo_fhir import pipeline
from crmo_fhir.errors import NetworkError
from crmo_fhir.fhir import client
from crmo_fhir.fhir.client import FhirClient, Static
from promises.records import COHORT, about, assert_loud, diagnosis, drug, effect, figures, patient, raw

TOKEN = "canary-token"
CANARY = "PHI-CANARY"
RETRIED = (408, 429, 500, 502, 503, 504)


def lab(identity: str, who: str) -> Resource:
    return about(
        "Observation",
        identity,
        who,
        status="final",
        code={"coding": [{"system": "http://loinc.org", "code": "1988-5"}]},
        effectiveDateTime="2005-03-01",
        valueQuantity={"value": 12, "system": "http://unitsofmeasure.org", "code": "mg/L"},
    )


def child(number: int) -> list[Resource]:
    """A child with CRMO and every kind of record that a crawl meets."""
    who = f"p{number}"
    prescribed = drug(f"m{number}b", who)
    del prescribed["medicationCodeableConcept"]
    prescribed["medicationReference"] = {"reference": "Medication/anakinra"}
    return [
        patient(who, identifier=[{"system": "urn:mrn", "value": f"{CANARY}-{number}"}]),
        diagnosis(f"c{number}", who, encounter={"reference": f"Encounter/e{number}"}),
        about("Encounter", f"e{number}", who, status="finished", **{"class": {"code": "AMB"}}),
        drug(f"m{number}", who),
        prescribed,
        effect(f"o{number}", who, f"m{number}"),
        lab(f"l{number}", who),
        about("Procedure", f"s{number}", who, status="completed", code={"text": "biopsy"}),
    ]


MEDICATION = {
    "resourceType": "Medication",
    "id": "anakinra",
    "code": {"coding": [{"system": "http://www.whocc.no/atc", "code": "L04AC03"}]},
}
OTHERS = [patient("other"), diagnosis("other-c", "other", code={"text": "asthma"}), lab("other-l", "other")]


def cohort(children: int) -> list[Resource]:
    """So many children, and somebody else who must not be read."""
    return [one for number in range(1, children + 1) for one in child(number)] + [MEDICATION, *OTHERS]


def compact(resource: Resource) -> str:
    return json.dumps(resource, separators=(",", ":"), ensure_ascii=False)


def landed(resources: list[Resource]) -> dict[str, bytes]:
    """What raw/*.ndjson must hold: every record of the children as it was sent, sorted by id; nobody else's."""
    kept = sorted((one for one in resources if one not in OTHERS), key=lambda one: one["id"])
    found: dict[str, bytes] = {}
    for one in kept:
        name = f"{one['resourceType']}.ndjson"
        found[name] = found.get(name, b"") + compact(one).encode() + b"\n"
    return found


CHILDREN = cohort(3)
WHOLE = landed(CHILDREN)


def serving(resources: list[Resource] = CHILDREN, *, page_size: int = 2, **more: Any) -> FakeServer:
    """A server of compact JSON in small pages."""
    return FakeServer(map(compact, resources), page_size=page_size, **more)


def page(kind: str, offset: int = 2) -> Callable[[Request], bool]:
    """Whether a request asks for the page of a type that begins at an offset."""
    return lambda request: request.type == kind and request.param("_offset") == str(offset)


class Extraction:
    """Extracts by the command line, in process; only the cohort is not built from them, which needs no network.

    Waits are taken down in `waits` and, unless `waiting`, not waited; a server may be silent for `timeout` seconds.
    """

    def __init__(
        self, crmo: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, folder: Path, *, timeout: float = 0.5
    ) -> None:
        self.crmo, self.study = crmo, folder / "study"
        self.waits: list[float] = []
        self.waiting = False
        monkeypatch.setattr(pipeline, "_build", lambda *_, **__: None)
        defaults = FhirClient.__init__.__kwdefaults__
        monkeypatch.setitem(defaults, "sleep", self.wait)
        monkeypatch.setitem(defaults, "timeout", timeout)
        monkeypatch.setenv("CRMO_FHIR_TOKEN", TOKEN)

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        if self.waiting:
            time.sleep(seconds)

    def __call__(self, base: str | FakeServer, *options: object) -> Ran:
        source = base.base if isinstance(base, FakeServer) else base
        ran = self.crmo("extract", source, *options, "-o", self.study)
        assert TOKEN not in ran.out + ran.err
        assert CANARY not in ran.out + ran.err
        return ran

    def manifest(self) -> Any:
        return json.loads((self.study / "raw" / "manifest.json").read_text())

    def searches(self, kind: str) -> list[Any]:
        """What the manifest says of the searches of a type."""
        return [one for one in self.manifest()["source"]["searches"] if one["type"] == kind]

    def clean(self, ran: Ran, expected: dict[str, bytes] = WHOLE) -> None:
        """Exit 0, and the very bytes of a run without a fault."""
        assert ran.code == 0, ran.err
        assert raw(self.study) == expected
        assert self.manifest()["complete"] is True

    def loud(self, ran: Ran, code: int, *words: str) -> None:
        """The documented exit code and one line; nothing that passes for whole."""
        assert_loud(ran, self.study, code, *words)

    def clean_or_loud(self, ran: Ran, *codes: int) -> None:
        """Either, where the promise leaves it open."""
        if ran.code == 0:
            self.clean(ran)
        else:
            assert ran.code in codes, ran.err
            self.loud(ran, ran.code)


@pytest.fixture
def fetch(crmo, monkeypatch, tmp_path) -> Extraction:
    return Extraction(crmo, monkeypatch, tmp_path)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving() as fake:
        yield fake


def sent(server: FakeServer, where: Callable[[Request], bool]) -> int:
    """How often a request was sent."""
    return sum(map(where, server.requests))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a study that a user sees."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")
    }


def test_the_children_come_whole_without_a_fault(fetch, server):
    fetch.clean(fetch(server))
    assert fetch.waits == []
    assert {r.headers["authorization"] for r in server.requests} == {f"Bearer {TOKEN}"}
    assert len({request.type for request in server.searches()}) > 10


# --------------------------------------------------------------------------------------------------- 2-5: what is cut off


@pytest.mark.parametrize("kind", ["reset", "drop", "cut", "chunked-cut"])
@pytest.mark.parametrize("which", [page("Observation", 2), page("Observation", 4)], ids=["page 2", "last page"])
def test_promise_02_a_cut_page_is_asked_for_again(fetch, server, kind, which):
    server.faults.append(Fault(kind, where=which))
    fetch.clean(fetch(server))
    assert sent(server, which) == 2


@pytest.mark.parametrize("kind", ["reset", "drop", "cut", "chunked-cut"])
def test_promise_02_every_request_may_be_cut_once(fetch, server, kind):
    met = set()

    def is_new(request: Request) -> bool:
        said = (request.method, request.path, request.body)
        return not (said in met or met.add(said))

    server.faults.append(Fault(kind, times=1000, where=is_new))
    fetch.clean(fetch(server, "--retry-budget", "1000"))
    assert len(met) > 20
    with serving() as quiet:
        assert fetch.crmo("extract", quiet.base, "-q", "-o", fetch.study.with_name("quiet")).code == 0
        # Each was cut once and asked for once more, and nothing else was.
        assert len(server.requests) == len(quiet.requests) + len(met)
    assert min(Counter((r.method, r.path, r.body) for r in server.requests).values()) == 2


def test_promise_02_chunks_that_end_are_whole(fetch, server):
    server.faults.append(Fault("chunked", times=1000))
    fetch.clean(fetch(server))
    assert fetch.waits == []


@pytest.mark.parametrize("kind", ["gzip-cut", "gzip-half"])
def test_promise_03_cut_gzip_in_whole_framing_is_not_taken(fetch, server, kind):
    server.faults.append(Fault(kind, where=page("Observation")))
    fetch.clean_or_loud(fetch(server), 3)
    fetch.clean(fetch(server))


@pytest.mark.parametrize("kind", ["gzip-cut", "gzip-half"])
def test_promise_03_gzip_that_stays_cut_is_loud(fetch, server, kind):
    server.faults.append(Fault(kind, where=page("Observation"), times=1000))
    ran = fetch(server, "--retry-budget", "5")
    assert ran.code in (3, 5), ran.err
    fetch.loud(ran, ran.code, "Observation")


def test_promise_04_gzip_of_two_members_is_read_to_its_end(fetch, server):
    server.zipped = True
    fetch.clean(fetch(server))
    assert fetch.waits == []


def test_promise_05_a_body_without_a_length_is_said_to_be_unverified(fetch, server):
    server.faults.append(Fault("unframed", where=page("Observation")))
    fetch.clean(fetch(server))
    (search,) = [one for one in fetch.searches("Observation") if one["pages"] > 1]
    assert search["framed"] is False
    assert all(one["framed"] for one in fetch.searches("Condition"))


@pytest.mark.parametrize("lines", [False, True], ids=["in a line", "at a line end"])
def test_promise_05_a_cut_body_without_a_length_is_not_taken(fetch, lines):
    written = [json.dumps(one, indent=1) if lines else compact(one) for one in CHILDREN]
    with FakeServer(written, page_size=2) as server:
        server.faults.append(Fault("unframed-cut", where=page("Observation")))
        fetch.clean(fetch(server))
        assert sent(server, page("Observation")) == 2


# -------------------------------------------------------------------------------------- 6-8: what the server says of itself


@pytest.mark.parametrize("status", [429, 503])
def test_promise_06_the_next_request_comes_no_sooner_than_asked(fetch, server, status):
    fetch.waiting = True
    server.faults.append(Fault("status", where=page("Observation"), status=status, headers={"Retry-After": "1"}))
    fetch.clean(fetch(server, "--workers", "1"))
    struck = next(index for index, request in enumerate(server.requests) if page("Observation")(request))
    (gap,) = seconds_between(server.requests[struck : struck + 2])
    assert 1.0 <= gap < 3.0


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("7", 7, 7),
        ("Thu, 01 Jan 2026 00:00:09 GMT", 9, 9),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0, 2),
        ("soon", 0.1, 2),
        ("-5", 0.1, 2),
        ("", 0.1, 2),
    ],
    ids=["seconds", "date", "date gone by", "no number", "negative", "nothing"],
)
@pytest.mark.parametrize("status", [429, 503])
def test_promise_06_retry_after_in_every_form(fetch, server, status, value, least, most):
    headers = {"Retry-After": value, "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}
    server.faults.append(Fault("status", where=page("Observation"), status=status, headers=headers))
    fetch.clean(fetch(server, "--workers", "1"))
    assert least <= sum(fetch.waits) <= most, fetch.waits


def test_promise_06_an_absurd_retry_after_is_capped_and_the_cap_is_said(fetch, server):
    headers = {"Retry-After": "1000000000"}
    server.faults.append(Fault("status", where=page("Observation"), status=503, headers=headers))
    ran = fetch(server, "--retry-budget", "1000", "--workers", "1")
    fetch.clean(ran)
    assert sum(fetch.waits) == 300
    assert "300 s" in ran.err


def test_promise_06_a_wait_beyond_the_budget_is_loud_at_once(fetch, server):
    headers = {"Retry-After": "1000000000"}
    server.faults.append(Fault("status", where=page("Observation"), status=503, headers=headers, times=99))
    fetch.loud(fetch(server), 5, "retry budget", "Observation")
    assert sent(server, page("Observation")) == 1
    assert fetch.waits == []


@pytest.mark.parametrize("status", RETRIED)
def test_promise_07_a_passing_status_is_waited_out_in_growing_steps(fetch, server, status):
    server.faults.append(Fault("status", where=page("Observation"), status=status, times=5))
    fetch.clean(fetch(server, "--workers", "1"))
    assert sent(server, page("Observation")) == 6
    assert len(fetch.waits) == 5
    assert all(later > 1.1 * earlier for earlier, later in zip(fetch.waits, fetch.waits[1:], strict=False))


def test_promise_07_the_steps_are_not_those_of_everybody(fetch, server):
    for _ in range(2):
        server.faults.append(Fault("status", where=page("Observation"), status=503, times=3))
        fetch.clean(fetch(server, "--workers", "1"))
    assert len(set(fetch.waits)) == 6


@pytest.mark.parametrize("status", RETRIED)
def test_promise_07_a_lasting_status_spends_the_budget_and_no_more(fetch, server, status):
    server.faults.append(Fault("status", where=page("Observation"), status=status, times=1000))
    fetch.loud(fetch(server, "--retry-budget", "10", "--workers", "1"), 5, str(status), "Observation")
    assert 5 <= sum(fetch.waits) <= 10
    server.faults.clear()
    fetch.clean(fetch(server))


def test_promise_07_a_spent_budget_leaves_earlier_results_untouched(crmo, tmp_path):
    study = tmp_path / "study"
    with FakeServer(COHORT, page_size=1) as server:
        assert crmo("run", server.base, "-o", study).code == 0
        before, results = contents(study), figures(study)
        server.faults.append(Fault("status", path="Observation", status=503, times=1000))
        ran = crmo("run", server.base, "--retry-budget", "0", "-o", study)
    assert ran.code == 5
    assert contents(study) == before
    assert figures(study) == results


@pytest.mark.parametrize(("status", "code"), [(400, 3), (403, 4), (404, 3), (410, 3), (422, 3)])
@pytest.mark.parametrize("offset", [0, 2], ids=["first page", "second page"])
def test_promise_08_a_refusal_is_not_repeated(fetch, server, status, code, offset):
    def which(request: Request) -> bool:
        return request.type == "MedicationStatement" and request.param("_offset") == (str(offset) if offset else "")

    server.faults.append(Fault("status", where=which, status=status, times=1000))
    fetch.loud(fetch(server), code, str(status), "MedicationStatement")
    assert sent(server, which) == 1
    assert fetch.waits == []


# ------------------------------------------------------------------------------------------------------- 9-10: time, and load


@pytest.mark.parametrize("kind", ["stall-first", "stall", "drip", "drip-head"])
def test_promise_09_silence_and_drips_are_given_up(fetch, server, kind):
    server.faults.append(Fault(kind, where=page("Observation")))
    fetch.clean(fetch(server))
    assert sent(server, page("Observation")) == 2


@pytest.mark.parametrize("kind", ["stall-first", "stall", "drip"])
def test_promise_09_lasting_silence_is_loud_and_soon(fetch, server, kind):
    server.faults.append(Fault(kind, where=page("Observation"), times=1000))
    begun = time.monotonic()
    fetch.loud(fetch(server, "--retry-budget", "1"), 5, "Observation")
    assert time.monotonic() - begun < 5


def test_promise_09_a_steady_drip_is_stopped_by_the_total_limit(crmo, monkeypatch, tmp_path):
    fetch = Extraction(crmo, monkeypatch, tmp_path, timeout=0.2)
    with serving(page_size=200) as server:
        server.faults.append(Fault("drip", path="/Observation", seconds=0.002))  # faster than the least rate
        begun = time.monotonic()
        fetch.clean(fetch(server))
        assert time.monotonic() - begun < 3
    assert len(fetch.waits) == 1


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_promise_10_no_more_requests_are_open_than_workers(fetch, workers):
    with serving(cohort(8)) as server:
        server.delay = 0.005
        fetch.clean(fetch(server, "--workers", str(workers)), landed(cohort(8)))
        assert server.most_open == workers


def test_promise_10_four_are_open_unless_said(fetch):
    with serving(cohort(8)) as server:
        server.delay = 0.005
        fetch.clean(fetch(server), landed(cohort(8)))
        assert server.most_open <= 4


@pytest.mark.parametrize("status", [429, 503])
def test_promise_10_a_busy_server_is_left_alone_by_all_workers(fetch, server, status):
    fetch.waiting = True
    server.delay = 0.02
    struck = []

    def which(request: Request) -> bool:
        return bool(request.type == "Observation" and (struck.append(request.at) or True))

    server.faults.append(Fault("status", where=which, status=status, headers={"Retry-After": "1"}))
    fetch.clean(fetch(server, "--workers", "4"))
    answered = struck[0] + server.delay
    assert [r.at - answered for r in server.requests if answered + 0.1 < r.at < answered + 0.95] == []


# -------------------------------------------------------------------------------------------------------- 11-12: getting there


@contextmanager
def names(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> Iterator[None]:
    """A world in which every host name has these addresses; none: it cannot be resolved."""
    plain = socket.getaddrinfo

    def resolve(host: str, port: int, *more: Any, **named: Any) -> list[Any]:
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [found for address in addresses for found in plain(*address, 0, socket.SOCK_STREAM)]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", resolve)
        yield


def test_promise_11_a_name_that_nobody_knows(fetch, monkeypatch):
    with names(monkeypatch):
        begun = time.monotonic()
        fetch.loud(fetch("https://fhir.hospital.example/r4"), 5, "fhir.hospital.example")
    assert time.monotonic() - begun + sum(fetch.waits) < 10


def test_promise_11_a_port_that_is_refused(fetch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begun = time.monotonic()
    fetch.loud(fetch(f"http://127.0.0.1:{port}/fhir"), 5, f"127.0.0.1:{port}")
    assert time.monotonic() - begun + sum(fetch.waits) < 10


@pytest.mark.parametrize("made", [("elsewhere.example",), ()], ids=["another name", "unknown authority"])
def test_promise_11_a_certificate_that_does_not_fit(fetch, tmp_path, made):
    authority = Authority(tmp_path)
    with serving(tls=authority.server(*made)) as server:
        options = ("--ca-file", authority.ca_file) if made else ()
        begun = time.monotonic()
        fetch.loud(fetch(server, *options), 5, "127.0.0.1", "TLS")
        assert time.monotonic() - begun + sum(fetch.waits) < 10
        assert server.requests == []


def test_promise_11_the_right_name_is_served(fetch, tmp_path):
    authority = Authority(tmp_path)
    with serving(tls=authority.server()) as server:
        fetch.clean(fetch(server, "--ca-file", authority.ca_file))


@contextmanager
def deaf() -> Iterator[tuple[str, int]]:
    """An address that takes no more connections and says nothing of it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        try:
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(address)
            yield address
        finally:
            for one in waiting:
                one.close()


def test_promise_12_an_address_of_another_family_is_passed_over(fetch, server, monkeypatch):
    with names(monkeypatch, ("::1", server.port), ("127.0.0.1", server.port)):
        fetch.clean(fetch(server))
    assert fetch.waits == []


def test_promise_12_a_dead_first_address_does_not_hang(fetch, server, monkeypatch):
    monkeypatch.setattr(client, "CONNECT_TIMEOUT", 0.2)
    with deaf() as dead, names(monkeypatch, dead, ("127.0.0.1", server.port)):
        begun = time.monotonic()
        fetch.clean_or_loud(fetch(server), 5)
    assert time.monotonic() - begun < 10


def test_promise_12_dead_addresses_alone_are_loud_and_soon(fetch, server, monkeypatch):
    monkeypatch.setattr(client, "CONNECT_TIMEOUT", 0.2)
    with deaf() as dead, names(monkeypatch, dead):
        begun = time.monotonic()
        fetch.loud(fetch(server), 5, "127.0.0.1")
    assert time.monotonic() - begun + sum(fetch.waits) < 10


# ------------------------------------------------------------------------------------------------------ 13: what is sent again


@pytest.mark.parametrize("kind", ["drop", "reset", "cut", "chunked-cut", "gzip-cut", "stall-first", "stall", "status"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_promise_13_what_changes_the_server_is_sent_once(kind, method):
    with FakeServer() as server:
        server.faults.append(Fault(kind, times=99, status=503))
        session = FhirClient(server.base, Static(token=TOKEN), timeout=0.2, sleep=lambda _: None)
        with pytest.raises(NetworkError, match="not known"):
            session.send(method, "MeasureReport/m", b"{}", {})
        session.close()
        assert [request.method for request in server.requests] == [method]


@pytest.mark.parametrize("kind", ["drop", "reset", "cut", "stall"])
def test_promise_13_a_search_by_post_changes_nothing_and_is_sent_again(fetch, server, kind):
    server.faults.append(Fault(kind, where=lambda request: request.method == "POST"))
    fetch.clean(fetch(server))
    posted = [(r.path, r.body) for r in server.requests if r.method == "POST"]
    assert posted[0] in posted[1:]


@pytest.mark.parametrize("kind", ["drop", "reset", "cut", "stall"])
def test_promise_13_a_get_is_sent_again(fetch, server, kind):
    server.faults.append(Fault(kind, where=lambda request: request.method == "GET"))
    fetch.clean(fetch(server))
    asked = [r.path for r in server.requests if r.method == "GET"]
    assert asked[0] == asked[1]
