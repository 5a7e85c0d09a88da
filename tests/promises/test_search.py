"""Promises 14-29: what a server does wrong in its searches. Whole extracts by the command line; CLEAN or LOUD."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fake.certificates import Authority
from fake_server import FakeServer, Fault, Request, Resource, outcome

from crmo_fhir.fhir import search
from crmo_fhir.source import plan
from promises.records import COHORT, about, assert_loud, diagnosis, patient, raw
from promises.test_network import (
    CANARY,
    CHILDREN,
    TOKEN,
    Extraction,
    child,
    lab,
    landed,
    names,
    page,
    sent,
    serving,
)

PATIENTS = ("p1", "p2", "p3")
KINDS_OF_PATIENTS = (
    *("Encounter", "MedicationStatement", "MedicationRequest", "MedicationDispense", "MedicationAdministration"),
    *("Procedure", "Observation", "ImagingStudy", "DiagnosticReport", "AdverseEvent"),
)
BYSTANDERS = [
    *(about(kind, f"other-{kind}", "other") for kind in KINDS_OF_PATIENTS),
    {"resourceType": "Medication", "id": "other-drug"},
]
"""Somebody else's record of every type: what a server gives away that ignores what it was asked."""
SOMEBODY_ELSES = re.compile(rb'(Patient/|"id": ?")other|^other', re.MULTILINE)


@pytest.fixture
def fetch(crmo, monkeypatch, tmp_path) -> Extraction:
    return Extraction(crmo, monkeypatch, tmp_path)


@pytest.fixture
def again(crmo, monkeypatch, tmp_path) -> Extraction:
    """Another pull, into a study of its own."""
    return Extraction(crmo, monkeypatch, tmp_path / "again")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving() as fake:
        yield fake


@pytest.fixture
def evil() -> Iterator[FakeServer]:
    """A second origin with the same records, which must never see the token."""
    with serving() as fake:
        yield fake
        assert all(TOKEN not in f"{r.path}{r.headers}{r.body}" for r in fake.requests)


@pytest.fixture
def crowded() -> Iterator[FakeServer]:
    """A server with other people's records of every type."""
    with serving([*CHILDREN, *BYSTANDERS]) as fake:
        yield fake


def assert_nobody_else(study: Path) -> None:
    """No file of the study, hidden ones included, holds anything of somebody else."""
    for path in study.rglob("*"):
        assert path.is_dir() or not SOMEBODY_ELSES.search(path.read_bytes()), path


def cells(study: Path, kind: str) -> dict[str, str]:
    """Patient → state of a type, by the ledger."""
    with (study / "raw" / "ledger.csv").open(encoding="utf-8", newline="") as rows:
        return {row["patient"]: row["state"] for row in csv.DictReader(rows) if row["type"] == kind}


def changing(
    change: Callable[[Resource], Resource], where: Callable[[Request], bool] | None = None, times: int = 1000
) -> Fault:
    """A fault that changes a page, the second one of the Observations unless said."""
    return Fault("change", where=where or page("Observation"), times=times, change=change)


def at(kind: str, offset: str) -> Callable[[Request], bool]:
    """Whether a request asks for a page of a type, the first one where the offset is empty; counts are no pages."""
    return lambda r: r.type == kind and r.param("_offset") == offset and r.param("_summary") == ""


def adding(*entries: Resource) -> Callable[[Resource], Resource]:
    """A change that puts more entries on a page."""
    return lambda found: {**found, "entry": [*found["entry"], *entries]}


def linked(found: Resource, url: str) -> Resource:
    """A page with this next link."""
    kept = [link for link in found["link"] if link["relation"] != "next"]
    return {**found, "link": [*kept, {"relation": "next", "url": url}]}


# ------------------------------------------------------------------------------------------- 14-16: filters that are ignored


ASKED_FOR = ("code", "_id", "patient", "subject", "link", "identifier")
IN_WORDS = ("code:text", "code:missing")


@pytest.mark.parametrize("name", [*ASKED_FOR, *IN_WORDS])
def test_promise_14_a_parameter_missing_in_the_self_link_is_named(fetch, crowded, name):
    crowded.text_indexed = False  # so that Conditions without a code are asked for
    crowded.ignored = {name}
    fetch.loud(fetch(crowded), 3, f"ignored the parameter {name}")
    assert_nobody_else(fetch.study)


@pytest.mark.parametrize("name", ["code", "patient"])
def test_promise_14_it_is_named_even_where_only_the_right_ones_came(fetch, name):
    with serving([one for one in CHILDREN if "other" not in one["id"]]) as server:
        server.ignored = {name}
        fetch.loud(fetch(server), 3, f"ignored the parameter {name}")


@pytest.mark.parametrize(
    ("name", "lying"), [*((name, True) for name in ASKED_FOR), ("code", False), ("patient", False)]
)
def test_promise_15_whoever_was_not_asked_for_is_dropped_and_loud(fetch, crowded, name, lying):
    crowded.lies = crowded.self_links = lying
    crowded.ignored = {name}
    fetch.loud(fetch(crowded), 3, f"ignores {name}")
    assert_nobody_else(fetch.study)
    # The next run asks a server that has been mended anew.
    crowded.ignored.clear()
    fetch.clean(fetch(crowded))


@pytest.mark.parametrize("lying", [True, False], ids=["lying", "absent"])
def test_promise_15_the_whole_population_for_everything_is_loud_and_not_read_to_its_end(fetch, lying):
    crowd = [diagnosis(f"other-{number}", "other", code={"text": "asthma"}) for number in range(500)]
    with serving([*CHILDREN, *crowd]) as server:
        server.lies = server.self_links = lying
        server.ignored = {*ASKED_FOR, *IN_WORDS, "_lastUpdated"}
        fetch.loud(fetch(server), 3, "ignores code")
        assert_nobody_else(fetch.study)
        assert len(server.requests) < 50


@pytest.mark.parametrize("name", [*IN_WORDS, "_lastUpdated"])
def test_promise_15_too_many_conditions_by_words_lose_nobody(fetch, crowded, name):
    """Which words a server finds is its own affair; whatever it gives too much is left out here."""
    crowded.lies, crowded.text_indexed = True, False
    crowded.ignored = {name}
    fetch.clean(fetch(crowded))
    assert set(cells(fetch.study, "Patient")) == set(PATIENTS)


