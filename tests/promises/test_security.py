"""Promises 62-71, and 85 as far as a pull goes: hostile records, hostile servers, and what must be seen by nobody."""

import gzip
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import jwt
import pytest
import requests
from fake.certificates import Authority
from fake.export import Export, in_progress
from fake_oauth import Fault as Refusal
from fake_server import FakeServer, Fault, Request, Resource, outcome
from support import Ran

from crmo_fhir import cli, landing
from crmo_fhir.fhir import client, strict
from crmo_fhir.model.records import READ_TYPES
from promises.records import COHORT, about, assert_loud, counted, diagnosis, drug, files, lines, patient, raw
from promises.test_network import CANARY, MEDICATION, TOKEN, Extraction, child, contents, landed, serving
from promises.test_sign_in import (
    CLIENT,
    EC_KEY,
    LOCKED,
    PASSWORD,
    PEM,
    PKCS8,
    Hospital,
    is_of_a_patient,
    jwk_of,
    settle,
    write,
)

BASIC = "canary-user:canary-basic"


@pytest.fixture
def fetch(crmo, monkeypatch, tmp_path) -> Iterator[Extraction]:
    monkeypatch.chdir(tmp_path)
    yield Extraction(crmo, monkeypatch, tmp_path)
    settle()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving() as fake:
        yield fake


def begun(*arguments: object, code: str = "", umask: int = 0o022, **environment: str) -> subprocess.Popen[str]:
    """The program as a process of its own, in a world that has nothing of this one; `code` in its place starts it."""
    how = ["-c", code] if code else ["-m", "crmo_fhir"]
    return subprocess.Popen(
        [sys.executable, *how, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        umask=umask,
        env={"PATH": os.environ["PATH"], **environment},
    )


def program(*arguments: object, **more: Any) -> Ran:
    """The program, run to its end."""
    process = begun(*arguments, **more)
    out, err = process.communicate(timeout=60)
    return Ran(process.returncode, out, err)


def tree(folder: Path, *but: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder: mode and content."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() and not path.is_symlink() else b"",
        )
        for path in sorted(folder.rglob("*"))
        if not any(path == one or one in path.parents for one in but)
    }


# ------------------------------------------------------------------------------------------- 62: a name becomes no path

IDS = {
    "two dots": "..",
    "one dot": ".",
    "upwards": "../../x",
    "absolute": "/tmp/crmo-fhir-evil",
    "a device of Windows": "CON",
    "backslashes": "..\\..\\x",
    "escaped": "%2e%2e%2fx",
    "very long": "a" * 4000,
    "another case": "P1",
    "an option": "-rf",
    "a file of ours": "manifest.json",
    "a home": "~root",
    "NUL": "a\0b",
    "a line": "a\nb",
}
OURS = re.compile(
    rf"raw|raw/(({'|'.join(READ_TYPES)})\.ndjson|(manifest\.json|ledger\.csv|(origins|quarantine)\.ndjson))"
)


def of_a_child(identity: str) -> list[Resource]:
    """Records of every kind, all with one id."""
    prescribed = drug(identity, identity, medicationReference={"reference": f"Medication/{identity}"})
    del prescribed["medicationCodeableConcept"]
    return [
        patient(identity),
        diagnosis(identity, identity, encounter={"reference": f"Encounter/{identity}"}),
        prescribed,
        {"resourceType": "Medication", "id": identity, "code": {"text": "x"}},
        about("Encounter", identity, identity, status="finished"),
        # What the server does not have is read alone.
        about("Procedure", identity, "p1", status="completed", encounter={"reference": f"Encounter/{identity}/."}),
        about("Procedure", f"{identity}-2", "p1", status="completed", encounter={"reference": "Encounter/.."}),
    ]


@pytest.fixture
def outside(tmp_path, monkeypatch) -> Callable[[], dict[str, tuple[int, bytes]]]:
    """What lies around a study two folders down; it is worked in the folder of the study."""
    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    (tmp_path / "x").write_text("precious")
    monkeypatch.chdir(home)
    return lambda: tree(tmp_path, home / "study")


@pytest.mark.parametrize("identity", IDS.values(), ids=IDS)
@pytest.mark.parametrize("served", [False, True], ids=["file", "server"])
def test_promise_62_no_id_becomes_a_path(crmo, monkeypatch, outside, identity, served):
    fetch = Extraction(crmo, monkeypatch, Path.cwd())
    records = [*COHORT, *of_a_child(identity)]
    if served:
        with FakeServer([json.dumps(one) for one in records]) as server:
            before = outside()
            ran = fetch(server)
            steps = [step for request in server.requests for step in urlsplit(request.path).path.split("/")]
            assert not {".", "..", "%2E", "%2E%2E"} & set(steps)
    else:
        source = files(Path("source"), *records)
        before = outside()
        ran = fetch(str(source))
    assert outside() == before
    assert not Path("/tmp/crmo-fhir-evil").exists()
    if ran.code != 0:
        fetch.loud(ran, 3)
        return
    assert [name for name in contents(fetch.study) if not OURS.fullmatch(name)] == []
    kept = [json.loads(line)["id"] for line in raw(fetch.study)["Patient.ndjson"].splitlines()]
    # Nobody is merged with anybody; whoever no reference can name is missed aloud.
    assert (
        sorted(kept) == sorted(["p1", "p2", identity])
        or "1 qualifying Conditions refer" in ran.err
        or ("1 Condition resources refer to no Patient" in ran.err)
    )


