"""Promises 53-61: SMART Backend Services by the command line, against a server that verifies assertions for real."""

import base64
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from fake.certificates import Authority
from fake_oauth import FakeOAuth
from fake_oauth import Fault as Refusal
from fake_server import FakeServer, Fault, Request
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from support import Ran

from crmo_fhir.fhir.sign_in import sign_in
from crmo_fhir.model.records import READ_TYPES
from promises.test_network import CANARY, WHOLE, Extraction, serving

CLIENT = "crmo-client"
PASSWORD = "canary-password"
PEM = serialization.Encoding.PEM
PKCS8, PKCS1 = serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL
OPEN = serialization.NoEncryption()
LOCKED = serialization.BestAvailableEncryption(PASSWORD.encode())
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP384R1())
KEYS = {"RS384": RSA_KEY, "ES384": EC_KEY}


def jwk_of(key: Any, **members: str) -> dict[str, Any]:
    """A key, private or public, as a JWK."""
    kind = RSAAlgorithm if isinstance(key, (rsa.RSAPrivateKey, rsa.RSAPublicKey)) else ECAlgorithm
    return {**kind.to_jwk(key, as_dict=True), **members}


def thumbprint(key: Any) -> str:
    """The key id of a key that has none, by hand (RFC 7638): the required members in order."""
    public = jwk_of(key.public_key())
    names = ("e", "kty", "n") if public["kty"] == "RSA" else ("crv", "kty", "x", "y")
    text = "{" + ",".join(f'"{name}":"{public[name]}"' for name in names) + "}"
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def write(path: Path, content: bytes | dict[str, Any], mode: int = 0o600) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    path.chmod(mode)
    return path


def settle() -> None:
    """Wait for what was on its way when a run ended: it may still ask, and say so."""
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(10)