def test_promise_16_every_search_asks_for_strict_handling(fetch, server):
    fetch.clean(fetch(server))
    searches = server.searches()
    assert {r.method for r in searches} == {"GET", "POST"}
    assert any("_offset" in r.path for r in searches)
    assert any(r.param("_summary") == "count" for r in searches)
    assert all("handling=strict" in r.headers.get("prefer", "") for r in searches)


@pytest.mark.parametrize(
    ("name", "kind", "posts"),
    [
        ("code", "Condition", True),
        ("_id", "Patient", True),
        ("patient", "Condition", True),
        ("patient", "Condition", False),
        ("subject", "AdverseEvent", True),
    ],
)
def test_promise_16_a_refused_parameter_is_named_in_the_servers_words(fetch, server, name, kind, posts):
    server.posts = posts
    server.unknown = {name}
    fetch.loud(fetch(server), 3, "400", f"unknown search parameter {name} for resource type {kind}")


def test_promise_16_a_refusal_gives_nothing_of_its_words_away_that_may_be_of_a_patient(fetch, server):
    body = outcome("invalid", f"Unknown parameter 'patient' near '{CANARY}'")
    server.faults.append(Fault("status", path="/Observation", status=400, body=body, times=1000))
    fetch.loud(fetch(server), 3, "Observation", "400", "unknown parameter patient")


@pytest.mark.parametrize("name", ["code:text", "code:missing", "identifier", "link", "_lastUpdated", "_summary"])
def test_promise_16_a_search_that_only_looks_for_more_may_be_refused(fetch, server, name):
    server.unknown = {name}
    fetch.clean(fetch(server))
    if name not in ("_lastUpdated", "_summary", "code:missing"):
        assert any("refuses" in warning for warning in fetch.manifest()["warnings"])


# --------------------------------------------------------------------------------------------------- 17: links to elsewhere


ALL_TYPES = pytest.mark.parametrize("kind", ["Condition", "Patient", "Observation"])


def leading(kind: str, change: Callable[[str], str]) -> Callable[[str], str]:
    """The next links of a type, changed."""
    return lambda url: change(url) if f"/{kind}?" in url else url


@pytest.fixture
def resolved(monkeypatch) -> set[str]:
    """The names and addresses that anything in this process has tried to reach."""
    found: set[str] = set()
    plain = socket.getaddrinfo

    def resolve(host: str, *more: Any, **named: Any) -> list[Any]:
        found.add(host)
        return plain(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return found


@ALL_TYPES
def test_promise_17_a_next_page_on_another_port_is_not_fetched(fetch, server, evil, kind):
    server.link = leading(kind, lambda url: url.replace(server.origin, evil.origin))
    fetch.loud(fetch(server), 3, kind, "another origin", "--allow-origin")
    assert evil.requests == []
    server.link = lambda url: url
    fetch.clean(fetch(server))


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://127.0.0.1:{port}",
        "http://localhost:{port}",
        "http://10.255.255.1:{port}",
        "http://[::1]:{port}",
        "//localhost:{port}",
        "http://127.0.0.1:{port}@localhost:{port}",
        "ftp://127.0.0.1:{port}",
    ],
)
def test_promise_17_another_scheme_name_or_address_is_another_origin(fetch, server, resolved, elsewhere):
    target = elsewhere.format(port=server.port)
    server.link = leading("Observation", lambda url: url.replace(server.origin, target))
    fetch.loud(fetch(server), 3, "Observation", "another origin")
    assert resolved == {"127.0.0.1"}
    assert {r.headers["host"] for r in server.requests} == {f"127.0.0.1:{server.port}"}


@pytest.mark.parametrize("sign", ["\\", "\\@", "@", "%40", "#@", "?@", "\x00@", "\t"])
def test_promise_17_no_spelling_leads_the_token_elsewhere(fetch, server, evil, resolved, sign):
    """Libraries do not agree on where the host is in these."""
    here, there = (f"127.0.0.1:{one.port}" for one in (server, evil))
    spelt = {"Observation": f"http://{here}{sign}{there}", "Procedure": f"http://{there}{sign}{here}"}

    def link(url: str) -> str:
        kind = urlsplit(url).path.rpartition("/")[2]
        return url.replace(server.origin, spelt.get(kind, server.origin))

    server.link = link
    fetch.loud(fetch(server), 3)
    assert evil.requests == []
    assert resolved == {"127.0.0.1"}
    for kind in spelt:
        assert set(cells(fetch.study, kind).values()) <= {"refused", "truncated"}


@ALL_TYPES
def test_promise_17_an_allowed_origin_is_asked_without_the_token(fetch, server, evil, kind):
    server.link = leading(kind, lambda url: url.replace(server.origin, evil.origin))
    fetch.clean(fetch(server, "--allow-origin", evil.origin))
    assert {r.type for r in evil.requests} == {kind}
    assert all("authorization" not in r.headers for r in evil.requests)
    assert all(r.headers["authorization"] == f"Bearer {TOKEN}" for r in server.requests)


def test_promise_17_back_home_the_token_is_sent_again(fetch, server, evil):
    server.link = leading("Observation", lambda url: url.replace(server.origin, evil.origin))
    evil.link = lambda url: url.replace(evil.origin, server.origin)
    fetch.clean(fetch(server, "--allow-origin", evil.origin))
    assert sent(evil, page("Observation", 2)) > 0
    assert sent(server, page("Observation", 4)) > 0
    assert all(r.headers["authorization"] == f"Bearer {TOKEN}" for r in server.requests)


def test_promise_17_another_origin_than_the_allowed_one_stays_forbidden(fetch, server, evil):
    server.link = leading("Observation", lambda url: url.replace(server.origin, evil.origin))
    fetch.loud(fetch(server, "--allow-origin", f"http://localhost:{evil.port}"), 3, "another origin")
    assert evil.requests == []


def test_promise_17_an_allowed_origin_may_stand_in_the_configuration(fetch, server, evil, monkeypatch, tmp_path):
    config = tmp_path / "site.toml"
    config.write_text(f'allow = ["{evil.origin}"]\n')
    monkeypatch.setenv("CRMO_FHIR_CONFIG", str(config))
    server.link = leading("Observation", lambda url: url.replace(server.origin, evil.origin))
    fetch.clean(fetch(server))
    assert len(evil.requests) > 0