@pytest.mark.parametrize("served", [False, True], ids=["file", "server"])
def test_promise_62_ids_that_differ_in_case_are_two_children(crmo, tmp_path, served):
    records = [*COHORT, patient("P1"), diagnosis("C1", "P1"), drug("M1", "P1")]
    study = tmp_path / "study"
    if served:
        with FakeServer(records) as fake:
            ran = crmo("run", fake.base, "-o", study)
    else:
        ran = crmo("run", files(tmp_path / "s", *records), "-o", study)
    assert ran.code == 0, ran.err
    assert counted(study, "cohort") == ("3", "3")
    assert counted(study, "tnfi-clinical-treated")[1] == "3"


@pytest.mark.parametrize("kind", ["../../evil", "/tmp/evil", "..", "CON"])
@pytest.mark.parametrize("way", ["file", "Bundle", "server", "export"])
def test_promise_62_no_type_becomes_a_path(crmo, monkeypatch, outside, kind, way):
    fetch = Extraction(crmo, monkeypatch, Path.cwd())
    evil = {"resourceType": kind, "id": "e", "subject": {"reference": "Patient/p1"}}
    if way in ("file", "Bundle"):
        source = files(Path("source"), *COHORT, **({"evil__ndjson": lines(evil)} if way == "file" else {}))
        bundle = {"resourceType": "Bundle", "type": "collection", "entry": [{"fullUrl": "../../x", "resource": evil}]}
        if way == "Bundle":
            (source / "b.json").write_text(json.dumps(bundle))
        before = outside()
        ran = fetch(str(source))
    else:
        with serving() as server:
            if way == "export":
                export = Export(server)
                export.extra.append({"type": kind, "url": f"{server.origin}/bulk/file/0/1/../../x"})
            else:
                entry = {"resource": evil, "search": {"mode": "match"}}
                server.faults.append(
                    Fault("change", path="/Procedure", change=lambda said: {**said, "entry": [entry]}, times=99)
                )
            before = outside()
            ran = fetch(server, "--mode", "bulk" if way == "export" else "search")
    assert outside() == before
    if kind == "CON" and ran.code == 0:  # by its spelling a type, and one that nobody reads
        assert [name for name in contents(fetch.study) if not OURS.fullmatch(name)] == []
    else:
        fetch.loud(ran, 3)


def test_promise_62_nothing_in_a_source_leads_out_of_it(crmo, monkeypatch, outside):
    fetch = Extraction(crmo, monkeypatch, Path.cwd())
    Path("secret.ndjson").write_bytes(lines(patient("secret"), diagnosis("secret", "secret")))
    source = files(Path("source"), *COHORT)
    (source / "link.ndjson").symlink_to(Path("secret.ndjson").resolve())
    (source / "folder").symlink_to(Path.cwd())
    (source / "-rf ..\\..\\x\n.ndjson").write_bytes(lines(patient("p3")))
    before = outside()
    fetch.clean(fetch(str(source)), landed(list(COHORT)))
    assert outside() == before


# --------------------------------------------------------------------------------------------- 63: bombs and endless lines

LIMIT = 300_000_000
# The peak that the parent is told of begins with the parent's own; the process knows its own.
MEASURED = """
import sys
from crmo_fhir.cli import main
try:
    main()
finally:
    with open("/proc/self/status") as status:
        print(next(line for line in status if line.startswith("VmHWM")), file=sys.stderr)
"""
UNLIMITED = """
import resource
from crmo_fhir.cli import main
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
main()
"""


def loud_and_small(study: Path, *arguments: object, says: str) -> None:
    """Exit 3 and one line, with the memory of the process and the disk within their limits."""
    ran = program("extract", *arguments, "-o", study, code=MEASURED, CRMO_FHIR_TOKEN=TOKEN)
    said, peak = ran.err.rsplit("VmHWM:", 1)
    assert_loud(Ran(ran.code, ran.out, said), study, 3, says)
    assert int(peak.split()[0]) * 1024 < LIMIT
    assert sum(path.stat().st_size for path in study.rglob("*") if path.is_file()) < LIMIT


@pytest.mark.parametrize("kind", ["line", "packed line", "document"])
def test_promise_63_an_endless_line_in_a_folder_is_loud(tmp_path, kind):
    source = files(tmp_path / "source", *COHORT)
    head = b'{"resourceType":"Condition","id":"x","note":"'
    if kind == "line":
        with (source / "big.ndjson").open("wb") as file:
            file.write(head)
            file.truncate(2**30)
    else:
        # 1 GiB in members of 64 MiB, which is quickly made.
        name = "big.json.gz" if kind == "document" else "big.ndjson.gz"
        (source / name).write_bytes(gzip.compress(head) + 16 * gzip.compress(bytes(64 * 2**20), 1))
    loud_and_small(tmp_path / "study", source, says="128 MiB")


@pytest.mark.parametrize("kind", ["bomb", "stacked"])
def test_promise_63_bombs_of_a_server_are_loud_however_many_come_at_once(tmp_path, server, kind):
    server.faults.append(Fault(kind, where=is_of_a_patient, size=200 * 2**20, times=99))
    says = "MiB unpacked" if kind == "bomb" else "not asked for"
    loud_and_small(tmp_path / "study", server.base, "--workers", "8", says=says)


