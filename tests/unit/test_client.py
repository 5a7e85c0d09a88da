"""The client over real sockets: what is cut, wrong or elsewhere is never taken, and nothing is given away."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_server import FakeServer, Fault, Resource

from crmo_fhir.errors import IncompleteError, NetworkError, SignInError, UsageError
from crmo_fhir.fhir.client import FhirClient, RefusedError, Static, retry_after
from crmo_fhir.fhir.search import Account, ShortError, capabilities, count, search

TOKEN = "canary-token"
PATIENTS = [{"resourceType": "Patient", "id": f"p{n}"} for n in range(5)]
RAW = '{"resourceType":"Observation","id":"o", "valueQuantity":{"value":1.10}}'


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer([*PATIENTS, RAW], page_size=2) as fake:
        yield fake


def client_of(
    server: FakeServer, budget: float = 60.0, waits: list[float] | None = None, timeout: float = 60
) -> FhirClient:
    """A client that takes down its waits instead of waiting."""
    sleep = (waits if waits is not None else []).append
    return FhirClient(server.base, credentials=Static(token=TOKEN), retry_budget=budget, sleep=sleep, timeout=timeout)


def ids(client: FhirClient, account: Account | None = None) -> list[str]:
    try:
        return [match.id for match in search(client, "Patient", [("_count", "2")], account=account)]
    finally:
        client.close()


@pytest.mark.parametrize("switch", ["zipped", "relative_links", "plain", "modes", "totals", "self_links"])
def test_all_pages_come(server: FakeServer, switch: str) -> None:
    if switch in ("zipped", "relative_links"):
        setattr(server, switch, True)
    elif switch != "plain":
        setattr(server, switch, False)
    account = Account()
    assert ids(client_of(server), account) == ["p0", "p1", "p2", "p3", "p4"]
    assert (account.pages, account.matches) == (3, 5)
    assert account.total == (None if switch == "totals" else 5)


def test_numbers_stay_as_sent(server: FakeServer) -> None:
    client = client_of(server)
    (match,) = search(client, "Observation", [])
    assert match.text == RAW.replace(" ", "")
    assert client.read("Observation", "o")[1] == RAW.replace(" ", "")
    client.close()


def test_headers(server: FakeServer) -> None:
    ids(client_of(server))
    headers = server.requests[0].headers
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers["accept"] == "application/fhir+json"
    assert headers["prefer"] == "handling=strict"
    assert headers["user-agent"].startswith("crmo-fhir/")


@pytest.mark.parametrize("kind", ["reset", "cut", "gzip-cut", "unframed-cut"])
def test_a_cut_page_is_asked_for_again(server: FakeServer, kind: str) -> None:
    server.faults.append(Fault(kind, path="_offset=2"))
    assert ids(client_of(server)) == ["p0", "p1", "p2", "p3", "p4"]
    assert len(server.paths("_offset=2")) == 2


@pytest.mark.parametrize("kind", ["cut", "gzip-cut", "unframed-cut"])
def test_a_page_that_stays_cut_ends_in_a_network_error(server: FakeServer, kind: str) -> None:
    server.faults.append(Fault(kind, path="_offset=2", times=1000))
    with pytest.raises(NetworkError, match=r"cut off|damaged"):
        ids(client_of(server, budget=5))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_status_is_waited_out_in_growing_steps(server: FakeServer, status: int) -> None:
    server.faults.append(Fault("status", status=status, times=4))
    waits: list[float] = []
    assert len(ids(client_of(server, waits=waits))) == 5
    assert len(waits) == 4
    assert waits == sorted(waits)


def test_a_lasting_status_spends_the_budget_and_no_more(server: FakeServer) -> None:
    server.faults.append(Fault("status", status=503, times=1000))
    waits: list[float] = []
    with pytest.raises(NetworkError, match="503"):
        ids(client_of(server, budget=10, waits=waits))
    assert sum(waits) <= 10


def test_retry_after_is_honoured(server: FakeServer) -> None:
    server.faults.append(Fault("status", status=429, headers={"Retry-After": "7"}))
    waits: list[float] = []
    ids(client_of(server, waits=waits))
    assert waits == [7.0]


def test_retry_after_beyond_the_budget_ends_at_once(server: FakeServer) -> None:
    server.faults.append(Fault("status", status=503, headers={"Retry-After": "1000000000"}))
    with pytest.raises(NetworkError, match="retry budget"):
        ids(client_of(server))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        ("Thu, 01 Jan 2026 00:00:09 GMT", 9.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
        ("-5", None),
        ("soon", None),
        (None, None),
    ],
)
def test_retry_after_forms(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, "Thu, 01 Jan 2026 00:00:00 GMT") == seconds


@pytest.mark.parametrize("status", [400, 404, 405, 410, 422])
def test_a_refusal_is_not_repeated_and_its_text_not_shown(server: FakeServer, status: int) -> None:
    body = b'{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"invalid","diagnostics":"PHI"}]}'
    server.faults.append(Fault("status", status=status, body=body))
    with pytest.raises(RefusedError, match=rf"{status} \(invalid\)") as caught:
        ids(client_of(server))
    assert len(server.requests) == 1
    assert "PHI" not in str(caught.value)
    assert caught.value.status == status


@pytest.mark.parametrize("status", [401, 403])
def test_sign_in(server: FakeServer, status: int) -> None:
    server.faults.append(Fault("status", status=status))
    with pytest.raises(SignInError) as caught:
        ids(client_of(server))
    assert TOKEN not in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_within_the_origin_is_followed(server: FakeServer, status: int) -> None:
    server.faults.append(Fault("status", status=status, headers={"Location": f"{server.base}/Patient?_count=2"}))
    assert len(ids(client_of(server))) == 5


def test_no_other_origin_hears_of_us(server: FakeServer) -> None:
    with FakeServer() as evil:
        for fault in (
            Fault("status", status=302, headers={"Location": f"{evil.base}/Patient"}),
            Fault("change", change=lambda page: {**page, "link": [{"relation": "next", "url": f"{evil.base}/x"}]}),
            Fault("change", change=lambda page: {**page, "link": [{"relation": "next", "url": "file:///etc/passwd"}]}),
        ):
            server.faults.append(fault)
            with pytest.raises(IncompleteError, match="another origin"):
                ids(client_of(server))
        client = client_of(server)
        with pytest.raises(IncompleteError, match="another origin"):
            client.get(f"{evil.base}/metadata")
        client.close()
        assert evil.requests == []


def looping(page: Resource) -> Resource:
    return {**page, "link": [{"relation": "next", "url": "Patient?_count=2&_offset=0"}]}


def test_a_circle_of_next_links_ends(server: FakeServer) -> None:
    server.faults.append(Fault("change", times=1000, change=looping))
    with pytest.raises(IncompleteError, match="circles"):
        ids(client_of(server))
    assert len(server.requests) < 10


def test_unique_next_links_without_news_end(server: FakeServer) -> None:
    def endless(page: Resource) -> Resource:
        return {**page, "link": [{"relation": "next", "url": f"Patient?_count=2&_offset=0&x={len(server.requests)}"}]}

    server.faults.append(Fault("change", times=1000, change=endless))
    with pytest.raises(IncompleteError, match="circles"):
        ids(client_of(server))
    assert len(server.requests) < 10


OUTCOME = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "timeout"}]}
SUBSETTED = {"resourceType": "Patient", "id": "s", "meta": {"tag": [{"code": "SUBSETTED"}]}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: OUTCOME, "OperationOutcome"),
        (lambda _: {"a": 1}, "no FHIR JSON"),
        (lambda page: {**page, "type": "history"}, "searchset"),
        (lambda page: {**page, "total": 9}, "counts 9 matches and sent 5"),
        (lambda page: {**page, "entry": [{"resource": OUTCOME, "search": {"mode": "outcome"}}]}, "reports timeout"),
        (lambda page: {**page, "entry": [{"fullUrl": "x"}]}, "no resource"),
        (lambda page: {**page, "entry": [{"resource": {"resourceType": "Patient"}}]}, "without id"),
        (lambda page: {**page, "entry": [{"resource": SUBSETTED}]}, "SUBSETTED"),
    ],
)
def test_a_page_that_is_not_what_it_should_be(server: FakeServer, change: object, said: str) -> None:
    server.faults.append(Fault("change", times=3, change=change))  # type: ignore[arg-type]
    with pytest.raises(IncompleteError, match=said):
        ids(client_of(server))


@pytest.mark.parametrize(("total", "short"), [(4, False), (6, True)])
def test_fewer_than_counted_is_told_from_more(server: FakeServer, total: int, short: bool) -> None:
    server.faults.append(Fault("change", times=3, change=lambda page: {**page, "total": total}))
    with pytest.raises(IncompleteError, match=f"counts {total} matches and sent 5") as caught:
        ids(client_of(server))
    assert isinstance(caught.value, ShortError) is short


@pytest.mark.parametrize("post", [False, True])
def test_a_count_is_asked_for_without_records(server: FakeServer, post: bool) -> None:
    client = client_of(server)
    assert count(client, "Patient", [("_id", "p0,p1,p2"), ("_count", "2")], post=post) == 3
    server.counts = server.totals = False
    assert count(client, "Patient", [("_id", "p0")], post=post) is None
    client.close()
    request = server.requests[0]
    assert "_summary=count" in (request.body if post else request.path)
    assert "_count=2" not in request.path + request.body


def test_includes_and_warnings_are_no_matches(server: FakeServer) -> None:
    def more(page: Resource) -> Resource:
        warning = {"resourceType": "OperationOutcome", "issue": [{"severity": "warning", "code": "informational"}]}
        extra = [
            {"resource": {"resourceType": "Organization", "id": "x"}, "search": {"mode": "include"}},
            {"resource": warning, "search": {"mode": "outcome"}},
        ]
        return {**page, "entry": [*page["entry"], *extra]}

    server.faults.append(Fault("change", change=more))
    account = Account()
    assert len(ids(client_of(server), account)) == 5
    assert account.outcomes == ["informational"]


def test_html_is_no_fhir(server: FakeServer) -> None:
    server.faults.append(Fault("status", status=200, body=b"<html>", headers={"Content-Type": "text/html"}))
    with pytest.raises(IncompleteError, match="HTML"):
        ids(client_of(server))


def test_an_ignored_parameter_shows_in_the_self_link(server: FakeServer) -> None:
    server.ignored = {"_id"}
    client = client_of(server)
    with pytest.raises(IncompleteError, match="ignored the parameter _id"):
        list(search(client, "Patient", [("_id", "p0"), ("identifier", "a|b")]))
    client.close()


@pytest.mark.parametrize("kind", ["stall", "drip"])
def test_a_body_that_does_not_come_is_given_up(server: FakeServer, kind: str) -> None:
    server.faults.append(Fault(kind))
    assert len(ids(client_of(server, timeout=0.3))) == 5


def test_a_bomb_is_refused(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crmo_fhir.fhir.client.MAX_BODY", 100)
    server.zipped = True
    with pytest.raises(IncompleteError, match="larger than"):
        ids(client_of(server))


def test_a_refused_port_is_named_and_soon(server: FakeServer) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    waits: list[float] = []
    client = FhirClient(f"http://127.0.0.1:{port}/fhir", credentials=Static(token=TOKEN), sleep=waits.append)
    with pytest.raises(NetworkError, match=rf"127\.0\.0\.1:{port}.*refused") as caught:
        capabilities(client)
    client.close()
    assert sum(waits) <= 8
    assert TOKEN not in str(caught.value)
    assert server.requests == []


@pytest.mark.parametrize("version", ["4.0.1", "4.3.0", "5.0.0"])
def test_versions_read(version: str) -> None:
    with FakeServer(version=version) as fake:
        client = client_of(fake)
        assert capabilities(client)["fhirVersion"] == version
        client.close()


@pytest.mark.parametrize("version", ["3.0.2", "1.0.2", "6.0.0"])
def test_versions_refused(version: str) -> None:
    with FakeServer(version=version) as fake:
        client = client_of(fake)
        with pytest.raises(IncompleteError, match=version):
            capabilities(client)
        client.close()


@pytest.mark.parametrize(
    "base",
    [
        "http://example.org/fhir",
        "ftp://example.org",
        "fhir",
        "https://user:secret@example.org/fhir",
        "https://a.b/fhir?x=1",
    ],
)
def test_bases_refused(base: str) -> None:
    with pytest.raises(UsageError) as caught:
        FhirClient(base)
    assert "secret" not in str(caught.value)


def test_a_ca_file_must_hold_certificates(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        FhirClient("https://example.org/fhir", ca_file=tmp_path / "none.pem")
    (tmp_path / "bad.pem").write_text("nothing")
    with pytest.raises(UsageError, match="PEM"):
        FhirClient("https://example.org/fhir", ca_file=tmp_path / "bad.pem")


def test_a_token_with_a_line_break_is_not_shown() -> None:
    with pytest.raises(SignInError) as caught:
        Static(token="to\nken")
    assert "ken" not in str(caught.value).split("token")[-1]


def test_what_changes_the_server_is_sent_once(server: FakeServer) -> None:
    server.faults.append(Fault("reset", times=5))
    client = client_of(server)
    with pytest.raises(NetworkError, match="not known"):
        client.send("POST", "MeasureReport", b"{}", {}, ())
    client.close()
    assert len(server.requests) == 1