def test_promise_17_from_https_to_plain_http_nothing_is_followed_even_if_allowed(fetch, evil, tmp_path):
    authority = Authority(tmp_path)
    with serving(tls=authority.server()) as server:
        server.link = leading("Observation", lambda url: url.replace(server.origin, evil.origin))
        ran = fetch(server, "--ca-file", authority.ca_file, "--allow-origin", evil.origin)
        fetch.loud(ran, 3, "Observation", "another origin")
    assert evil.requests == []


def test_promise_17_from_https_to_an_allowed_https_without_the_token(fetch, tmp_path):
    authority = Authority(tmp_path)
    with serving(tls=authority.server()) as server, serving(tls=authority.server()) as evil:
        server.link = leading("Observation", lambda url: url.replace(server.origin, evil.origin))
        fetch.clean(fetch(server, "--ca-file", authority.ca_file, "--allow-origin", evil.origin))
        assert len(evil.requests) > 0
        assert all("authorization" not in r.headers for r in evil.requests)


# ------------------------------------------------------------------------------------------------- 18-20: links that lead on


FORMS: dict[str, Callable[[str], str]] = {
    "absolute": lambda url: url,
    "relative to the host": lambda url: urlsplit(url)._replace(scheme="", netloc="").geturl(),
    "relative to the base": lambda url: url.partition("/fhir/")[2],
    "relative to the base, with a dot": lambda url: f"./{url.partition('/fhir/')[2]}",
    "a query alone": lambda url: f"?{urlsplit(url).query}",
    "without a scheme": lambda url: url.partition(":")[2],
    "in capitals": lambda url: url.replace("http://", "HTTP://"),
}


@pytest.mark.parametrize(
    ("form", "posts"), [*((form, True) for form in FORMS), ("relative to the base", False), ("a query alone", False)]
)
def test_promise_18_a_next_link_of_any_form_is_resolved_and_sent_back_as_it_is(fetch, server, form, posts):
    written = []

    def link(url: str) -> str:
        written.append(urlsplit(url)._replace(scheme="", netloc="").geturl())
        return FORMS[form](url)

    server.posts, server.link = posts, link
    fetch.clean(fetch(server))
    followed = [r.path for r in server.requests if "_offset" in r.path]
    assert len(followed) >= 10
    assert set(followed) == set(written)


@pytest.mark.parametrize("relative", [True, False])
def test_promise_18_an_opaque_link_at_the_base_itself_is_followed(fetch, server, relative):
    server.opaque_links, server.relative_links = True, relative
    if relative:
        server.link = lambda url: f"/fhir{url}"
    fetch.clean(fetch(server))
    assert sent(server, lambda request: request.param("_getpages") != "") > 5


NAMED = "https://fhir.hospital.example"


@pytest.mark.parametrize(("base", "shown"), [(NAMED, f"{NAMED}:443"), (f"{NAMED}:443", NAMED)])
def test_promise_18_the_port_of_the_scheme_may_be_named_or_not(fetch, monkeypatch, tmp_path, base, shown):
    authority = Authority(tmp_path)
    with serving(tls=authority.server("fhir.hospital.example"), origin=shown) as server:
        with names(monkeypatch, ("127.0.0.1", server.port)):
            fetch.clean(fetch(f"{base}/fhir", "--ca-file", authority.ca_file))
        assert sent(server, page("Observation", 4)) > 0
        assert all(r.headers["authorization"] == f"Bearer {TOKEN}" for r in server.requests)


ENCODED = "a%2Bb%7Cc%2Cd+e%20f%252Cg%C3%B8http%3A%2F%2Floinc.org%7C1988-5~$'()*;:@!,"


@pytest.mark.parametrize(
    ("mark", "asked"),
    [
        (ENCODED, ENCODED),
        # What may not stand in a URL is encoded, once; hex digits are the same in either case (RFC 3986 2.1).
        ("a|b c%2bd%7ce", "a%7Cb%20c%2Bd%7Ce"),
        ("ø", "%C3%B8"),
    ],
    ids=["encoded", "not encoded", "beyond ASCII"],
)
def test_promise_18_what_is_encoded_in_a_link_stays_as_it_is(fetch, server, mark, asked):
    written = []

    def link(url: str) -> str:
        written.append(f"{urlsplit(url).path}?{urlsplit(url).query}&_again=")
        return f"{url}&_again={mark}"

    server.link = link
    fetch.clean(fetch(server))
    assert {r.path for r in server.requests if "_again" in r.path} == {one + asked for one in written}


def longest(server: FakeServer, kind: str) -> int:
    """The most requests of one search of a type. How many others had begun by then is a matter of chance."""
    asked = Counter(
        tuple(one for one in request.params if one[0] not in ("_offset", "_again")) for request in server.searches(kind)
    )
    return max(asked.values())


TO_ITSELF, TO_THE_FIRST, BACK = ("_offset=4", "_offset=2"), ("_offset=2", "_offset=0"), ("_offset=4", "_offset=0")


@pytest.mark.parametrize(
    ("kind", "circle"),
    [
        ("Observation", TO_ITSELF),
        ("Observation", TO_THE_FIRST),
        ("Observation", BACK),
        ("Condition", TO_ITSELF),
        ("Patient", BACK),
    ],
)
def test_promise_19_a_circle_of_next_links_ends(fetch, kind, circle):
    with serving([one for number in range(1, 6) for one in child(number)]) as server:
        server.link = leading(kind, lambda url: url.replace(*circle))
        fetch.loud(fetch(server), 3, kind, "circles")
        assert longest(server, kind) <= 3 * search.MAX_PAGES_WITHOUT_NEWS


@pytest.mark.parametrize(
    ("kind", "offset"), [("Observation", ""), ("Observation", "2"), ("Condition", ""), ("Patient", "2")]
)
def test_promise_19_a_page_repeated_without_end_ends(fetch, server, kind, offset):
    server.faults.append(Fault("repeat", where=at(kind, offset), times=10**6))
    fetch.loud(fetch(server), 3, kind, "circles")
    assert longest(server, kind) <= 3 * search.MAX_PAGES_WITHOUT_NEWS