def test_promise_63_a_bomb_that_sends_on_is_loud(tmp_path, server):
    server.faults.append(
        Fault("bomb", path="/Condition", size=200 * 2**20, times=99, headers={"Location": f"{server.base}/Condition"})
    )
    plain = server.answer

    def moved(request: Request, fault: Fault | None) -> Any:
        answer = plain(request, fault)
        answer.status = 302 if fault else answer.status
        return answer

    server.answer = moved
    loud_and_small(tmp_path / "study", server.base, says="MiB unpacked")


def test_promise_63_a_bomb_in_an_export_is_loud(tmp_path, server):
    Export(server).token = f"Bearer {TOKEN}"
    server.faults.append(Fault("bomb", path="/bulk/file/", size=200 * 2**20, times=99))
    loud_and_small(tmp_path / "study", server.base, "--mode", "bulk", says="MiB unpacked")


# --------------------------------------------------------------------------------------------------------- 64: deep nesting

DEEP = b"[" * 100_000 + b"]" * 100_000
DEEP_OBJECT = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


def assert_soon(run: Callable[[], Ran], loud: Callable[[Ran], None]) -> None:
    """Loud within a second of work; what else the machine does is not counted."""
    before = time.process_time()
    ran = run()
    assert time.process_time() - before < 1
    loud(ran)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("line.ndjson", b'{"resourceType":"Condition","id":"x","a":' + DEEP + b"}\n"),
        ("line.ndjson", b'{"resourceType":"Condition","id":"x","a":' + DEEP_OBJECT + b"}\n"),
        ("whole.json", b'{\n"resourceType":"Condition","id":"x","a":' + DEEP + b"}\n"),
        ("bundle.json", b'{"resourceType":"Bundle","type":"collection","entry":[{"resource":' + DEEP + b"}]}"),
        ("bundle.json", b'{"resourceType":"Bundle","type":"collection","entry":' + DEEP + b"}"),
        ("array.json", DEEP),
        ("bundles.json", b'{"resourceType":"Bundle","entry":[{"resource":' * 20_000 + b"{}" + b"}]}" * 20_000),
    ],
    ids=["line", "objects", "document", "entry", "entries", "arrays", "Bundles in Bundles"],
)
def test_promise_64_deep_nesting_in_a_file_is_loud_and_soon(fetch, tmp_path, name, content):
    source = files(tmp_path / "source", *COHORT)
    (source / name).write_bytes(content)
    (source / f"packed-{name}.gz").write_bytes(gzip.compress(content))
    assert_soon(lambda: fetch(str(source)), lambda ran: fetch.loud(ran, 3, name))


@pytest.mark.parametrize("path", ["/metadata", "/Condition", "/Patient", "/Observation", "/_search"])
def test_promise_64_deep_nesting_from_a_server_is_loud_and_soon(fetch, server, path):
    # The first search by POST is a trial: a server that answers it with nonsense is asked by GET.
    server.faults.append(Fault("deep", path=path, skip=int(path == "/_search"), times=99))
    assert_soon(lambda: fetch(server), lambda ran: fetch.loud(ran, 3, "nested too deeply"))


def test_promise_64_a_deep_refusal_is_loud_and_soon(fetch, server):
    server.faults.append(Fault("status", path="/Condition", status=400, body=DEEP, times=99))
    assert_soon(lambda: fetch(server), lambda ran: fetch.loud(ran, 3, "400"))


@pytest.fixture
def hospital(fetch, monkeypatch, tmp_path) -> Iterator[Hospital]:
    """A server with a sign-in, and the locked key of its client."""
    monkeypatch.delenv("CRMO_FHIR_TOKEN")
    monkeypatch.setenv("CRMO_FHIR_KEY_PASSWORD", PASSWORD)
    made = Hospital(fetch, write(tmp_path / "key.pem", EC_KEY.private_bytes(PEM, PKCS8, LOCKED)))
    with made.server:
        yield made


@pytest.mark.parametrize("path", ["/token", "/.well-known/smart-configuration"])
def test_promise_64_deep_nesting_in_a_sign_in_is_loud_and_soon(hospital, path):
    hospital.server.faults.append(Fault("deep", path=path, times=99))
    assert_soon(hospital, lambda ran: hospital.loud(ran, code=ran.code))


# ------------------------------------------------------------------------------------------------------------------ 65: TLS

UNTRUSTED: dict[str, dict[str, Any]] = {
    "self-signed": {"self_signed": True},
    "wrong name": {"names": ("elsewhere.example",)},
    "expired": {"expired": True},
    "TLS 1.1 only": {"only_tls_1_1": True},
}


@pytest.fixture
def authority(tmp_path) -> Authority:
    folder = tmp_path / "authority"
    folder.mkdir()
    return Authority(folder)


@pytest.mark.parametrize("known", [False, True], ids=["unknown authority", "--ca-file"])
@pytest.mark.parametrize("made", UNTRUSTED.values(), ids=UNTRUSTED)
def test_promise_65_what_cannot_be_trusted_is_loud(fetch, authority, made, known):
    context = authority.server(*made.get("names", ()), **{n: v for n, v in made.items() if n != "names"})
    with serving(tls=context) as server:
        ran = fetch(server, *(("--ca-file", authority.ca_file) if known else ()))
        fetch.loud(ran, 5, "TLS", f"127.0.0.1:{server.port}")
        assert server.requests == []


def test_promise_65_the_authority_of_a_hospital_works(fetch, authority):
    with serving(tls=authority.server()) as server:
        fetch.clean(fetch(server, "--ca-file", authority.ca_file))


def test_promise_65_a_token_endpoint_is_held_to_the_same(hospital, authority):
    with FakeServer(tls=authority.server()) as elsewhere:
        hospital.oauth.endpoint = f"{elsewhere.origin}/token"
        hospital.loud(hospital(), "TLS", code=5)
        assert elsewhere.requests == []