class OpenMetadata:
    """Most servers show their CapabilityStatement to everybody; the fake server, with `authorized`, only to its clients."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.headers = {"Content-Type": "application/fhir+json"}

    def handle(self, method: str, path: str, headers: Any, body: str) -> tuple[int, dict[str, str], bytes] | None:
        if path != "/fhir/metadata":
            return None
        return 200, self.headers, json.dumps(self.server.declare(self.server._capabilities())).encode()


class Clock:
    """A clock that goes when told; what expires by it expires after so many requests, on a machine of any speed."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Hospital:
    """A server that gives records to whoever holds a live token, and the client that it knows."""

    fetch: Extraction
    key_file: Path
    clock: Callable[[], float] = time.monotonic
    server: FakeServer = field(default_factory=serving)
    refused: list[str] = field(default_factory=list)  # the Authorization headers that were answered with 401

    def __post_init__(self) -> None:
        keys = [jwk_of(key.public_key(), kid=kid) for name, key in KEYS.items() for kid in (thumbprint(key), name)]
        self.oauth = FakeOAuth(CLIENT, keys, clock=self.clock)
        self.oauth.origin = self.server.origin
        self.server.authorized = self.is_let_in
        self.server.parts += [self.oauth, OpenMetadata(self.server)]

    def is_let_in(self, header: str) -> bool:
        if self.oauth.valid(header):
            return True
        self.refused.append(header)
        return False

    def __call__(self, *options: object) -> Ran:
        ran = self.fetch(self.server, "--client-id", CLIENT, "--key-file", self.key_file, "-v", *options)
        settle()
        assert not [secret for secret in self.secrets() if secret in ran.out + ran.err]
        log = [line for line in ran.err.splitlines() if not re.search(r" (GET|POST) .+ \d{3} \d+ ms$", line)]
        return Ran(ran.code, ran.out, "\n".join(log))

    def secrets(self) -> list[str]:
        """Everything that must not be seen: tokens, assertions, the password."""
        assertions = [parse_qs(request.body)["client_assertion"][0] for request in self.token_requests()]
        return [*(token for token, _ in self.oauth.tokens), *assertions, PASSWORD]

    def token_requests(self) -> list[Request]:
        """What was sent to the token endpoint, the requests whose answer was lost among it."""
        return [request for request in self.server.requests if urlsplit(request.path).path == "/token"]

    def assertions(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Header and claims of every assertion."""
        texts = [parse_qs(request.body)["client_assertion"][0] for request in self.token_requests()]
        return [(jwt.get_unverified_header(t), jwt.decode(t, options={"verify_signature": False})) for t in texts]

    def scopes(self) -> list[str]:
        """The scopes that were asked for."""
        (asked,) = {parse_qs(request.body)["scope"][0] for request in self.token_requests()}
        return asked.split(" ")

    def data_requests(self) -> list[Request]:
        """What was asked of the records."""
        others = ("/token", "/fhir/metadata", "/fhir/.well-known/smart-configuration")
        return [request for request in self.server.requests if request.path not in others]

    def clean(self, ran: Ran, expected: dict[str, bytes] = WHOLE) -> None:
        """All that a run without any fault brings; the server found nothing wrong with the sign-in."""
        self.fetch.clean(ran, expected)
        assert not self.oauth.refusals

    def loud(self, ran: Ran, *words: str, code: int = 4) -> None:
        """Exit 4 and one line; no record was asked for."""
        self.fetch.loud(ran, code, *words)
        assert self.data_requests() == []


@pytest.fixture
def fetch(crmo, monkeypatch, tmp_path) -> Extraction:
    made = Extraction(crmo, monkeypatch, tmp_path)
    monkeypatch.delenv("CRMO_FHIR_TOKEN")
    monkeypatch.chdir(tmp_path)  # where crmo-fhir.toml is looked for
    return made


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return write(tmp_path / "key.pem", EC_KEY.private_bytes(PEM, PKCS8, OPEN))


@pytest.fixture
def hospital(fetch, key_file) -> Iterator[Hospital]:
    made = Hospital(fetch, key_file)
    with made.server:
        yield made


def configure(text: str) -> None:
    Path("crmo-fhir.toml").write_text(f"[sign_in]\n{text}\n")


def test_a_hospital_lets_its_client_in_and_nobody_else(hospital):
    hospital.clean(hospital())
    assert {request.headers["authorization"] for request in hospital.data_requests()} == {
        f"Bearer {hospital.oauth.tokens[0][0]}"
    }
    assert hospital.refused == []
    stranger = hospital.fetch.crmo("extract", hospital.server.base, "-o", hospital.fetch.study.with_name("other"))
    assert stranger.code == 4


# ----------------------------------------------------------------------------------------------------- 53: the assertion


@pytest.mark.parametrize("algorithm", KEYS)
def test_promise_53_the_assertion_is_what_smart_asks_for(hospital, algorithm):
    write(hospital.key_file, KEYS[algorithm].private_bytes(PEM, PKCS8, OPEN))
    before = int(time.time())
    hospital.clean(hospital())
    ((head, claims),) = hospital.assertions()
    assert head == {"typ": "JWT", "alg": algorithm, "kid": thumbprint(KEYS[algorithm])}
    assert set(claims) == {"iss", "sub", "aud", "exp", "jti"}
    assert (claims["iss"], claims["sub"], claims["aud"]) == (CLIENT, CLIENT, hospital.oauth.token_url)
    assert before < claims["exp"] <= time.time() + 300


@pytest.mark.parametrize("where", ["environment", "configuration", "JWK"])
def test_promise_53_the_key_id_is_the_registered_one(hospital, monkeypatch, where):
    if where == "environment":
        monkeypatch.setenv("CRMO_FHIR_KEY_ID", "ES384")
    elif where == "configuration":
        configure('key_id = "ES384"')
    else:
        write(hospital.key_file, jwk_of(EC_KEY, kid="ES384"))
    hospital.clean(hospital())
    assert [head["kid"] for head, _ in hospital.assertions()] == ["ES384"]


def test_promise_53_the_request_is_a_form_and_nothing_is_in_the_url(hospital):
    hospital.clean(hospital())
    (request,) = hospital.token_requests()
    assert (request.method, request.path) == ("POST", "/token")
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert "authorization" not in request.headers
    form = parse_qs(request.body, strict_parsing=True)
    assert set(form) == {"grant_type", "client_assertion_type", "client_assertion", "scope"}
    assert form["grant_type"] == ["client_credentials"]
    assert form["client_assertion_type"] == ["urn:ietf:params:oauth:client-assertion-type:jwt-bearer"]


def test_promise_53_every_token_request_has_a_jti_of_its_own_retries_too(hospital):
    hospital.server.faults.append(Fault("drop", path="/token"))
    hospital.oauth.faults = [Refusal(503)]
    renewals = []

    def expire(request: Request) -> None:
        if request.type == "Observation" and not renewals:
            renewals.append(request)
            hospital.oauth.revoke()

    hospital.server.on_request = expire
    hospital.clean(hospital())
    assert len(hospital.token_requests()) == 4  # lost, refused, taken; and the renewal
    assert len({claims["jti"] for _, claims in hospital.assertions()}) == 4


# ---------------------------------------------------------------------------------------------------------- 54: the grant


def all_but(kind: str, ending: str = "rs") -> str:
    return " ".join(f"system/{other}.{ending}" for other in READ_TYPES if other != kind)


NARROWER = {
    "a type less": (all_but("Observation"), "system/Observation.rs"),
    "no search": (f"{all_but('Observation')} system/Observation.r", "system/Observation.rs"),
    "for one patient": (f"{all_but('Observation')} patient/Observation.rs", "system/Observation.rs"),
    "on a condition": (f"{all_but('Observation')} system/Observation.rs?category=laboratory", "system/Observation.rs"),
    "to write": (f"{all_but('Observation')} system/Observation.cud", "system/Observation.rs"),
    "nothing of use": ("openid fhirUser", "system/Patient.rs"),
    "nothing": ("", "scope"),
}


@pytest.mark.parametrize(("granted", "said"), NARROWER.values(), ids=NARROWER)
@pytest.mark.parametrize("open_metadata", [True, False], ids=["open metadata", "closed metadata"])
def test_promise_54_a_narrower_grant_is_loud_before_the_first_record(hospital, granted, said, open_metadata):
    if not open_metadata:
        hospital.server.parts.pop()
    hospital.oauth.granted = granted
    ran = hospital()
    hospital.loud(ran, said)
    if granted:
        # What is missing is listed, and nothing else is.
        listed = re.findall(r"system/(\w+)\.rs", ran.err)
        assert sorted(listed) == (["Observation"] if "system/" in granted else sorted(READ_TYPES))


def test_promise_54_a_server_that_does_not_say_what_it_grants_is_not_read(hospital):
    hospital.oauth.changes = {"scope": None}
    hospital.loud(hospital(), "scope")


@pytest.mark.parametrize("granted", ["system/*.rs", "system/*.cruds", "system/*.read", all_but("", "read")])
def test_promise_54_a_wider_grant_will_do(hospital, granted):
    hospital.oauth.granted = granted
    hospital.clean(hospital())


def test_promise_54_a_probe_is_as_strict(hospital):
    hospital.oauth.granted = all_but("Observation")
    ran = hospital.fetch.crmo("probe", hospital.server.base, "--client-id", CLIENT, "--key-file", hospital.key_file)
    hospital.loud(ran, "system/Observation.rs")


def test_promise_54_a_grant_that_shrinks_while_the_pull_runs_is_loud(hospital):
    def shrink(request: Request) -> None:
        if request.type == "Observation":
            hospital.oauth.granted = all_but("Observation")
            hospital.oauth.revoke()

    hospital.server.on_request = shrink
    hospital.fetch.loud(hospital(), 4, "system/Observation.rs")


# --------------------------------------------------------------------------------------------------------- 55: the scopes


@pytest.mark.parametrize(
    ("discovery", "ending"),
    [
        ({"capabilities": ["client-confidential-asymmetric", "permission-v2"]}, "rs"),
        ({"capabilities": ["permission-v1", "permission-v2"]}, "rs"),
        ({"capabilities": ["permission-v1"]}, "read"),
        ({"scopes_supported": ["system/*.read"]}, "read"),
        ({}, "rs"),
    ],
    ids=["v2", "both", "v1", "v1 by its scopes", "not said"],
)
def test_promise_55_reading_is_asked_for_by_type_and_nothing_else(hospital, discovery, ending):
    hospital.oauth.discovery = discovery
    hospital.clean(hospital())
    assert hospital.scopes() == sorted(f"system/{kind}.{ending}" for kind in READ_TYPES)


def test_promise_55_what_will_not_be_read_is_not_asked_for(hospital):
    hospital.server.types = tuple(kind for kind in hospital.server.types if kind != "AdverseEvent")
    Path("crmo-fhir.toml").write_text('absent = ["AdverseEvent", "DiagnosticReport"]\n')
    hospital.clean(hospital())
    kinds = set(READ_TYPES) - {"AdverseEvent", "DiagnosticReport"}
    assert hospital.scopes() == sorted(f"system/{kind}.rs" for kind in kinds)


def test_promise_55_a_probe_asks_no_more(hospital):
    ran = hospital.fetch.crmo("probe", hospital.server.base, "--client-id", CLIENT, "--key-file", hospital.key_file)
    assert ran.code == 0, ran.err
    assert hospital.scopes() == sorted(f"system/{kind}.rs" for kind in READ_TYPES)


# ------------------------------------------------------------------------------------------------------ 56: the discovery


def test_promise_56_the_discovery_is_asked_for_below_the_base_and_unsigned(fetch, key_file):
    with FakeOAuth(CLIENT, [jwk_of(EC_KEY.public_key(), kid=thumbprint(EC_KEY))]) as oauth:
        oauth.base_path = "/tenant/7/r4"
        fetch.clean(fetch(oauth.base, "--client-id", CLIENT, "--key-file", key_file), {})
        asked = [request for request in oauth.requests if "well-known" in request.path]
        assert [request.path for request in asked] == ["/tenant/7/r4/.well-known/smart-configuration"]
        assert "authorization" not in asked[0].headers


def test_promise_56_a_relative_endpoint_is_resolved_against_the_base(hospital):
    hospital.oauth.relative = True
    hospital.clean(hospital())
    assert [claims["aud"] for _, claims in hospital.assertions()] == [hospital.oauth.token_url]


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("http://sign-in.example/token", "plain http"),
        ("http://127.0.0.1.example/token", "plain http"),
        ("//sign-in.example/token", "plain http"),
        (None, "token_endpoint"),
        ("ftp://sign-in.example/token", "https"),
        ("https://me:canary-password@sign-in.example/token", "https"),
    ],
)
def test_promise_56_an_endpoint_that_is_not_safe_or_not_there_is_loud(hospital, endpoint, said):
    hospital.oauth.endpoint = endpoint
    hospital.loud(hospital(), said)
    assert hospital.token_requests() == []


def test_promise_56_a_configured_endpoint_is_held_to_the_same(hospital):
    configure('token_url = "http://sign-in.example/token"')
    hospital.loud(hospital(), "plain http")


def test_promise_56_a_server_of_smart_1_says_it_in_its_capability_statement(hospital):
    hospital.oauth.discovery = None
    hospital.oauth.in_metadata = True
    security = hospital.oauth.capabilities()["rest"][0]["security"]
    hospital.server.declare = lambda said: {**said, "rest": [{**said["rest"][0], "security": security}]}
    hospital.clean(hospital())


# --------------------------------------------------------------------------------------------------------- 57: the renewal


def test_promise_57_a_short_token_is_renewed_before_it_ends(fetch, key_file, monkeypatch):
    clock = Clock()
    monkeypatch.setitem(sign_in.__kwdefaults__, "clock", clock)
    hospital = Hospital(fetch, key_file, clock, serving(page_size=1))
    hospital.oauth.lifetime = 2

    def go(_: Request) -> None:
        clock.now += 0.15

    hospital.server.on_request = go
    with hospital.server:
        hospital.clean(hospital("--workers", "1"))
    assert clock.now > 1010  # the pull took ten seconds and more by that clock
    assert hospital.refused == []
    moments = [at for _, at in hospital.oauth.tokens]
    assert len(moments) > 5
    # Within the lifetime of a token there is one request for its successor, never more.
    assert max(sum(first < at < first + 2 for at in moments) for first in moments) == 1


# --------------------------------------------------------------------------------------------------------- 58: one for all


def is_of_a_patient(request: Request) -> bool:
    return request.method == "POST" and request.is_search and request.type != "Patient"


def told(request: Request) -> tuple[str, str, str]:
    """What a request asks for, whenever that is."""
    path, body = (re.sub(r"_lastUpdated=ge[^&]+", "", text) for text in (request.path, request.body))
    return request.method, path, body


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_promise_58_a_401_to_many_workers_makes_one_token_request(hospital, workers):
    together = threading.Barrier(workers, action=hospital.oauth.revoke)
    struck: list[tuple[str, str, str]] = []
    lock = threading.Lock()

    def strike(request: Request) -> None:
        with lock:
            if not is_of_a_patient(request) or len(struck) == workers:
                return
            struck.append(told(request))
        together.wait(20)  # so many are open at once, and all of them lose their token

    hospital.server.on_request = strike
    hospital.clean(hospital("--workers", str(workers)))
    assert len(hospital.token_requests()) == 2
    assert len(hospital.refused) == workers
    # Those that were struck came once more, and no other did.
    with serving() as quiet:
        assert hospital.fetch.crmo("extract", quiet.base, "-o", hospital.fetch.study.with_name("quiet")).code == 0
    usual = Counter(map(told, (r for r in quiet.requests if r.path != "/fhir/metadata")))
    assert Counter(map(told, hospital.data_requests())) - usual == Counter(struck)


@pytest.mark.parametrize("workers", [1, 4])
def test_promise_58_a_401_to_the_new_token_too_is_loud_and_no_loop(hospital, workers):
    struck: list[tuple[str, str, str]] = []
    together = threading.Barrier(workers)

    def strike(request: Request) -> None:
        if is_of_a_patient(request):
            hospital.server.authorized = lambda _: False
            struck.append(told(request))
            if struck.count(told(request)) == 1:
                together.wait(20)

    hospital.server.on_request = strike
    hospital.fetch.loud(hospital("--workers", str(workers)), 4, "401")
    assert len(set(struck)) == workers
    assert max(Counter(struck).values()) == 2
    assert len(hospital.token_requests()) == 2


def test_promise_58_a_401_at_once_is_loud_and_no_loop(hospital):
    hospital.server.authorized = lambda header: False
    hospital.fetch.loud(hospital("--workers", "1"), 4, "401")
    assert len(hospital.data_requests()) == 2
    assert len(hospital.token_requests()) == 2


def test_promise_58_no_token_goes_to_the_token_endpoint_of_another_origin(fetch, hospital):
    with FakeOAuth(CLIENT, list(hospital.oauth.keys.values())) as elsewhere:
        hospital.oauth.endpoint = elsewhere.token_url
        hospital.server.authorized = elsewhere.valid

        def expire(request: Request) -> None:
            if request.type == "Observation" and len(elsewhere.tokens) == 1:
                elsewhere.revoke()

        hospital.server.on_request = expire
        hospital.clean(hospital())
        assert len(elsewhere.requests) == 2
        seen = "".join(f"{r.path}{r.headers}{r.body}" for r in elsewhere.requests)
        assert not [token for token, _ in elsewhere.tokens if token in seen]
        assert not [r for r in elsewhere.requests if "authorization" in r.headers]
        assert hospital.token_requests() == []


# -------------------------------------------------------------------------------------------------------- 59: what is said


@pytest.mark.parametrize("shift", [-400, -61 - 240, 90, 400])
def test_promise_59_a_wrong_clock_is_named(hospital, shift):
    hospital.oauth.date_shift = shift
    if -240 < shift < 240:
        hospital.oauth.keys.clear()  # the assertion is still good by such a clock: it is refused for its key
    hospital.loud(hospital(), "invalid_client", "clock skew", str(abs(shift))[:-1])


@pytest.mark.parametrize("shift", [0, 40, -40])
def test_promise_59_a_right_clock_is_not(hospital, shift):
    hospital.oauth.date_shift = shift
    hospital.oauth.keys.clear()
    ran = hospital()
    hospital.loud(ran, "invalid_client", "key")
    assert "skew" not in ran.err
    assert len(hospital.token_requests()) == 1


def test_promise_59_a_scope_that_is_refused_is_named(hospital):
    hospital.oauth.known_scopes = {"system/Patient.rs"}
    hospital.loud(hospital(), "invalid_scope", "system/Observation.rs")


# -------------------------------------------------------------------------------------------------------- 60: redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["same origin", "another origin"])
def test_promise_60_no_redirect_of_the_token_endpoint_is_followed(hospital, status, elsewhere):
    with FakeServer() as evil:
        target = f"{evil.origin}/token" if elsewhere else f"{hospital.server.origin}/token?again"
        hospital.oauth.faults = [Refusal(status, {"Location": target}, b"")]
        hospital.loud(hospital("--allow-origin", evil.base), "redirect", "token_url")
        assert evil.requests == []
    assert len(hospital.token_requests()) == 1


class Hops:
    """Sends searches of Conditions from place to place before they are answered."""

    def __init__(self, number: int, origin: str = "") -> None:
        self.number, self.origin = number, origin

    def handle(self, method: str, path: str, headers: Any, body: str) -> tuple[int, dict[str, str], bytes] | None:
        place, _, hop = path.partition("&_again=")
        if not path.startswith("/fhir/Condition?") or int(hop or 0) >= self.number:
            return None
        return 302, {"Location": f"{self.origin}{place}&_again={int(hop or 0) + 1}"}, b""


@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
@pytest.mark.parametrize("number", [1, 5])
def test_promise_60_redirects_within_the_origin_are_followed(hospital, number, absolute):
    hospital.server.parts.append(Hops(number, hospital.server.origin if absolute else ""))
    hospital.clean(hospital())
    assert {r.headers["authorization"] for r in hospital.data_requests()} == {f"Bearer {hospital.oauth.tokens[0][0]}"}


@pytest.mark.parametrize("number", [6, 10**9])
def test_promise_60_no_more_than_five_redirects_are_followed(hospital, number):
    hospital.server.parts.append(Hops(number))
    hospital.fetch.loud(hospital("--workers", "1"), 3, "5 redirects")
    # Other searches may have been on their way, none of them farther.
    asked = Counter(request.path.partition("&_again=")[0] for request in hospital.data_requests())
    assert max(asked.values()) == 6


@pytest.mark.parametrize("status", [301, 303, 307])
@pytest.mark.parametrize("kind", ["/Condition?", "/Observation/_search"], ids=["GET", "POST"])
def test_promise_60_a_redirect_to_another_origin_is_loud(hospital, status, kind):
    with FakeServer() as evil:
        headers = {"Location": f"{evil.base}{kind}"}
        hospital.server.faults.append(Fault("status", path=kind, status=status, headers=headers, times=99))
        hospital.fetch.loud(hospital(), 3, "another origin")
        assert evil.requests == []


@pytest.mark.parametrize("allowed", [False, True])
def test_promise_60_nothing_goes_from_https_to_plain_http(fetch, tmp_path, monkeypatch, allowed):
    monkeypatch.setenv("CRMO_FHIR_TOKEN", "canary-token")
    authority = Authority(tmp_path)
    with FakeServer() as plain, serving(tls=authority.server()) as server:
        headers = {"Location": f"{plain.base}/Condition"}
        server.faults.append(Fault("status", path="/Condition?", status=302, headers=headers, times=99))
        options = ("--allow-origin", plain.base) if allowed else ()
        fetch.loud(fetch(server, "--ca-file", authority.ca_file, *options), 3, "another origin")
        assert plain.requests == []


TRICKS = {
    "another port": "http://127.0.0.1:{evil}/fhir/Condition?a=1",
    "another name": "http://localhost:{own}/fhir/Condition?a=1",
    "no scheme": "//127.0.0.1:{evil}/fhir/Condition?a=1",
    "ours as the user": "http://127.0.0.1:{own}@127.0.0.1:{evil}/fhir/Condition?a=1",
    "theirs as the user": "http://127.0.0.1:{evil}\\@127.0.0.1:{own}/fhir/Condition?a=1",
    "theirs as the user, no ASCII": "http://127.0.0.1:{evil}\\@127.0.0.1:{own}/fhir/Condition?a=\xc3\xa9",
    "with a password": "http://me:secret@127.0.0.1:{own}/fhir/Condition?a=1",
    "backslashes": "http:\\\\127.0.0.1:{evil}\\fhir\\Condition?a=1",
    "three slashes": "http:///127.0.0.1:{evil}/fhir/Condition?a=1",
    "a file": "file:///etc/passwd",
    "another scheme": "ftp://127.0.0.1:{evil}/fhir/Condition?a=1",
    "no port": "http://127.0.0.1:x/fhir/Condition?a=1",
    "half a bracket": "http://[127.0.0.1:{own}/fhir/Condition?a=1",
}


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS)
@pytest.mark.parametrize("by", ["redirect", "next link"])
def test_promise_60_no_spelling_of_an_address_brings_a_token_elsewhere(hospital, trick, by):
    with FakeServer() as evil:
        url = trick.format(evil=evil.port, own=hospital.server.port)
        if by == "redirect":
            location = Fault("status", path="/Condition?", status=302, headers={"Location": url}, times=99)
            hospital.server.faults.append(location)
        else:
            link = [{"relation": "next", "url": url}]
            page = Fault("change", path="/Condition?", change=lambda said: {**said, "link": link}, times=99)
            hospital.server.faults.append(page)
        hospital.fetch.loud(hospital(), 3)
        assert evil.requests == []
        assert not [r for r in hospital.server.requests if r.headers.get("authorization", "").startswith("Basic")]


def test_promise_60_an_allowed_origin_gets_nothing_that_says_who_we_are(hospital):
    hospital.server.parts[-1].headers["Set-Cookie"] = "session=canary-cookie; Path=/"
    with serving() as other:
        hospital.server.parts.append(Hops(1, other.origin))
        ran = hospital("--allow-origin", other.base)
        hospital.fetch.clean_or_loud(ran, 3)
        assert other.searches("Condition")
        for request in other.requests:
            assert set(request.headers) <= {"host", "accept", "accept-encoding", "user-agent", "prefer", "connection"}
        assert [r for r in hospital.data_requests() if r.headers.get("cookie") == "session=canary-cookie"]
        seen = "".join(f"{r.path}{r.headers}{r.body}" for r in other.requests)
        assert CLIENT not in seen
        assert "canary" not in seen


# -------------------------------------------------------------------------------------------------------- 61: key files


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666, 0o440])
def test_promise_61_a_key_file_that_others_can_reach_is_refused(hospital, mode):
    hospital.key_file.chmod(mode)
    hospital.loud(hospital(), str(hospital.key_file), "chmod 600")
    assert hospital.token_requests() == []


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_promise_61_a_key_file_of_its_owner_alone_is_read(hospital, mode):
    hospital.key_file.chmod(mode)
    hospital.clean(hospital())


FORMS = {
    "PKCS 8": (EC_KEY.private_bytes(PEM, PKCS8, OPEN), "ES384"),
    "EC PRIVATE KEY": (EC_KEY.private_bytes(PEM, PKCS1, OPEN), "ES384"),
    "RSA PRIVATE KEY": (RSA_KEY.private_bytes(PEM, PKCS1, OPEN), "RS384"),
    "PKCS 8 with a password": (EC_KEY.private_bytes(PEM, PKCS8, LOCKED), "ES384"),
    "RSA PRIVATE KEY with a password": (RSA_KEY.private_bytes(PEM, PKCS1, LOCKED), "RS384"),
    "JWK": (jwk_of(RSA_KEY, kid="RS384"), "RS384"),
    "JWK without a key id": (jwk_of(EC_KEY), "ES384"),
    "JWKS": ({"keys": [jwk_of(RSA_KEY.public_key(), kid="RS384"), jwk_of(EC_KEY, kid="ES384")]}, "ES384"),
}


@pytest.mark.parametrize(("content", "algorithm"), FORMS.values(), ids=FORMS)
def test_promise_61_keys_of_every_form_sign_in(hospital, monkeypatch, content, algorithm):
    monkeypatch.setenv("CRMO_FHIR_KEY_PASSWORD", PASSWORD)
    write(hospital.key_file, content)
    hospital.clean(hospital())
    assert [head["alg"] for head, _ in hospital.assertions()] == [algorithm]


@pytest.mark.parametrize("password", ["", "canary-wrong"])
def test_promise_61_a_wrong_password_is_said_and_not_shown(hospital, monkeypatch, password):
    monkeypatch.setenv("CRMO_FHIR_KEY_PASSWORD", password)
    write(hospital.key_file, EC_KEY.private_bytes(PEM, PKCS8, LOCKED))
    ran = hospital()
    hospital.loud(ran, str(hospital.key_file), "CRMO_FHIR_KEY_PASSWORD")
    assert "canary" not in ran.out + ran.err


P256 = ec.generate_private_key(ec.SECP256R1())
SHORT = rsa.generate_private_key(public_exponent=65537, key_size=1024)
WRONG = {
    "a curve of another size": (P256.private_bytes(PEM, PKCS8, OPEN), "P-384"),
    "a curve of another size, JWK": (jwk_of(P256), "P-384"),
    "Ed25519": (ed25519.Ed25519PrivateKey.generate().private_bytes(PEM, PKCS8, OPEN), "P-384"),
    "a short RSA key": (SHORT.private_bytes(PEM, PKCS8, OPEN), "1024 bits"),
    "a public key": (EC_KEY.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo), "public"),
    "a public JWK": (jwk_of(EC_KEY.public_key()), "public"),
    "a shared secret": ({"kty": "oct", "k": CANARY}, "HMAC"),
    "a certificate": (b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "public"),
    "two keys": ({"keys": [jwk_of(EC_KEY, kid="a"), jwk_of(RSA_KEY, kid="b")]}, "key_id"),
    "no key": (CANARY.encode(), "no private key"),
    "nothing": (b"", "no private key"),
}


@pytest.mark.parametrize(("content", "said"), WRONG.values(), ids=WRONG)
def test_promise_61_a_wrong_key_is_a_clear_error(hospital, content, said):
    write(hospital.key_file, content)
    hospital.loud(hospital(), str(hospital.key_file), said)
    assert hospital.token_requests() == []


def test_promise_61_a_missing_key_file_is_named(hospital):
    hospital.key_file.unlink()
    hospital.loud(hospital(), str(hospital.key_file))