def test_promise_19_many_pages_repeated_without_end_end(fetch, server):
    """The last page leads back to the first, each time by a link of its own."""
    turns = []

    def turn(found: Resource) -> Resource:
        turns.append(found)
        (own,) = (link["url"] for link in found["link"] if link["relation"] == "self")
        return linked(found, re.sub("_offset=4", "_offset=0", own) + f"&_again={len(turns)}")

    server.faults.append(changing(turn, page("Observation", 4)))
    fetch.loud(fetch(server), 3, "Observation", "circles")
    assert longest(server, "Observation") <= 3 * search.MAX_PAGES_WITHOUT_NEWS


MEASURED = "import sys; from crmo_fhir import cli, pipeline; pipeline._build = lambda *_, **__: None; cli.main()"


def peak(server: FakeServer, study: Path) -> int:
    """Extract in a process of its own; the most memory it held, in bytes."""
    command = [sys.executable, "-c", MEASURED, "extract", server.base, "-o", str(study)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    return usage.ru_maxrss * 1024


def test_promise_20_five_thousand_pages_in_flat_memory(tmp_path):
    peaks = {}
    for pages in (500, 5000):
        labs = [lab(f"l{number:05}", "p1") for number in range(pages)]
        with serving([patient("p1"), diagnosis("c1", "p1"), *labs], page_size=1) as server:
            server.blanks = 10_000
            peaks[pages] = peak(server, tmp_path / str(pages))
            assert len([r for r in server.searches("Observation") if "_offset" in r.path]) == pages - 1
        kept = raw(tmp_path / str(pages))["Observation.ndjson"]
        assert kept == landed(labs)["Observation.ndjson"]
    # Pages of 50 MB go by; of the 4,500 records more that come with them, each may hold 8 kB.
    assert peaks[5000] - peaks[500] < 36e6, peaks


# ------------------------------------------------------------------------------------ 21-22: pages and totals that are not right


BROKEN_PAGES = {
    "404": Fault("status", status=404),
    "410": Fault("status", status=410, body=outcome("expired")),
    "HTML": Fault("html"),
    "OperationOutcome": Fault("outcome"),
    "warning": Fault("status", status=200, body=outcome("informational", severity="warning")),
    "empty": Fault("empty"),
    "no content": Fault("status", status=204, body=b" "),
    "XML": Fault("status", status=200, body=b"<Bundle/>", headers={"Content-Type": "application/fhir+xml"}),
    "another resource": Fault("status", status=200, body=b'{"resourceType":"Patient","id":"p1"}'),
    "no resource": Fault("status", status=200, body=b"{}"),
    "a list": Fault("status", status=200, body=b"[]"),
}


def broken(name: str, where: Callable[[Request], bool], times: int = 1000) -> Fault:
    fault = BROKEN_PAGES[name]
    return Fault(fault.kind, status=fault.status, headers=fault.headers, body=fault.body, where=where, times=times)


@pytest.mark.parametrize(("name", "offset"), [*((name, 2) for name in BROKEN_PAGES), ("410", 4), ("HTML", 4)])
def test_promise_21_a_page_that_is_none_leaves_its_type_undone_until_the_next_run(fetch, server, name, offset):
    server.faults.append(broken(name, page("Observation", offset)))
    fetch.loud(fetch(server), 3, "Observation")
    expected = "refused" if name in ("404", "410") else "truncated"
    assert cells(fetch.study, "Observation") == dict.fromkeys(PATIENTS, expected)
    assert set(cells(fetch.study, "Condition").values()) == {"complete"}
    assert "Observation.ndjson" not in raw(fetch.study)
    assert fetch.manifest()["missing"] == [{"type": "Observation", "state": expected, "patients": 3}]
    server.faults.clear()
    before = len(server.requests)
    fetch.clean(fetch(server))
    assert set(cells(fetch.study, "Observation").values()) <= {"complete", "empty"}
    assert any(r.type == "Observation" and not r.param("_offset") for r in server.requests[before:])


@pytest.mark.parametrize("name", ["410", "HTML", "empty"])
def test_promise_21_once_is_enough(fetch, server, name):
    server.faults.append(broken(name, page("Observation"), times=1))
    fetch.clean_or_loud(fetch(server), 3)
    fetch.clean(fetch(server))


def given(number: int) -> list[Resource]:
    """A drug by reference, and the record that it was taken."""
    taken = {"status": "completed", "medicationReference": {"reference": f"Medication/vial{number}"}}
    return [
        {"resourceType": "Medication", "id": f"vial{number}"},
        about("MedicationStatement", f"g{number}", "p1", **taken),
    ]


@pytest.mark.parametrize("kind", ["Condition", "Patient", "Medication", "Encounter"])
@pytest.mark.parametrize("name", ["410", "OperationOutcome"])
def test_promise_21_of_any_type(fetch, name, kind):
    everything = [*CHILDREN, *given(1), *given(2)]
    with serving(everything) as server:
        server.faults.append(broken(name, page(kind)))
        fetch.loud(fetch(server), 3, kind)
        if kind in ("Medication", "Encounter"):  # without the others there is no pull at all
            assert cells(fetch.study, kind)["p1"] == ("refused" if name == "410" else "truncated")
        server.faults.clear()
        fetch.clean(fetch(server), landed(everything))


def test_promise_21_pages_that_expire_while_they_are_read(fetch, server):
    server.opaque_links = True

    def expire(_: Request) -> None:
        if server.searches("Observation"):
            server.expire()

    server.on_request = expire
    fetch.loud(fetch(server), 3, "410")
    server.on_request = None
    fetch.clean(fetch(server))


@pytest.mark.parametrize("by", [1, -1], ids=["more", "fewer"])
@ALL_TYPES
def test_promise_22_a_total_that_does_not_agree_is_loud(fetch, server, kind, by):
    def wrong(found: Resource) -> Resource:
        return {**found, "total": found["total"] + by} if "entry" in found else found

    server.faults.append(changing(wrong, lambda request: request.type == kind))
    fetch.loud(fetch(server), 3, kind, "counts")


@pytest.mark.parametrize("totals", [True, False], ids=["on the pages", "counted apart"])
def test_promise_22_an_entry_left_out_is_missed_by_the_total(fetch, server, totals):
    server.totals = totals
    server.faults.append(Fault("slice", where=lambda r: r.type == "Observation", times=1000))
    fetch.loud(fetch(server), 3, "Observation", "counts")


def test_promise_22_a_last_page_cut_off_is_missed_by_the_total(fetch, server):
    def last(found: Resource) -> Resource:
        return {**found, "link": [link for link in found["link"] if link["relation"] != "next"]}

    server.faults.append(changing(last, lambda r: r.type == "Observation" and r.param("_count") == plan.PAGE))
    fetch.clean_or_loud(fetch(server), 3)
    server.faults.clear()
    fetch.clean(fetch(server))


def test_promise_22_an_exact_total_is_asked_for_where_the_server_has_one(fetch, server):
    server.totals = "asked"
    fetch.clean(fetch(server))
    pages = [r for r in server.searches() if r.param("_summary") != "count" and not r.param("_offset")]
    assert len(pages) > 10
    assert {r.param("_total") for r in pages} == {"accurate"}
    assert all(one["total"] == one["matches"] for one in fetch.manifest()["source"]["searches"])


def test_promise_22_it_is_not_asked_for_where_the_server_does_not_list_it(fetch, server):
    fetch.clean(fetch(server))
    assert not any(r.param("_total") for r in server.requests)


def test_promise_22_without_a_total_the_matches_are_counted_apart(fetch, server):
    server.totals = False
    fetch.clean(fetch(server))
    assert all(one["total"] == one["matches"] for one in fetch.manifest()["source"]["searches"])
    assert fetch.manifest()["warnings"] == []


def test_promise_22_an_absent_total_is_named(fetch, server):
    server.totals = server.counts = False
    ran = fetch(server)
    fetch.clean(ran)
    searches = fetch.manifest()["source"]["searches"]
    assert {one["total"] for one in searches} == {None}
    said = f"{len(searches)} searches came without a total"
    assert any(said in warning for warning in fetch.manifest()["warnings"])
    assert said in ran.err


# ------------------------------------------------------------------------------------------ 23-24: data that change meanwhile


@pytest.mark.parametrize("fault", ["duplicate", "repeat"])
@ALL_TYPES
def test_promise_23_an_id_on_two_pages_counts_once_and_is_told(fetch, server, kind, fault):
    server.faults.append(Fault(fault, where=page(kind, 2)))
    fetch.clean(fetch(server))
    assert sum(one["repeated"] for one in fetch.searches(kind)) > 0
    assert all(one["matches"] == one["total"] for one in fetch.searches(kind))


def entry(resource: Resource) -> Resource:
    return {"fullUrl": f"urn:x:{resource['id']}", "resource": resource, "search": {"mode": "match"}}


VERSIONS = {
    "by time": ({"lastUpdated": "2026-01-01T00:00:00Z"}, {"lastUpdated": "2026-01-01T00:00:00.500Z"}),
    "by time of another zone": (
        {"lastUpdated": "2026-01-01T01:30:00+02:00"},
        {"lastUpdated": "2026-01-01T00:00:00+00:00"},
    ),
    "by version": ({"versionId": "9"}, {"versionId": "10"}),
    "time before version": (
        {"lastUpdated": "2026-01-01T00:00:00Z", "versionId": "2"},
        {"lastUpdated": "2026-01-02T00:00:00Z", "versionId": "1"},
    ),
}


@pytest.mark.parametrize(
    ("kind", "versions", "first"),
    [
        *(("Observation", versions, first) for versions in VERSIONS for first in ("older", "newer")),
        ("Patient", "by time", "older"),
        ("Condition", "by time", "newer"),
    ],
)
def test_promise_23_of_two_versions_the_newest_is_kept(fetch, kind, versions, first):
    """The first page holds one version, the last one another, whenever they are asked for."""
    older, newer = VERSIONS[versions]
    (subject,) = [
        one for one in CHILDREN if (one["resourceType"], one["id"][1:]) == (kind, "1") and one["id"][0] in "pco"
    ]
    others = [one for one in CHILDREN if one is not subject]
    here, there = ({**subject, "meta": meta} for meta in ((older, newer) if first == "older" else (newer, older)))
    with serving([here, *others]) as server:
        server.faults.append(changing(adding(entry(there)), lambda r: r.type == kind and "_offset" in r.path))
        fetch.clean(fetch(server), landed([{**subject, "meta": newer}, *others]))
    assert sum(one["repeated"] for one in fetch.searches(kind)) > 0


FIRST = {kind: next(one for one in CHILDREN if one["resourceType"] == kind) for kind in ("Condition", "Observation")}
ADDED = {"Condition": diagnosis("c9", "p2"), "Observation": lab("l9", "p1")}
SOMEBODY_ELSE = {"subject": {"reference": "Patient/other"}, "code": {"text": "asthma"}}


def exchange(server: FakeServer, kind: str) -> None:
    """An early record goes and a late one comes: the total stays, and the rest moves up past the end of the page."""
    server.delete(kind, FIRST[kind]["id"])
    server.update(ADDED[kind])


MEANWHILE: dict[str, Callable[[FakeServer, str], None]] = {
    "exchanged": exchange,
    "deleted": lambda server, kind: server.delete(kind, FIRST[kind]["id"]),
    "updated": lambda server, kind: server.update({**FIRST[kind], "language": "da"}),
    "added": lambda server, kind: server.update(ADDED[kind]),
    "given away": lambda server, kind: server.update({**FIRST[kind], **SOMEBODY_ELSE}),
}


def without_updates(statement: Resource) -> Resource:
    """A CapabilityStatement that does not list `_lastUpdated`."""
    for one in statement["rest"][0]["resource"]:
        one["searchParam"] = [param for param in one["searchParam"] if param["name"] != "_lastUpdated"]
    return statement


@pytest.mark.parametrize(
    ("updates", "totals", "counts"),
    [
        (True, True, True),
        (True, False, True),
        ("ignored", True, True),
        (False, True, True),
        (False, False, False),
    ],
    ids=["all", "counts apart", "_lastUpdated ignored", "no _lastUpdated", "nothing"],
)
@pytest.mark.parametrize(
    ("kind", "change"), [*(("Observation", change) for change in MEANWHILE), ("Condition", "exchanged")]
)
def test_promise_24_what_slips_from_page_to_page_is_caught(fetch, again, kind, change, updates, totals, counts):
    """The data change between the first page and the second."""
    changed = []
    with serving(stamped=True) as server:

        def meanwhile(request: Request) -> None:
            if page(kind)(request) and not changed:
                changed.append(request)
                MEANWHILE[change](server, kind)

        server.totals, server.counts, server.lies = totals, counts, True
        server.ignored = {"_lastUpdated"} if updates == "ignored" else set()
        server.declare = without_updates if updates is False else lambda statement: statement
        server.on_request = meanwhile
        ran = fetch(server, "--workers", "1")
        assert changed
        assert again(server).code == 0
    if ran.code:
        fetch.loud(ran, 3, kind)
    else:
        fetch.clean(ran, raw(again.study))


def test_promise_24_data_that_never_hold_still_are_loud(fetch, server):
    def meanwhile(request: Request) -> None:
        if page("Observation")(request):
            server.update(lab(f"l{len(server.requests)}", "p1"))

    server.on_request = meanwhile
    fetch.loud(fetch(server), 3, "Observation", "change faster")
    assert cells(fetch.study, "Observation") == dict.fromkeys(PATIENTS, "truncated")
    server.on_request = None
    assert fetch(server).code == 0


def test_promise_24_quiet_data_are_read_once(fetch, server):
    """Where the server can say that nothing was written, that costs two counts and no second pass."""
    fetch.clean(fetch(server))
    pages = [(r.path, r.body) for r in server.searches() if r.param("_summary") == ""]
    assert len(pages) == len(set(pages))


# ----------------------------------------------------------------------------------------------- 25-28: what stands on a page


def issue(severity: str, mode: str | None = "outcome") -> Resource:
    said = {"severity": severity, "code": "not-supported", "diagnostics": f"unsupported value {CANARY}"}
    found: Resource = {"resource": {"resourceType": "OperationOutcome", "issue": [said]}}
    return {**found, "search": {"mode": mode}} if mode else found


INCLUDED = lab("included", "p1")


@pytest.mark.parametrize(
    "extra",
    [
        {"resource": INCLUDED, "search": {"mode": "include"}},
        {"resource": patient("other"), "search": {"mode": "include"}},
        {"resource": diagnosis("c9", "p1"), "search": {"mode": "include"}},
        {"resource": {"resourceType": "Organization", "id": "ward"}},
        {"resource": diagnosis("c9", "p1")},
        issue("information"),
    ],
    ids=["of the type", "of another", "a Condition", "without a mode", "a Condition without a mode", "information"],
)
@pytest.mark.parametrize("totals", [True, False])
def test_promise_25_only_matches_of_the_type_asked_for_enter(fetch, server, extra, totals):
    server.totals = totals
    server.faults.append(changing(adding(extra)))
    fetch.clean(fetch(server))
    assert all(one["outcomes"] == [] for one in fetch.searches("Observation"))


def test_promise_25_without_any_mode_all_of_the_type_are_matches(fetch, server):
    server.modes = False
    fetch.clean(fetch(server))


@pytest.mark.parametrize(
    ("severity", "mode"),
    [("error", "outcome"), ("fatal", "outcome"), ("error", None), ("error", "include"), ("fatal", "match")],
)
def test_promise_25_an_error_among_the_entries_is_loud(fetch, server, severity, mode):
    server.faults.append(changing(adding(issue(severity, mode))))
    fetch.loud(fetch(server), 3, "Observation", "page 2", "not-supported", "unsupported value")
    assert set(cells(fetch.study, "Observation").values()) == {"truncated"}


@pytest.mark.parametrize("mode", ["outcome", None])
def test_promise_25_a_warning_stands_in_the_manifest(fetch, server, mode):
    server.faults.append(changing(adding(issue("warning", mode))))
    ran = fetch(server)
    fetch.clean(ran)
    assert ["not-supported"] in [one["outcomes"] for one in fetch.searches("Observation")]
    assert any("Observation search: the server warns (not-supported)" in w for w in fetch.manifest()["warnings"])
    assert "not-supported" in ran.err


BAD_ENTRIES: dict[str, Any] = {
    "no resource": {"search": {"mode": "match"}},
    "null": {"resource": None, "search": {"mode": "match"}},
    "a text": {"resource": "Observation/x", "search": {"mode": "match"}},
    "nothing": {},
    "no id": {"resource": {k: v for k, v in INCLUDED.items() if k != "id"}, "search": {"mode": "match"}},
    "an id that is none": {"resource": {**INCLUDED, "id": 5}, "search": {"mode": "match"}},
    "an empty id": {"resource": {**INCLUDED, "id": ""}, "search": {"mode": "match"}},
    "another type": {"resource": diagnosis("c9", "p1"), "search": {"mode": "match"}},
    "no type": {"resource": {"id": "x"}, "search": {"mode": "match"}},
    "no type, no mode": {"resource": {"id": "x"}},
    "a type that is no text": {"resource": {"resourceType": 5, "id": "x"}},
}


@pytest.mark.parametrize("bad", BAD_ENTRIES)
def test_promise_26_an_entry_that_is_none_is_loud_with_page_and_index(fetch, server, bad):
    server.totals = server.counts = False  # a total would tell that something is missing, but not what
    server.faults.append(changing(adding(BAD_ENTRIES[bad])))
    fetch.loud(fetch(server), 3, "Observation", "page 2", "entry 3")
    assert cells(fetch.study, "Observation") == dict.fromkeys(PATIENTS, "truncated")


NO_SEARCHSETS: dict[str, Callable[[Resource], Resource]] = {
    "batch": lambda found: {**found, "type": "batch-response"},
    "collection": lambda found: {**found, "type": "collection"},
    "no type": lambda found: {name: value for name, value in found.items() if name != "type"},
    "a List": lambda found: {**found, "resourceType": "List"},
    "entry an object": lambda found: {**found, "entry": {"0": found["entry"][0]}},
    "entry a text": lambda found: {**found, "entry": "none"},
    "an entry null": lambda found: {**found, "entry": [*found["entry"], None]},
    "an entry a list": lambda found: {**found, "entry": [*found["entry"], [found["entry"][0]]]},
}


@pytest.mark.parametrize(("bad", "offset"), [*((bad, "2") for bad in NO_SEARCHSETS), ("collection", ""), ("batch", "")])
def test_promise_26_what_is_no_searchset_is_loud(fetch, server, bad, offset):
    server.totals = server.counts = False
    server.faults.append(changing(NO_SEARCHSETS[bad], at("Observation", offset)))
    fetch.loud(fetch(server), 3, "Observation", "page 2" if offset else "page 1")


PART = {"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}


@ALL_TYPES
def test_promise_27_a_part_of_a_resource_is_loud(fetch, kind):
    (*_, last) = [one for one in CHILDREN if one["resourceType"] == kind and not one["id"].startswith("other")]
    cut = {**last, "meta": {"tag": [{"code": "x"}, PART]}}
    with serving([cut if one is last else one for one in CHILDREN]) as server:
        fetch.loud(fetch(server), 3, kind, "SUBSETTED")


def test_promise_27_a_part_of_what_is_read_by_its_id_is_loud(fetch, server):
    server.types = tuple(kind for kind in server.types if kind != "Medication")

    def cut(found: Resource) -> Resource:
        return {**found, "meta": {"tag": [PART]}}

    server.faults.append(changing(cut, lambda r: r.path.endswith("/Medication/anakinra")))
    fetch.loud(fetch(server), 3, "Medication", "SUBSETTED")
    server.faults.clear()
    fetch.clean(fetch(server))


def test_promise_27_parts_are_not_asked_for(fetch, server):
    fetch.clean(fetch(server))
    assert not any(r.param("_elements") or r.param("_summary") not in ("", "count") for r in server.requests)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_promise_28_short_pages_with_a_link_go_on(fetch, size):
    with serving(page_size=size) as server:
        fetch.clean(fetch(server))
        assert {r.param("_count") for r in server.searches() if r.param("_summary") == ""} == {plan.PAGE}


@pytest.mark.parametrize(
    ("kind", "offset", "times"),
    [
        ("Observation", "", 1),
        ("Observation", "2", 1),
        ("Observation", "2", 3),
        ("Condition", "2", 3),
        ("Patient", "", 1),
    ],
)
def test_promise_28_an_empty_page_with_a_link_goes_on(fetch, server, kind, offset, times):
    server.faults.append(Fault("blank", where=at(kind, offset), times=times))
    fetch.clean(fetch(server))


def test_promise_28_an_empty_page_may_have_no_member_entry(fetch, server):
    def bare(found: Resource) -> Resource:
        (own,) = (link["url"] for link in found["link"] if link["relation"] == "self")
        return {name: value for name, value in linked(found, f"{own}&_again=1").items() if name != "entry"}

    server.faults.append(changing(bare, times=1))
    fetch.clean(fetch(server))
    assert sent(server, page("Observation")) == 2


@ALL_TYPES
def test_promise_28_empty_pages_without_end_end(fetch, server, kind):
    server.faults.append(Fault("blank", where=lambda r: r.type == kind and not r.param("_summary"), times=10**6))
    fetch.loud(fetch(server), 3, kind, "circles")
    assert longest(server, kind) <= 3 * search.MAX_PAGES_WITHOUT_NEWS


# --------------------------------------------------------------------------------------------- 29: what the server says it is


@pytest.mark.parametrize("version", ["4.0", "4.0.0", "4.0.1", "4.3.0", "5.0.0"])
def test_promise_29_r4_r4b_and_r5_are_read(fetch, version):
    with serving(version=version) as server:
        fetch.clean(fetch(server))
    assert fetch.manifest()["source"]["fhirVersions"] == [version]


@pytest.mark.parametrize("version", ["3.0.2", "1.0.2", "4.2.0", "6.0.0", "40.0", "14.0.1"])
def test_promise_29_another_version_is_named_and_nothing_is_asked(fetch, version):
    with serving(version=version) as server:
        fetch.loud(fetch(server), 3, version)
        assert [r.path for r in server.requests] == ["/fhir/metadata"]
    assert not fetch.study.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda said: {**said, "fhirVersion": None}, "no version"),
        (lambda said: {**said, "fhirVersion": 4.0}, "no version"),
        (lambda said: {**said, "fhirVersion": ""}, "no version"),
        (lambda said: {name: value for name, value in said.items() if name != "fhirVersion"}, "no version"),
        (lambda _: {"resourceType": "Conformance", "fhirVersion": "1.0.2"}, "DSTU2"),
        (lambda _: {"resourceType": "Patient", "id": "p1"}, "CapabilityStatement"),
        (lambda _: json.loads(outcome("processing")), "CapabilityStatement"),
        (lambda said: {**said, "rest": None}, "lists no Patient"),
        (lambda said: {**said, "rest": [{"mode": "client"}]}, "lists no Patient"),
    ],
    ids=["null", "number", "blank", "none", "DSTU2", "a Patient", "OperationOutcome", "no rest", "a client's"],
)
def test_promise_29_no_statement_or_no_version_is_loud(fetch, server, change, words):
    server.declare = change
    fetch.loud(fetch(server), 3, "127.0.0.1", words)
    assert [r.path for r in server.requests] == ["/fhir/metadata"]