def commands() -> dict[str, click.Command]:
    return {"crmo-fhir": cli.cli, **cli.cli.commands}


def test_promise_65_no_option_turns_verification_off(crmo):
    for name in commands():
        ran = crmo(*([] if name == "crmo-fhir" else [name]), "--help")
        assert ran.code == 0
        assert not re.search(r"-k\b|insecure|--no-verify|no-check|trust|self-signed|skip", ran.out, re.IGNORECASE)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONHTTPSVERIFY": "0"},
        {"REQUESTS_CA_BUNDLE": "{ca}", "CURL_CA_BUNDLE": "{ca}"},
        {"SSL_CERT_FILE": "{ca}", "SSL_CERT_DIR": "{folder}"},
    ],
    ids=["verify", "requests", "OpenSSL"],
)
def test_promise_65_no_variable_turns_verification_off(fetch, monkeypatch, authority, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(ca=authority.ca_file, folder=authority.folder))
    with serving(tls=authority.server()) as server:
        fetch.loud(fetch(server), 5, "TLS")
        assert server.requests == []


# -------------------------------------------------------------------------------------------------- 66: netrc and proxies


def test_promise_66_a_netrc_is_not_used(fetch, server, monkeypatch, tmp_path):
    netrc = write(tmp_path / ".netrc", b"machine 127.0.0.1 login canary-user password canary-basic\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert requests.utils.get_netrc_auth(server.base) == ("canary-user", "canary-basic")  # others would take it
    fetch.clean(fetch(server))
    assert {r.headers["authorization"] for r in server.requests} == {f"Bearer {TOKEN}"}
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.delenv("CRMO_FHIR_TOKEN")
    server.requests.clear()
    assert fetch.crmo("extract", server.base, "-o", tmp_path / "other").code == 0
    assert not [r for r in server.requests if "authorization" in r.headers]


def test_promise_66_a_netrc_is_not_used_to_sign_in(hospital, monkeypatch, tmp_path):
    write(tmp_path / ".netrc", b"default login canary-user password canary-basic\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    hospital.clean(hospital())
    assert not [r for r in hospital.token_requests() if "authorization" in r.headers]


@pytest.mark.parametrize("lower", [False, True], ids=["upper case", "lower case"])
@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY", "HTTPS_PROXY"])
def test_promise_66_a_proxy_variable_is_not_used(fetch, monkeypatch, authority, name, lower):
    tls = authority.server() if name == "HTTPS_PROXY" else None
    with FakeServer() as proxy, serving(tls=tls) as server:
        monkeypatch.setenv(name.lower() if lower else name, proxy.origin)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        fetch.clean(fetch(server, "--ca-file", authority.ca_file))
        assert proxy.requests == []


# --------------------------------------------------------------------------------------------------- 69: the terminal

HOSTILE = "\x1b[2J\x1b]0;pwned\x07\rcrmo-fhir: forged\n\x9b31m\u202eevil\u2066\u2028\x7f\x00\u200b"


def assert_harmless(ran: Ran) -> None:
    """Nothing that moves a cursor, turns text about or begins a line of its own."""
    for sign in ran.out + ran.err:
        assert sign == "\n" or unicodedata.category(sign) not in ("Cc", "Cf", "Zl", "Zp", "Co", "Cs"), ascii(ran)
    assert "\ncrmo-fhir: forged" not in f"\n{ran.out}\n{ran.err}"


@pytest.mark.parametrize("member", ["diagnostics", "details", "code", "severity", "location"])
@pytest.mark.parametrize("status", [400, 500, 200])
def test_promise_69_an_outcome_cannot_write_to_the_terminal(fetch, server, member, status):
    issue = {"severity": "error", "code": "invalid", "diagnostics": "unknown parameter"}
    issue[member] = {"text": HOSTILE} if member == "details" else [HOSTILE] if member == "location" else HOSTILE
    if member == "details":
        del issue["diagnostics"]
    said = json.dumps({"resourceType": "OperationOutcome", "issue": [issue]}).encode()
    server.faults.append(Fault("status", path="/Observation", status=status, body=said, times=99))
    ran = fetch(server, "--retry-budget", "1")
    assert ran.code in (3, 5)
    assert_harmless(ran)
    assert "forged" not in ran.err
    assert "evil" not in ran.err


def test_promise_69_a_warning_in_a_page_cannot(fetch, server):
    issue = {"severity": "warning", "code": HOSTILE, "diagnostics": HOSTILE}
    entry = {"resource": {"resourceType": "OperationOutcome", "issue": [issue]}, "search": {"mode": "outcome"}}
    server.faults.append(
        Fault("change", path="/Observation", change=lambda s: {**s, "entry": [*s.get("entry", ()), entry]}, times=99)
    )
    ran = fetch(server, "-vvv")
    assert_harmless(ran)
    assert "forged" not in ran.err


@pytest.mark.parametrize("command", ["extract", "probe"])
@pytest.mark.parametrize(
    "said",
    [
        {"software": {"name": f"good {HOSTILE}", "version": HOSTILE}},
        {"fhirVersion": f"4.0.1{HOSTILE}"},
        {"fhirVersion": HOSTILE},
        {"resourceType": HOSTILE},
        {"rest": [{"mode": "server", "resource": [{"type": HOSTILE, "searchParam": [{"name": HOSTILE}]}]}]},
    ],
    ids=["software", "version", "no version", "type", "resources"],
)
def test_promise_69_a_capability_statement_cannot(fetch, server, command, said):
    server.declare = lambda statement: {**statement, **said}
    options = ("-o", fetch.study) if command == "extract" else ()
    ran = fetch.crmo(command, server.base, "-vvv", *options)
    assert_harmless(ran)
    if "fhirVersion" in said:
        assert ran.code == 3
    elif command == "probe" and "software" in said:
        assert ran.out.startswith("good ")


RAW_HEADERS = {
    "Retry-After": "\x1b[2J\x9b31m",
    "Location": "http://127.0.0.1\x1b[2J:1/\x9b31m",
    "Content-Type": "text/\x1b[2Jhtml",
    "Content-Encoding": "\x1b[2J",
    "Date": "\x1b[2J",
    "WWW-Authenticate": "\x1b[2J",
}


@pytest.mark.parametrize("status", [200, 302, 401, 429])
def test_promise_69_headers_cannot(fetch, server, status):
    server.faults.append(Fault("status", path="/Condition", status=status, headers=RAW_HEADERS, times=99))
    ran = fetch(server, "-vvv", "--retry-budget", "1")
    assert ran.code != 0
    assert_harmless(ran)


def test_promise_69_a_link_cannot(fetch, server):
    server.link = lambda url: url.replace("/fhir/", f"/fhir/{HOSTILE}/")
    ran = fetch(server, "-vvv")
    assert ran.code == 3
    assert_harmless(ran)
    assert "forged" not in ran.err


def test_promise_69_an_export_cannot(fetch, server):
    export = Export(server)
    export.polls.append(in_progress("\x1b[2J 42%"))
    export.outcomes.append(json.loads(outcome("invalid", HOSTILE)))
    export.extra.append({"type": HOSTILE, "url": f"{server.origin}/bulk/file/0/1"})
    ran = fetch(server, "--mode", "bulk", "-vvv")
    assert ran.code == 3
    assert_harmless(ran)
    assert "forged" not in ran.err


@pytest.mark.parametrize("member", ["error", "error_description", "token_type", "scope"])
def test_promise_69_a_token_endpoint_cannot(hospital, member):
    answer = {"access_token": "x", "token_type": "bearer", "expires_in": 300, "scope": "", member: HOSTILE}
    hospital.oauth.faults = [Refusal(400 if "error" in member else 200, {}, json.dumps(answer).encode())]
    ran = hospital()
    assert ran.code == 4
    assert_harmless(ran)
    assert "forged" not in ran.err


def test_promise_69_records_and_their_codes_cannot(crmo, tmp_path):
    strange = drug(
        "m1", "p1", medicationCodeableConcept={"coding": [{"system": HOSTILE, "code": HOSTILE, "display": HOSTILE}]}
    )
    named = patient("p1", name=[{"family": HOSTILE}])
    one, other = tmp_path / "one", tmp_path / "other"
    ran = crmo("run", files(tmp_path / "s", named, *COHORT[1:4], strange), "-o", one)
    assert ran.code == 0, ran.err
    assert_harmless(ran)
    assert crmo("run", files(tmp_path / "t", *COHORT), "-o", other).code == 0
    assert_harmless(crmo("diff", one, other))


def test_promise_69_names_of_files_cannot(fetch, tmp_path):
    source = files(tmp_path / "source", *COHORT)
    name = HOSTILE.replace("\0", "").replace("/", "")
    (source / f"{name}.ndjson").write_bytes(b'{"resourceType":"Condition"\n')
    (source / name).mkdir()
    (source / name / "more.ndjson").write_bytes(b'{"resourceType":"Condition"\n')
    ran = fetch(str(source))
    fetch.loud(ran, 3, "more.ndjson" if name in ran.err else "ndjson:1")
    assert_harmless(ran)


# ------------------------------------------------------------------------------------------------------------ 70: secrets


def secrets_of(hospital: Hospital) -> list[str]:
    """Tokens, assertions, password, and the key in every form it can be written in."""
    numbers = jwk_of(EC_KEY)
    lines_of_key = hospital.key_file.read_text().splitlines()[1:-1]
    return [*hospital.secrets(), numbers["d"], *lines_of_key, TOKEN, "canary-basic", "Y2FuYXJ5LXVzZXI"]


def assert_no_secret(secrets: list[str], ran: Ran, *folders: Path) -> None:
    """In nothing that was printed, and in no file but the key itself."""
    assert len(secrets) > 3
    assert not [secret for secret in secrets if secret in ran.out + ran.err]
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and path.name != "key.pem":
                content = path.read_bytes()
                assert not [secret for secret in secrets if secret.encode() in content], path


def test_promise_70_no_command_shows_a_secret(hospital, monkeypatch, tmp_path):
    monkeypatch.setenv("CRMO_FHIR_TOKEN", TOKEN)
    monkeypatch.setenv("CRMO_FHIR_BASIC", BASIC)
    signed = ("--client-id", CLIENT, "--key-file", hospital.key_file, "-vvv")
    crmo, base = hospital.fetch.crmo, hospital.server.base
    rans = [
        crmo("extract", base, *signed, "-o", tmp_path / "one"),
        crmo("extract", base, *signed, "-o", tmp_path / "two"),
        crmo("probe", base, *signed),
        crmo("diff", tmp_path / "one", tmp_path / "two"),
    ]
    assert [ran.code for ran in rans] == [0, 0, 0, 0]
    assert "GET Condition" in rans[0].err
    ran = Ran(0, "".join(ran.out for ran in rans), "".join(ran.err for ran in rans))
    assert_no_secret(secrets_of(hospital), ran, tmp_path)


@pytest.mark.parametrize(
    "secret",
    [{"CRMO_FHIR_TOKEN": TOKEN}, {"CRMO_FHIR_BASIC": BASIC}],
    ids=["bearer", "basic"],
)
def test_promise_70_no_command_shows_what_is_in_the_environment(crmo, monkeypatch, server, tmp_path, secret):
    monkeypatch.delenv("CRMO_FHIR_TOKEN", raising=False)
    for name, value in secret.items():
        monkeypatch.setenv(name, value)
    study = tmp_path / "study"
    rans = [
        crmo("run", server.base, "-vvv", "-o", study),
        crmo("build", study),
        crmo("measure", study),
        crmo("probe", server.base, "-vvv"),
    ]
    assert [ran.code for ran in rans] == [0] * 4
    (header,) = {r.headers["authorization"] for r in server.searches()}
    server.faults.append(Fault("status", status=401, times=99))
    rans.append(crmo("extract", server.base, "-vvv", "-o", tmp_path / "other"))
    assert rans[-1].code == 4
    ran = Ran(0, "".join(ran.out for ran in rans), "".join(ran.err for ran in rans))
    assert_no_secret([TOKEN, "canary-basic", "canary-user", header.partition(" ")[2]], ran, tmp_path)


def crash(*_: object, **__: object) -> Any:
    raise RuntimeError(f"{TOKEN} {CANARY}")


CRASHES: dict[str, tuple[object, str]] = {
    "sending": (requests.Session, "send"),
    "reading": (client._Sent, "chunks"),
    "signing": (jwt, "encode"),
    "parsing": (strict, "parse"),
    "understanding": (client.FhirClient, "resource"),
    "keeping": (landing.Journal, "keep"),
    "landing": (landing, "land"),
}


@pytest.mark.parametrize("place", CRASHES.values(), ids=CRASHES)
def test_promise_70_a_crash_shows_no_secret(hospital, monkeypatch, tmp_path, place):
    with monkeypatch.context() as patch:
        patch.setattr(*place, crash)
        ran = hospital.fetch.crmo(
            "extract", hospital.server.base, "--client-id", CLIENT, "--key-file", hospital.key_file, "-vvv",
            "-o", tmp_path / "study",
        )  # fmt: skip
    assert ran.code == 1
    assert "RuntimeError" in ran.err
    assert "Traceback" not in ran.out + ran.err
    assert CANARY not in ran.out + ran.err
    assert_no_secret(secrets_of(hospital), ran, tmp_path)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
def test_promise_70_a_server_that_repeats_a_secret_finds_no_echo(fetch, server, status):
    said = outcome("login", f"{TOKEN} expired: authorization Bearer {TOKEN} of {CANARY}")
    headers = {"WWW-Authenticate": f'Bearer error="{TOKEN}"', "Location": f"/fhir/{TOKEN}?{TOKEN}={TOKEN}"}
    server.faults.append(Fault("status", path="/Observation", status=status, body=said, headers=headers, times=99))
    ran = fetch(server, "-vvv", "--retry-budget", "1")  # which asserts that nothing of it was printed
    assert ran.code in (3, 4, 5)
    assert not [p for p in fetch.study.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]


@pytest.mark.parametrize("token", [f"{TOKEN}\r\nX: y", f"{TOKEN} more", f"{TOKEN}-\xf8", f"{TOKEN}\x1b[2J"])
def test_promise_70_a_token_that_is_none_is_refused_and_not_repeated(fetch, server, monkeypatch, token):
    monkeypatch.setenv("CRMO_FHIR_TOKEN", token)
    fetch.loud(fetch(server), 4, "CRMO_FHIR_TOKEN")
    assert server.requests == []


@pytest.mark.parametrize("mode", ["search", "bulk"])
def test_promise_70_the_state_of_a_pull_that_was_cut_off_holds_no_secret(hospital, tmp_path, mode):
    export = Export(hospital.server)
    path = "/Observation" if mode == "search" else "/bulk/file/0/2"
    hospital.server.faults.append(Fault("status", path=path, status=503, times=99))
    ran = hospital("--mode", mode, "--retry-budget", "0")
    assert ran.code == 5
    left = [path.name for path in hospital.fetch.study.rglob("*")]
    assert "job.json" in left if mode == "bulk" else "request.json" in left
    assert export.deletes == []
    assert_no_secret(secrets_of(hospital), ran, tmp_path)


def test_promise_70_a_process_shows_no_secret_and_leaves_no_core(hospital, tmp_path):
    hospital.server.delay = 0.05
    process = begun(
        "extract", hospital.server.base, "--client-id", CLIENT, "--key-file", hospital.key_file, "-vvv",
        "-o", tmp_path / "study",
        code=UNLIMITED, CRMO_FHIR_KEY_PASSWORD=PASSWORD, CRMO_FHIR_TOKEN=TOKEN, CRMO_FHIR_BASIC=BASIC,
    )  # fmt: skip
    while len(hospital.data_requests()) < 3 and process.poll() is None:
        time.sleep(0.01)
    about_it = Path(f"/proc/{process.pid}")
    shown = (about_it / "cmdline").read_text()
    limits = (about_it / "limits").read_text()
    process.send_signal(signal.SIGABRT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGABRT
    assert CLIENT in shown
    assert re.search(r"Max core file size +0 ", limits)
    assert_no_secret(secrets_of(hospital), Ran(0, out + shown, err), tmp_path)


def test_promise_70_no_option_takes_a_secret():
    assert len(commands()) > 5
    for command in commands().values():
        for option in command.params:
            words = f"{option.name} {option.opts} {option.envvar}".lower()
            assert not re.search(r"token|secret|passw|basic|bearer|credential|authorization|api.?key|header", words)
            assert "key" not in words or isinstance(option.type, click.Path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("extract", "https://me:canary-basic@fhir.hospital.example/r4"),
        ("extract", "HTTPS://me:canary-basic@fhir.hospital.example/r4"),
        ("extract", "https://fhir.hospital.example/r4?access_token=canary-basic"),
        ("extract", "--token", "canary-basic"),
        ("extract", "--token=canary-basic"),
        ("extract", "https://fhir.hospital.example/r4", "--allow-origin", "https://me:canary-basic@other.example"),
        ("probe", "--server", "https://me:canary-basic@fhir.hospital.example/r4"),
    ],
)
def test_promise_70_a_secret_given_as_an_argument_is_refused_and_not_repeated(crmo, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    ran = crmo(*arguments)
    assert ran.code == 2
    assert "canary" not in ran.out + ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        'key_password = "canary-basic"',
        'token = "canary-basic"',
        'client_secret = "canary-basic"',
        'key_id = ["canary-basic"]',
        'key_id = "canary-basic',
    ],
)
def test_promise_70_a_secret_in_the_configuration_is_refused_and_not_repeated(crmo, monkeypatch, tmp_path, text):
    monkeypatch.chdir(tmp_path)
    Path("crmo-fhir.toml").write_text(f"[sign_in]\n{text}\n")
    ran = crmo("extract", "https://fhir.hospital.example/r4")
    assert ran.code == 2
    assert "canary" not in ran.out + ran.err


# -------------------------------------------------------------------------------------------------- 71: what is never fetched


def test_promise_71_no_address_in_a_record_is_fetched(fetch):
    with FakeServer() as evil:
        far = evil.base
        attachment = {"contentType": "application/pdf", "url": f"{far}/Binary/1"}
        endpoint = {"resourceType": "Endpoint", "id": "e", "address": f"{far}/wado"}
        one = child(1)
        records = [
            {**one[0], "photo": [attachment], "generalPractitioner": [{"reference": f"{far}/Practitioner/1"}]},
            *one[1:],
            MEDICATION,
            about("MedicationStatement", "x1", "p1", medicationReference={"reference": f"{far}/Medication/1"}),
            diagnosis("x2", "p1", encounter={"reference": f"{far}/Encounter/1"}),
            about("DiagnosticReport", "x3", "p1", status="final", presentedForm=[attachment]),
            about(
                "ImagingStudy",
                "x4",
                "p1",
                status="available",
                contained=[endpoint],
                endpoint=[{"reference": "#e"}, {"reference": f"{far}/Endpoint/2"}],
            ),
            about("Procedure", "x5", "p1", status="completed", instantiatesUri=[f"{far}/protocol"]),
            about("Observation", "x6", "p1", status="final", extension=[{"url": f"{far}/x", "valueUrl": f"{far}/y"}]),
            about("Observation", "x7", "p1", status="final", derivedFrom=[{"reference": f"{far}/ImagingStudy/1"}]),
        ]
        with serving(records) as server:
            fetch.clean(fetch(server, "--allow-origin", far), landed(records))
            addresses = {request.type for request in server.requests} - {"metadata"}
            assert addresses <= set(READ_TYPES)
        assert evil.requests == []


@pytest.mark.parametrize("doctype", [False, True], ids=["XML", "DTD"])
@pytest.mark.parametrize("path", ["/metadata", "/Condition", "/Observation"])
def test_promise_71_an_answer_in_xml_is_refused(fetch, server, tmp_path, path, doctype):
    with FakeServer() as evil:
        secret = tmp_path / "secret"
        secret.write_text("canary-file")
        entities = (
            f'<!DOCTYPE x [<!ENTITY a SYSTEM "{evil.base}/a"><!ENTITY b SYSTEM "file://{secret}">]>' if doctype else ""
        )
        body = f'<?xml version="1.0"?>{entities}<Bundle xmlns="http://hl7.org/fhir"><id value="&a;&b;"/></Bundle>'
        sent = Fault(
            "status",
            path=path,
            status=200,
            body=body.encode(),
            headers={"Content-Type": "application/fhir+xml"},
            times=99,
        )
        server.faults.append(sent)
        ran = fetch(server)
        fetch.loud(ran, 3, "no FHIR JSON")
        assert "canary" not in ran.err
        assert evil.requests == []


@pytest.mark.parametrize("doctype", [False, True], ids=["XML", "DTD"])
def test_promise_71_a_file_in_xml_is_refused(fetch, tmp_path, doctype):
    with FakeServer() as evil:
        entities = f'<!DOCTYPE x [<!ENTITY a SYSTEM "{evil.base}/a">]>' if doctype else ""
        body = f'<?xml version="1.0"?>{entities}<Bundle xmlns="http://hl7.org/fhir"><id value="&a;"/></Bundle>'
        ran = fetch(str(files(tmp_path / "source", *COHORT, bundle__xml=body.encode())))
        fetch.loud(ran, 3, "bundle.xml", "XML")
        assert evil.requests == []


# --------------------------------------------------------------------------------------------------------- 85: patients

PHI = {
    "name": [{"family": f"{CANARY}-family", "given": [f"{CANARY}-given"]}],
    "telecom": [{"system": "phone", "value": f"{CANARY}-phone"}],
    "address": [{"line": [f"{CANARY}-line"], "city": f"{CANARY}-city", "postalCode": f"{CANARY}-zip"}],
    "photo": [{"url": f"https://fhir.example/{CANARY}-photo"}],
    "contact": [{"name": {"family": f"{CANARY}-contact"}}],
    "extension": [{"url": "https://fhir.example/x", "valueString": f"{CANARY}-extension"}],
    "contained": [{"resourceType": "Organization", "id": "o", "name": f"{CANARY}-contained"}],
    "text": {"status": "generated", "div": f"<div xmlns='http://www.w3.org/1999/xhtml'>{CANARY}-narrative</div>"},
    "identifier": [{"system": f"https://fhir.example/{CANARY}-system", "value": f"{CANARY}-mrn"}],
}
NOTE = {"note": [{"text": f"{CANARY}-note"}], "text": PHI["text"]}
PATIENTS = [
    patient("p1", **PHI),
    # A record of the same person, found by the identifier alone.
    patient("p1b", **PHI),
    diagnosis("c1", "p1", subject={"reference": "Patient/p1", "display": f"{CANARY}-display"}, **NOTE),
    drug("m1", "p1", **NOTE),
    drug("m2", "p1b", medicationCodeableConcept={"text": f"{CANARY}-drug"}, **NOTE),
    about("Observation", "o1", "p1", status="final", code={"text": f"{CANARY}-code"}, valueString=f"{CANARY}-value"),
]


def assert_private(folder: Path) -> None:
    """Nobody but the owner reaches anything."""
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_promise_85_a_pull_shows_no_patient_and_is_its_owners_alone(tmp_path):
    temp = tmp_path / "temp"
    temp.mkdir()
    study = tmp_path / "new" / "folder" / "study"
    with serving(PATIENTS) as server:
        ran = program("run", server.base, "-vvv", "-o", study, umask=0, TMPDIR=str(temp), HOME=str(temp))
        assert ran.code == 0, ran.err
        assert len(raw(study)["Patient.ndjson"].splitlines()) == 2
        lines_sent = "".join(f"{r.method} {r.path}\n" for r in server.requests)
        by_identifier = [r for r in server.searches("Patient") if r.param("identifier")]
    assert CANARY not in lines_sent + ran.out + ran.err
    assert "GET Condition" in ran.err
    assert {(r.method, CANARY in r.body) for r in by_identifier} == {("POST", True)}
    assert CANARY not in (study / "raw" / "manifest.json").read_text()
    assert_private(study.parent.parent)
    assert list(temp.iterdir()) == []


def test_promise_85_without_searches_by_post_no_identifier_is_asked_for(fetch):
    with serving(PATIENTS) as server:
        server.posts = False
        ran = fetch(server, "-vvv")
        assert ran.code == 0, ran.err
        assert CANARY not in "".join(r.path for r in server.requests)
        assert not [r for r in server.requests if r.method == "GET" and "identifier" in r.path]


def test_promise_85_what_a_server_says_of_a_patient_is_not_repeated(fetch):
    said = outcome("invalid", f"parameter {CANARY}-diagnostics of patient Andersen-Nexø is not supported", "error")
    with serving(PATIENTS) as server:
        server.faults.append(Fault("status", path="/Observation", status=400, body=said, times=99))
        ran = fetch(server, "-vvv")
        fetch.loud(Ran(ran.code, ran.out, ran.err.splitlines()[-1]), 3, "Observation", "not supported")
    assert "Andersen" not in ran.err
    assert CANARY not in (fetch.study / "raw" / "manifest.json").read_text()
    ledger = (fetch.study / "raw" / "ledger.csv").read_text()
    assert CANARY not in ledger
    assert "Andersen" not in ledger


@pytest.mark.parametrize("place", ["path", "query", "parameter"])
def test_promise_85_what_a_link_says_of_a_patient_is_not_repeated(fetch, place):
    link = {
        "path": "{base}/PHI-CANARY/Observation?page=2",
        "query": "{base}/Observation?page=PHI-CANARY",
        "parameter": "{base}/Observation?PHI-CANARY=2",
    }[place]
    with serving() as server:
        server.link = lambda _: link.format(base=server.base)
        said = outcome("invalid", "no page for PHI-CANARY", "error")
        server.faults.append(Fault("status", path=CANARY, status=400, body=said, times=99))
        assert fetch(server, "-vvv").code == 3
        assert [r for r in server.requests if CANARY in r.path]


def test_promise_85_a_crash_tells_nothing_of_a_patient(fetch, monkeypatch):
    with serving(PATIENTS) as server:
        monkeypatch.setattr(landing, "land", crash)
        ran = fetch(server, "-vvv")
    assert ran.code == 1
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("mode", ["search", "bulk"])
def test_promise_85_the_state_of_a_pull_that_was_cut_off_is_its_owners_alone(tmp_path, mode):
    study = tmp_path / "study"
    with serving(PATIENTS) as server:
        Export(server)
        path = "/Observation" if mode == "search" else "/bulk/file/0/2"
        server.faults.append(Fault("status", path=path, status=503, times=99))
        ran = program("extract", server.base, "-vvv", "--mode", mode, "--retry-budget", "0", "-o", study, umask=0)
    assert ran.code == 5, ran.err
    assert CANARY not in ran.out + ran.err
    held = [path for path in study.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert held
    assert_private(study)