@pytest.mark.parametrize("name", ["404", "410", "HTML", "empty", "no resource", "a list", "XML"])
def test_promise_29_no_statement_at_all_is_loud(fetch, server, name):
    server.faults.append(broken(name, lambda request: request.path.endswith("/metadata")))
    fetch.loud(fetch(server), 3, "metadata")
    assert [r.path for r in server.requests] == ["/fhir/metadata"]


# ------------------------------------------------------------------------------------------ what servers do in their own way


def persons_in_urls(server: FakeServer) -> list[str]:
    """The first requests of searches whose URL names a person; next links are the server's own words."""
    return [r.path for r in server.searches() if r.method == "GET" and "_offset" not in r.path and "p1" in r.path]


def test_what_names_persons_is_posted(fetch, server):
    fetch.clean(fetch(server))
    assert persons_in_urls(server) == []


@pytest.mark.parametrize("switch", ["posts", "reads_forms"])
def test_a_server_that_takes_no_posted_search_is_asked_by_get(fetch, server, switch):
    setattr(server, switch, False)
    fetch.clean(fetch(server))
    assert sum(r.method == "POST" for r in server.requests) == 2  # one refusal may be a fault of the moment
    assert len(persons_in_urls(server)) > 10
    assert not any("urn%3Amrn" in r.path for r in server.requests)
    assert any("takes no search by POST" in warning for warning in fetch.manifest()["warnings"])


CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"


def categorised(resources: list[Resource]) -> list[Resource]:
    codes = {"l": "laboratory", "o": "survey"}
    return [
        {**one, "category": [{"coding": [{"system": CATEGORY, "code": codes[one["id"][0]]}]}]}
        if one["resourceType"] == "Observation" and one["id"][0] in codes and one["id"] != "other-l"
        else one
        for one in resources
    ]


def test_a_server_that_demands_a_category_is_asked_for_each(fetch):
    everything = categorised(CHILDREN)
    with serving(everything) as server:
        server.needs_category = True
        ran = fetch(server)
        fetch.clean(ran, landed(everything))
        assert {r.param("category") for r in server.searches("Observation")} > {"laboratory", "survey", "imaging"}
    assert "by category only" in ran.err
    assert any("without a standard category" in warning for warning in fetch.manifest()["warnings"])


# ------------------------------------------------------------------------------------------- what a server does not give


EVERYTHING = [*COHORT, about("Procedure", "s1", "p1", status="completed", code={"text": "biopsy"})]


class Text(HTMLParser):
    """The text of a page."""

    def __init__(self, page_text: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.feed(page_text)

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def says(study: Path) -> str:
    return " ".join(" ".join(Text((study / "report.html").read_text(encoding="utf-8")).parts).split())


def report(study: Path) -> Any:
    return json.loads((study / "measure-report.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("status", "code"), [(403, 4), (404, 3)])
def test_a_type_that_is_refused_makes_a_partial_pull(crmo, tmp_path, status, code):
    study = tmp_path / "study"
    with FakeServer(EVERYTHING) as server:
        server.faults.append(Fault("status", path="/Procedure", status=status, times=1000))
        ran = crmo("run", server.base, "-o", study)
    assert_loud(ran, study, code, "Procedure", str(status))
    manifest = json.loads((study / "raw" / "manifest.json").read_text())
    assert manifest["complete"] is False
    assert manifest["missing"] == [{"type": "Procedure", "state": "refused", "patients": 2}]
    assert cells(study, "Procedure") == {"p1": "refused", "p2": "refused"}
    assert cells(study, "MedicationStatement") == {"p1": "complete", "p2": "complete"}
    assert len(raw(study)["MedicationStatement.ndjson"].splitlines()) == 2
    # What is there serves nobody who does not ask for it.
    for command in ("build", "measure"):
        assert_loud(
            crmo(command, study), study, 3, "incomplete", "Procedure refused for 2 patients", "--accept-partial"
        )


@pytest.fixture
def partial(crmo, tmp_path) -> Path:
    """A partial pull that somebody has taken as it is."""
    study = tmp_path / "study"
    with FakeServer(EVERYTHING) as server:
        server.faults.append(Fault("status", path="/Procedure", status=403, times=1000))
        ran = crmo("extract", server.base, "--accept-partial", "-o", study)
    assert ran.code == 0, ran.err
    return study


def test_a_partial_pull_is_measured_only_on_request(crmo, partial):
    assert json.loads((partial / "raw" / "manifest.json").read_text())["complete"] is False
    assert_loud(crmo("measure", partial), partial, 3, "incomplete", "Procedure refused for 2 patients")
    ran = crmo("measure", partial, "--accept-partial")
    assert ran.code == 0, ran.err
    assert (partial / "results.csv").is_file()


def test_what_comes_of_a_partial_pull_says_so(crmo, partial):
    assert crmo("measure", partial, "--accept-partial").code == 0
    assert "Incomplete." in says(partial)
    assert report(partial)["status"] == "pending"
    assert "Partial: not every record came from the source (refused 2)" in report(partial)["text"]["div"]


def test_what_comes_of_a_whole_pull_does_not(crmo, tmp_path):
    with FakeServer(EVERYTHING) as server:
        assert crmo("run", server.base, "-o", tmp_path).code == 0
    assert "Incomplete." not in says(tmp_path)
    assert report(tmp_path)["status"] == "complete"
    assert "Partial" not in report(tmp_path)["text"]["div"]


def test_a_partial_pull_becomes_whole_when_the_server_gives_the_rest(crmo, tmp_path):
    with FakeServer(EVERYTHING) as server:
        server.faults.append(Fault("status", path="/Procedure", status=403, times=1000))
        assert crmo("extract", server.base, "-o", tmp_path / "study").code == 4
        server.faults.clear()
        assert crmo("run", server.base, "-o", tmp_path / "study").code == 0
    assert cells(tmp_path / "study", "Procedure") == {"p1": "complete", "p2": "empty"}
    assert report(tmp_path / "study")["status"] == "complete"


@pytest.fixture
def without_events() -> Iterator[FakeServer]:
    with FakeServer(EVERYTHING) as server:
        server.types = tuple(kind for kind in server.types if kind != "AdverseEvent")
        yield server


def test_a_type_that_the_server_does_not_have_makes_a_partial_pull(crmo, without_events, tmp_path):
    study = tmp_path / "study"
    assert_loud(crmo("run", without_events.base, "-o", study), study, 3, "AdverseEvent", "absent", "--accept-partial")
    assert cells(study, "AdverseEvent") == {"p1": "unsupported", "p2": "unsupported"}
    assert_loud(crmo("measure", study), study, 3, "AdverseEvent unsupported for 2 patients")
    assert not any(r.type == "AdverseEvent" for r in without_events.requests)


def test_a_type_that_the_server_does_not_have_is_taken_on_request(crmo, without_events, tmp_path):
    study = tmp_path / "study"
    assert crmo("extract", without_events.base, "--accept-partial", "-o", study).code == 0
    assert crmo("measure", study, "--accept-partial").code == 0
    assert "Incomplete." in says(study)
    assert report(study)["status"] == "pending"
    assert "unsupported 2" in report(study)["text"]["div"]


def test_what_the_hospital_says_it_does_not_have_is_not_missing(crmo, without_events, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("crmo-fhir.toml").write_text('absent = ["AdverseEvent"]\n')
    assert crmo("run", without_events.base).code == 0
    study = tmp_path / "study"
    assert cells(study, "AdverseEvent") == {"p1": "empty", "p2": "empty"}
    assert json.loads((study / "raw" / "manifest.json").read_text())["complete"] is True
    assert report(study)["status"] == "complete"


def test_a_type_that_is_there_is_asked_for_whatever_the_hospital_says(crmo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("crmo-fhir.toml").write_text('absent = ["Procedure"]\n')
    with FakeServer(EVERYTHING) as server:
        assert crmo("run", server.base).code == 0
    assert cells(tmp_path / "study", "Procedure") == {"p1": "complete", "p2": "empty"}
