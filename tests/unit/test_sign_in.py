"""SMART Backend Services over real sockets: what is sent, what is taken, what is refused, and what is never shown."""

import json
import logging
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from fake_oauth import FakeOAuth, Fault
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from crmo_fhir.errors import CrmoFhirError, NetworkError, SignInError
from crmo_fhir.fhir import sign_in as module
from crmo_fhir.fhir.client import FhirClient, Static
from crmo_fhir.fhir.sign_in import BackendServices, compute_missing, compute_scopes, read_key, sign_in

CLIENT = "canary-client"
PASSWORD = "canary-password"
TYPES = ("Patient", "Condition", "Observation")
ASKED = ["system/Condition.rs", "system/Observation.rs", "system/Patient.rs"]
PEM, PKCS8, PKCS1 = (
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.PrivateFormat.TraditionalOpenSSL,
)
OPEN = serialization.NoEncryption()
LOCKED = serialization.BestAvailableEncryption(PASSWORD.encode())

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP384R1())


def jwk_of(key: Any, **members: str) -> dict[str, Any]:
    """A key, private or public, as a JWK."""
    kind = RSAAlgorithm if isinstance(key, (rsa.RSAPrivateKey, rsa.RSAPublicKey)) else ECAlgorithm
    return {**kind.to_jwk(key, as_dict=True), **members}


def write(path: Path, content: bytes | dict[str, Any], mode: int = 0o600) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    path.chmod(mode)
    return path


def thumbprint(key: Any) -> str:
    """The thumbprint as PyJWT does not make it: from RFC 7638, by hand, with the names in order."""
    import base64
    import hashlib

    public = jwk_of(key.public_key())
    names = ("e", "kty", "n") if public["kty"] == "RSA" else ("crv", "kty", "x", "y")
    text = "{" + ",".join(f'"{name}":"{public[name]}"' for name in names) + "}"
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


class Clock:
    """A clock that goes when told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Setting:
    """A server with its registered client, and a session with it that waits for nothing."""

    oauth: FakeOAuth
    client: FhirClient
    key_file: Path
    clock: Clock
    waits: list[float]

    def sign_in(self, **options: Any) -> BackendServices:
        found = sign_in(
            self.client, CLIENT, self.key_file, **{"key_id": "rsa-1", "types": TYPES, "clock": self.clock, **options}
        )
        self.client.credentials = found
        return found

    def read(self, **options: Any) -> dict[str, Any]:
        self.sign_in(**options)
        return self.client.get("Patient")

    def refused(self, kind: type[CrmoFhirError] = SignInError, **options: Any) -> str:
        """The message of a sign-in that fails, which reads no record, and has no secret in it."""
        with pytest.raises(kind) as caught:
            self.read(**options)
        assert [r.path for r in self.oauth.requests if r.path.startswith("/fhir/Patient")] == []
        assert_no_secret(self, caught.value)
        return str(caught.value)


def secrets_of(setting: Setting) -> list[str]:
    """Everything that must not be seen: tokens, assertions, the private key, the password."""
    forms = [parse_qs(request.body) for request in setting.oauth.token_requests]
    assertions = [text for form in forms for text in form.get("client_assertion", [])]
    key = setting.key_file.read_text().splitlines()[1]
    tokens = [token for token, _ in setting.oauth.tokens]
    return [*tokens, *assertions, key, jwk_of(RSA_KEY)["d"], PASSWORD, "canary-body"]


def assert_no_secret(setting: Setting, error: BaseException) -> None:
    shown = "".join(traceback.format_exception(error))
    at: BaseException | None = error
    while at is not None:
        shown += f"{at!s}{at!r}{vars(at)}"
        at = at.__cause__ or at.__context__
    assert not [secret for secret in secrets_of(setting) if secret in shown]
    assert "\n" not in str(error)


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    keys = [jwk_of(RSA_KEY.public_key(), kid="rsa-1"), jwk_of(EC_KEY.public_key(), kid="ec-1")]
    keys += [jwk_of(key.public_key(), kid=thumbprint(key)) for key in (RSA_KEY, EC_KEY)]
    clock, waits = Clock(), list[float]()
    key_file = write(tmp_path / "key.pem", RSA_KEY.private_bytes(PEM, PKCS8, OPEN))
    with FakeOAuth(CLIENT, keys, clock=clock) as oauth:
        client = FhirClient(oauth.base, sleep=waits.append, retry_budget=5, workers=8)
        yield Setting(oauth, client, key_file, clock, waits)
        client.close()


# -------------------------------------------------------------------------------------------------- 53: the assertion


@pytest.mark.parametrize(
    ("key", "named", "expected"),
    [
        (RSA_KEY, "rsa-1", ("RS384", "rsa-1")),
        (EC_KEY, "ec-1", ("ES384", "ec-1")),
        (RSA_KEY, None, ("RS384", thumbprint(RSA_KEY))),
        (EC_KEY, None, ("ES384", thumbprint(EC_KEY))),
    ],
)
def test_promise_53_the_assertion_is_what_smart_asks_for(
    setting: Setting, key: Any, named: str | None, expected
) -> None:
    write(setting.key_file, key.private_bytes(PEM, PKCS8, OPEN))
    before = int(time.time())
    header = setting.sign_in(key_id=named).header()
    assert setting.oauth.valid(header)
    assert not setting.oauth.refusals
    ((head, claims),) = setting.oauth.assertions()
    assert (head["typ"], head["alg"], head["kid"]) == ("JWT", *expected)
    assert (claims["iss"], claims["sub"], claims["aud"]) == (CLIENT, CLIENT, setting.oauth.token_url)
    assert before < claims["exp"] <= time.time() + 300
    assert set(claims) == {"iss", "sub", "aud", "exp", "jti"}


def test_promise_53_the_request_is_a_form_with_nothing_in_the_url(setting: Setting) -> None:
    setting.sign_in().header()
    (request,) = setting.oauth.token_requests
    assert (request.method, request.path) == ("POST", "/token")
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert "authorization" not in request.headers
    form = parse_qs(request.body)
    assert form.pop("client_assertion")
    assert form == {
        "grant_type": ["client_credentials"],
        "client_assertion_type": ["urn:ietf:params:oauth:client-assertion-type:jwt-bearer"],
        "scope": [" ".join(ASKED)],
    }


def test_promise_53_every_request_has_its_own_jti_retries_included(setting: Setting) -> None:
    setting.oauth.faults = [Fault(503), Fault()]
    first = setting.sign_in().header()
    setting.client.credentials.refused(first)
    setting.client.credentials.header()
    assert len({claims["jti"] for _, claims in setting.oauth.assertions()}) == 4
    assert not setting.oauth.refusals


def test_promise_53_the_server_is_not_asked_for_a_signature_it_does_not_take(setting: Setting) -> None:
    setting.oauth.discovery["token_endpoint_auth_signing_alg_values_supported"] = ["ES384"]
    assert "no RS384 signatures; sign in with a key for ES384" in setting.refused()
    setting.oauth.discovery["token_endpoint_auth_signing_alg_values_supported"] = ["RS256"]
    assert "none of those that SMART requires" in setting.refused()
    assert not setting.oauth.token_requests


# ------------------------------------------------------------------------------------------------ 54: the granted scope


@pytest.mark.parametrize("asked_v1", [False, True])
@pytest.mark.parametrize("granted", ["system/Patient.{}", "system/Patient.{0} system/Condition.{0}"])
def test_promise_54_a_narrower_grant_is_loud_before_the_first_record(
    setting: Setting, granted: str, asked_v1: bool
) -> None:
    ending = "read" if asked_v1 else "rs"
    setting.oauth.discovery["capabilities"] = ["permission-v1" if asked_v1 else "permission-v2"]
    setting.oauth.granted = granted.format(ending)
    message = setting.refused()
    assert f"system/Observation.{ending}" in message
    assert (f"system/Condition.{ending}" in message) == ("Condition" not in granted)
    assert f"system/Patient.{ending}" not in message


@pytest.mark.parametrize(
    ("asked", "granted", "missing"),
    [
        ("system/Patient.rs", "system/Patient.rs", ""),
        ("system/Patient.rs", "system/*.rs", ""),
        ("system/Patient.rs", "system/*.cruds", ""),
        ("system/Patient.rs", "system/Patient.read", ""),
        ("system/Patient.rs", "system/*.read", ""),
        ("system/Patient.rs", "system/*.*", ""),
        ("system/Patient.rs", "system/Patient.r system/Patient.s", ""),
        ("system/Patient.read", "system/Patient.rs", ""),
        ("system/MeasureReport.write", "system/MeasureReport.cud", ""),
        ("system/MeasureReport.cu", "system/MeasureReport.write", ""),
        ("system/Patient.rs?_id=1", "system/Patient.rs", ""),
        ("openid", "openid", ""),
        ("system/Patient.rs", "system/Patient.r", "system/Patient.rs"),
        ("system/Patient.rs", "system/Patient.s", "system/Patient.rs"),
        ("system/Patient.rs", "system/Patient.sr", "system/Patient.rs"),
        ("system/Patient.rs", "system/Patient.", "system/Patient.rs"),
        ("system/Patient.rs", "system/Patient.write", "system/Patient.rs"),
        ("system/Patient.rs", "system/Patient.rs?_id=1", "system/Patient.rs"),
        ("system/Patient.rs", "patient/Patient.rs user/*.cruds", "system/Patient.rs"),
        ("system/Patient.rs", "system/PatientX.rs system/patient.rs", "system/Patient.rs"),
        ("system/*.rs", "system/Patient.rs", "system/*.rs"),
        ("system/MeasureReport.cu", "system/MeasureReport.c", "system/MeasureReport.cu"),
        ("openid", "system/*.cruds", "openid"),
    ],
)
def test_promise_54_what_a_grant_covers(asked: str, granted: str, missing: str) -> None:
    assert compute_missing(asked.split(), granted.split()) == missing.split()


@pytest.mark.parametrize("scope", [None, "", " ", ["system/*.rs"]])
def test_promise_54_a_grant_that_is_not_told_is_loud(setting: Setting, scope: object) -> None:
    setting.oauth.changes = {"scope": scope}
    assert "does not say what it grants" in setting.refused()


def test_promise_54_a_grant_that_shrinks_at_a_renewal_is_loud(setting: Setting) -> None:
    setting.sign_in()
    setting.client.get("Patient")
    assert setting.client.credentials.granted == tuple(ASKED)
    setting.oauth.granted = "system/Patient.rs"
    setting.clock.now += 290
    with pytest.raises(SignInError, match=r"system/Condition\.rs system/Observation\.rs"):
        setting.client.get("Patient")


# ------------------------------------------------------------------------------------------------------- 55: the syntax


@pytest.mark.parametrize(
    ("configuration", "v2"),
    [
        ({"capabilities": ["permission-v2"]}, True),
        ({"capabilities": ["permission-v1", "permission-v2"]}, True),
        ({"capabilities": ["permission-v1"]}, False),
        ({"capabilities": ["permission-v1"], "scopes_supported": ["system/*.rs"]}, False),
        ({"scopes_supported": ["openid", "system/*.read", "system/*.write"]}, False),
        ({"scopes_supported": ["system/*.*"]}, False),
        ({"scopes_supported": ["system/*.read", "system/*.rs"]}, True),
        ({"scopes_supported": ["openid"]}, True),
        ({"capabilities": None, "scopes_supported": [1]}, True),
        ({}, True),
    ],
)
def test_promise_55_scopes_are_in_the_servers_syntax(configuration: dict[str, Any], v2: bool) -> None:
    reads = ["system/Condition.rs", "system/Patient.rs"] if v2 else ["system/Condition.read", "system/Patient.read"]
    assert compute_scopes(configuration, ["Patient", "Condition", "Patient"], []) == reads
    write_alone = "system/MeasureReport.cu" if v2 else "system/MeasureReport.write"
    assert compute_scopes(configuration, [], ["MeasureReport"]) == [write_alone]
    both = ["system/Measure.crus"] if v2 else ["system/Measure.read", "system/Measure.write"]
    assert compute_scopes(configuration, ["Measure"], ["Measure"]) == both


def test_promise_55_what_is_asked_is_named_and_no_more_than_needed(setting: Setting) -> None:
    asked = setting.sign_in().asked
    assert list(asked) == ASKED
    assert not [scope for scope in asked if "*" in scope]


def test_promise_55_a_configured_scope_is_asked_as_it_stands(setting: Setting) -> None:
    setting.sign_in(scope="system/*.rs  system/Patient.r").header()
    assert parse_qs(setting.oauth.token_requests[0].body)["scope"] == ["system/*.rs system/Patient.r"]


# --------------------------------------------------------------------------------------------------- 56: the discovery


@pytest.mark.parametrize("base_path", ["/fhir", "/tenant/r4"])
@pytest.mark.parametrize("relative", [False, True])
def test_promise_56_discovery_is_below_the_base_and_unsigned(setting: Setting, base_path: str, relative: bool) -> None:
    setting.oauth.base_path = base_path
    setting.oauth.relative = relative and base_path == "/fhir"
    setting.oauth.endpoint = "/token" if relative else ""
    client = FhirClient(setting.oauth.base, Static(token="canary-static"))
    sign_in(client, CLIENT, setting.key_file, key_id="rsa-1", types=TYPES).header()
    client.close()
    assert [request.path for request in setting.oauth.requests] == [
        f"{base_path}/.well-known/smart-configuration",
        "/token",
    ]
    assert not [request for request in setting.oauth.requests if "authorization" in request.headers]
    assert not setting.oauth.refusals


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("http://sign-in.example/token", "on sign-in.example is plain http"),
        ("http://127.0.0.1.example/token", "plain http"),
        ("//sign-in.example/token", "plain http"),
        ("ftp://sign-in.example/token", "no http or https URL"),
        ("https://user:canary-body@sign-in.example/token", "no http or https URL"),
        ("https://sign-in.example/token#a", "no http or https URL"),
        ("https://sign-in.example/a token", "no http or https URL"),
        ("https://[sign-in/token", "no http or https URL"),
        (None, "does not say where to sign in"),
        (7, "does not say where to sign in"),
    ],
)
def test_promise_56_an_endpoint_that_is_not_safe_is_loud(setting: Setting, endpoint: Any, reason: str) -> None:
    setting.oauth.endpoint = endpoint
    message = setting.refused()
    assert reason in message
    assert "token_url" in message
    assert not setting.oauth.token_requests


def test_promise_56_a_configured_endpoint_is_held_to_the_same(setting: Setting) -> None:
    assert "plain http" in setting.refused(token_url="http://sign-in.example/token")


def test_promise_56_without_discovery_the_capability_statement_says_where(setting: Setting) -> None:
    setting.oauth.discovery = None
    message = setting.refused()
    assert "token_url under [sign_in]" in message
    setting.oauth.in_metadata = True
    setting.client.credentials = Static(token="canary-static")
    assert setting.oauth.valid(setting.sign_in().header())
    assert not [request for request in setting.oauth.requests if "authorization" in request.headers]


def test_promise_56_with_endpoint_and_scope_configured_the_server_is_not_asked(setting: Setting) -> None:
    setting.oauth.discovery = None
    setting.sign_in(token_url=setting.oauth.token_url, scope="system/*.rs").header()
    assert [request.path for request in setting.oauth.requests] == ["/token"]


# ----------------------------------------------------------------------------------------------------------- 57: renewal


def test_promise_57_a_token_is_renewed_before_it_expires(setting: Setting) -> None:
    setting.oauth.lifetime = 2
    setting.sign_in()
    for _ in range(100):
        assert setting.client.get("Patient")["total"] == 0
        setting.clock.now += 0.1
    data = [request for request in setting.oauth.requests if request.path == "/fhir/Patient"]
    assert len(data) == 100  # none was answered with 401 and sent again
    moments = [at for _, at in setting.oauth.tokens]
    within = [sum(first < at < first + 2 for at in moments) for first in moments]
    assert max(within) <= 1


@pytest.mark.parametrize(("lifetime", "good"), [(300, 270), (3600, 3570), (60, 40), (3, 2), (None, 270)])
def test_promise_57_the_margin_is_half_a_minute_or_a_third(setting: Setting, lifetime: int | None, good: int) -> None:
    setting.oauth.changes = {"expires_in": lifetime}
    credentials = setting.sign_in()
    first = credentials.header()
    setting.clock.now += good - 0.01
    assert credentials.header() == first
    setting.clock.now += 0.02
    assert credentials.header() != first
    assert len(setting.oauth.token_requests) == 2


def test_promise_57_many_threads_renew_once(setting: Setting) -> None:
    setting.oauth.delay = 0.05
    credentials = setting.sign_in()
    for count in (1, 2):
        with ThreadPoolExecutor(16) as pool:
            headers = {future.result() for future in [pool.submit(credentials.header) for _ in range(16)]}
        assert len(headers) == 1
        assert len(setting.oauth.token_requests) == count
        setting.clock.now += 280


# ----------------------------------------------------------------------------------------------------- 58: single flight


def test_promise_58_a_401_to_many_workers_makes_one_token_request(setting: Setting) -> None:
    setting.oauth.one_token = True
    setting.sign_in()
    setting.client.get("Patient")
    for revoked in (1, 2, 3):
        setting.oauth.revoke()
        setting.oauth.delay = 0.05
        together = threading.Barrier(8)

        def ask(together: threading.Barrier = together) -> int:
            together.wait(10)
            return setting.client.get("Patient")["total"]

        with ThreadPoolExecutor(8) as pool:
            assert [future.result() for future in [pool.submit(ask) for _ in range(8)]] == [0] * 8
        assert len(setting.oauth.token_requests) == 1 + revoked


def test_promise_58_a_late_401_to_a_replaced_token_makes_no_request(setting: Setting) -> None:
    credentials = setting.sign_in()
    old = credentials.header()
    assert credentials.refused(old)
    new = credentials.header()
    assert credentials.refused(old)
    assert credentials.header() == new != old
    assert len(setting.oauth.token_requests) == 2


def test_promise_58_a_401_to_the_new_token_too_is_loud(setting: Setting) -> None:
    setting.sign_in()
    setting.client.credentials.header()
    setting.oauth.valid = lambda header: False  # type: ignore[method-assign]
    with pytest.raises(SignInError, match="401"):
        setting.client.get("Patient")
    assert len(setting.oauth.token_requests) == 2
    assert len([request for request in setting.oauth.requests if request.path == "/fhir/Patient"]) == 2


def test_promise_58_a_server_that_repeats_a_refused_token_ends_it(setting: Setting) -> None:
    setting.oauth.same_token = True
    credentials = setting.sign_in()
    credentials.refused(credentials.header())
    for _ in range(3):
        with pytest.raises(SignInError, match="very token again"):
            credentials.header()
    assert len(setting.oauth.token_requests) == 2


def test_promise_58_no_token_goes_to_a_token_endpoint(setting: Setting) -> None:
    with FakeOAuth(CLIENT, [jwk_of(RSA_KEY.public_key(), kid="rsa-1")], clock=setting.clock) as other:
        setting.oauth.endpoint = other.token_url
        setting.sign_in()
        setting.oauth.valid = lambda header: header == f"Bearer {other.tokens[-1][0]}"  # type: ignore[method-assign]
        setting.client.get("Patient")
        other.revoke()
        setting.client.credentials.refused(setting.client.credentials.header())
        setting.client.get("Patient")
        assert len(other.requests) == 2
        seen = "".join(f"{request.path}{request.headers}{request.body}" for request in other.requests)
        assert not [token for token, _ in other.tokens if token in seen]
        assert not setting.oauth.token_requests


# -------------------------------------------------------------------------------------------------------- 59: what is said


@pytest.mark.parametrize("shift", [-90.0, -400.0, 90.0, 400.0])
def test_promise_59_clock_skew_is_named(setting: Setting, shift: float) -> None:
    setting.oauth.date_shift = shift
    if (
        shift == 90.0
    ):  # the assertion is still good then: refused for another reason, with the clocks apart all the same
        setting.oauth.keys.clear()
    message = setting.refused()
    assert "invalid_client" in message
    assert "clock skew" in message
    assert f"{abs(shift):.0f}"[:-1] in message or f"{abs(shift) - 1:.0f}"[:-1] in message


@pytest.mark.parametrize("shift", [0.0, 40.0])
def test_promise_59_without_skew_the_client_is_named(setting: Setting, shift: float) -> None:
    setting.oauth.date_shift = shift
    setting.oauth.keys.clear()
    message = setting.refused()
    assert "invalid_client" in message
    assert "skew" not in message


def test_promise_59_a_refused_scope_is_named(setting: Setting) -> None:
    setting.oauth.known_scopes = {"system/Patient.rs"}
    message = setting.refused()
    assert "invalid_scope" in message
    assert " ".join(ASKED) in message


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, b'{"error":"invalid_grant","error_description":"canary-body"}', "(400, invalid_grant)"),
        (400, b'{"error":"unauthorized_client"}', "(400, unauthorized_client)"),
        (400, b'{"error":"canary-body"}', "(400)"),
        (400, b'{"error":["canary-body"]}', "(400)"),
        (401, b"canary-body", "(401)"),
        (403, b"", "(403)"),
        (404, b"<html>canary-body</html>", "(404)"),
        (204, b"", "(204)"),
    ],
)
def test_promise_59_other_refusals_are_shown_by_whitelist(
    setting: Setting, status: int, body: bytes, said: str
) -> None:
    setting.oauth.faults = [Fault(status, {"Content-Type": "application/json"}, body)]
    assert said in setting.refused()
    assert len(setting.oauth.token_requests) == 1


def test_promise_59_a_refusal_stands(setting: Setting) -> None:
    setting.oauth.keys.clear()
    credentials = setting.sign_in()
    for _ in range(3):
        with pytest.raises(SignInError, match="invalid_client"):
            credentials.header()
    assert len(setting.oauth.token_requests) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token_type": "mac"}, "no bearer token"),
        ({"token_type": None}, "no bearer token"),
        ({"token_type": 1}, "no bearer token"),
        ({"access_token": None}, "no token that a header can carry"),
        ({"access_token": ""}, "no token that a header can carry"),
        ({"access_token": "canary-body\r\nX: y"}, "no token that a header can carry"),
        ({"access_token": "canary-body ö"}, "no token that a header can carry"),
        ({"expires_in": 0}, "expires_in"),
        ({"expires_in": -1}, "expires_in"),
        ({"expires_in": "300"}, "expires_in"),
        ({"expires_in": True}, "expires_in"),
        ({"expires_in": 1.5}, "expires_in"),
    ],
)
def test_a_token_that_is_none_is_loud(setting: Setting, changes: dict[str, Any], said: str) -> None:
    setting.oauth.changes = changes
    assert said in setting.refused()


@pytest.mark.parametrize("body", [b"canary-body", b"[]", b"", b'{"access_token":"canary-body",}', b"\xff"])
def test_an_answer_that_is_no_json_is_loud(setting: Setting, body: bytes) -> None:
    setting.oauth.faults = [Fault(200, {"Content-Type": "text/html"}, body)]
    assert "no JSON" in setting.refused()


@pytest.mark.parametrize("kind", ["bearer", "Bearer", "BEARER"])
def test_bearer_is_written_in_any_case(setting: Setting, kind: str) -> None:
    setting.oauth.changes = {"token_type": kind}
    assert setting.sign_in().header().startswith("Bearer canary-")


# ---------------------------------------------------------------------------------------------------- passing failures


@pytest.mark.parametrize("fault", [Fault(), Fault(500), Fault(502), Fault(503), Fault(429)])
def test_a_passing_failure_is_tried_three_times(setting: Setting, fault: Fault) -> None:
    setting.oauth.faults = [fault] * 2
    setting.sign_in()
    assert setting.client.get("Patient")["total"] == 0
    assert len(setting.waits) == 2
    assert 0 < setting.waits[0] < setting.waits[1] < 5


@pytest.mark.parametrize(("fault", "said"), [(Fault(), "token endpoint"), (Fault(503), "503")])
def test_a_lasting_failure_is_a_network_error(setting: Setting, fault: Fault, said: str) -> None:
    setting.oauth.faults = [fault] * 100
    assert said in setting.refused(NetworkError)
    assert len(setting.oauth.token_requests) == 3


def test_a_failure_of_the_network_is_shared_by_those_who_wait_and_then_forgotten(setting: Setting) -> None:
    setting.oauth.faults = [Fault(503)] * 3
    setting.oauth.delay = 0.05
    credentials = setting.sign_in()

    def ask(_: int) -> str:
        try:
            return credentials.header()
        except NetworkError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        said = set(pool.map(ask, range(8)))
    assert len(said) == 1
    assert "503" in said.pop()
    assert len(setting.oauth.token_requests) == 3
    assert setting.oauth.valid(credentials.header())


def test_retry_after_is_kept_to_and_bounded(setting: Setting) -> None:
    setting.oauth.faults = [Fault(429, {"Retry-After": "7"})]
    setting.sign_in().header()
    assert setting.waits == [7.0]
    setting.oauth.faults = [Fault(503, {"Retry-After": "1000000000"})]
    assert "asks to wait 1000000000 s" in setting.refused(NetworkError)
    assert setting.waits == [7.0]


# ----------------------------------------------------------------------------------------------------------- 60: redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("same_origin", [False, True])
def test_promise_60_a_redirect_of_the_token_endpoint_is_not_followed(
    setting: Setting, status: int, same_origin: bool
) -> None:
    with FakeOAuth(CLIENT, []) as other:
        target = setting.oauth.token_url if same_origin else other.token_url
        setting.oauth.faults = [Fault(status, {"Location": target})]
        message = setting.refused()
        assert "redirects" in message
        assert "token_url" in message
        assert not other.requests
        assert len(setting.oauth.token_requests) == 1


# ----------------------------------------------------------------------------------------------------------- 61: key files


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620, 0o601, 0o440])
def test_promise_61_a_key_file_that_others_can_reach_is_refused(setting: Setting, mode: int) -> None:
    setting.key_file.chmod(mode)
    message = setting.refused()
    assert "chmod 600" in message
    assert str(setting.key_file) in message
    assert SignInError.exit_code == 4
    assert not setting.oauth.requests


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_promise_61_a_key_file_of_its_owner_alone_is_read(setting: Setting, mode: int) -> None:
    setting.key_file.chmod(mode)
    assert read_key(setting.key_file).algorithm == "RS384"


@pytest.mark.parametrize("locked", [OPEN, LOCKED])
@pytest.mark.parametrize("form", [PKCS8, PKCS1])
@pytest.mark.parametrize(("key", "algorithm"), [(RSA_KEY, "RS384"), (EC_KEY, "ES384")])
def test_promise_61_pem_of_every_form_is_read(tmp_path: Path, key: Any, algorithm: str, form: Any, locked: Any) -> None:
    path = write(tmp_path / "key.pem", key.private_bytes(PEM, form, locked))
    found = read_key(path, None, PASSWORD)
    assert found.algorithm == algorithm
    assert found.private.private_numbers() == key.private_numbers()
    assert found.key_id == thumbprint(key)
    assert read_key(path, "mine", PASSWORD).key_id == "mine"


def test_promise_61_openssl_writes_the_curve_before_the_key(tmp_path: Path) -> None:
    curve = b"-----BEGIN EC PARAMETERS-----\nBgUrgQQAIg==\n-----END EC PARAMETERS-----\n"
    path = write(tmp_path / "key.pem", curve + EC_KEY.private_bytes(PEM, PKCS1, OPEN))
    assert read_key(path).algorithm == "ES384"


@pytest.mark.parametrize("password", [None, "", "wrong"])
def test_promise_61_a_locked_key_needs_its_password(setting: Setting, password: str | None) -> None:
    write(setting.key_file, RSA_KEY.private_bytes(PEM, PKCS8, LOCKED))
    assert "CRMO_FHIR_KEY_PASSWORD" in setting.refused(key_password=password)


def private(key: Any, **members: str) -> dict[str, Any]:
    return jwk_of(key, **members)


@pytest.mark.parametrize(
    ("document", "key_id", "expected"),
    [
        (private(RSA_KEY), None, ("RS384", thumbprint(RSA_KEY))),
        (private(RSA_KEY, kid="a"), None, ("RS384", "a")),
        (private(EC_KEY, kid="a"), "a", ("ES384", "a")),
        (private(EC_KEY), "b", ("ES384", "b")),
        ({n: v for n, v in private(RSA_KEY).items() if n in ("kty", "n", "e", "d")}, "b", ("RS384", "b")),
        ({"keys": [private(EC_KEY, kid="a")]}, None, ("ES384", "a")),
        ({"keys": [private(EC_KEY, kid="a"), private(RSA_KEY, kid="b")]}, "b", ("RS384", "b")),
        ({"keys": [private(EC_KEY, kid="a"), private(RSA_KEY)]}, "a", ("ES384", "a")),
        ({"keys": [jwk_of(EC_KEY.public_key(), kid="a"), private(RSA_KEY, kid="b")]}, None, ("RS384", "b")),
        ({"keys": [private(EC_KEY, use="enc"), private(RSA_KEY, use="sig", kid="b")]}, None, ("RS384", "b")),
    ],
)
def test_promise_61_jwk_and_jwks_are_read(tmp_path: Path, document: Any, key_id: str | None, expected: Any) -> None:
    found = read_key(write(tmp_path / "key.json", document), key_id)
    assert (found.algorithm, found.key_id) == expected


SHORT = rsa.generate_private_key(public_exponent=65537, key_size=1024)
P256 = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
PUBLIC_PEM = RSA_KEY.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("content", "key_id", "said"),
    [
        (SHORT.private_bytes(PEM, PKCS8, OPEN), None, "1024 bits is too short"),
        (private(SHORT), None, "1024 bits is too short"),
        (P256.private_bytes(PEM, PKCS8, OPEN), None, "not for SMART"),
        (private(P256), None, "not for SMART"),
        (ED.private_bytes(PEM, PKCS8, OPEN), None, "not for SMART"),
        ({"kty": "OKP", "crv": "Ed25519", "d": "canary-body", "x": "AA"}, None, "not for SMART"),
        ({"kty": ["RSA"], "d": "canary-body"}, None, "not for SMART"),
        ({"kty": "oct", "k": "canary-body"}, None, "HMAC"),
        (PUBLIC_PEM, None, "public key only"),
        (b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", None, "public key only"),
        (jwk_of(RSA_KEY.public_key()), None, "public key only"),
        ({"keys": [private(EC_KEY, kid="a"), private(RSA_KEY, kid="b")]}, None, "2 private keys"),
        ({"keys": [private(EC_KEY, kid="a"), private(RSA_KEY, kid="a")]}, "a", "2 private keys with that key_id"),
        ({"keys": [private(EC_KEY, kid="a")]}, "b", "no private keys with that key_id"),
        ({"keys": []}, None, "no private keys"),
        ({"keys": "canary-body"}, None, "no private keys"),
        ({"kty": "RSA", "d": "canary-body", "n": "AQAB", "e": "AQAB"}, None, "damaged"),
        ({"kty": "RSA", "d": 5, "n": None}, None, "damaged"),
        ({"kty": "EC", "crv": "P-384", "d": "canary-body", "x": "AA", "y": "AA"}, None, "damaged"),
        (b'{"kty":"RSA","d":"canary-body"', None, "no valid JSON"),
        (b"canary-body", None, "no private key in PEM, JWK or JWKS"),
        (b"-----BEGIN PRIVATE KEY-----\ncanary-body\n-----END PRIVATE KEY-----\n", None, "no private key in PEM"),
        (b"", None, "no private key in PEM"),
        (b"\xff\xfe\x00", None, "no private key in PEM"),
    ],
)
def test_promise_61_a_wrong_key_is_a_clear_error(tmp_path: Path, content: Any, key_id: str | None, said: str) -> None:
    path = write(tmp_path / "key", content)
    with pytest.raises(SignInError) as caught:
        read_key(path, key_id)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    chain = "".join(traceback.format_exception(caught.value))
    assert "canary-body" not in chain.replace(str(tmp_path), "")


@pytest.mark.parametrize("name", ["missing.pem", "."])
def test_promise_61_a_file_that_is_none_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SignInError, match="cannot be read"):
        read_key(tmp_path / name)


# --------------------------------------------------------------------------------------------------------- 70: no secret


def test_promise_70_nothing_that_is_shown_or_logged_holds_a_secret(
    setting: Setting, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    lines: list[str] = []
    write(setting.key_file, RSA_KEY.private_bytes(PEM, PKCS8, LOCKED))
    client = FhirClient(setting.oauth.base, log=lines.append, tell=lines.append)
    credentials = sign_in(client, CLIENT, setting.key_file, key_id="rsa-1", key_password=PASSWORD, types=TYPES)
    client.credentials = credentials
    setting.oauth.valid = lambda header: False  # type: ignore[method-assign]
    with pytest.raises(SignInError) as caught:
        client.get("Patient")
    client.close()
    assert_no_secret(setting, caught.value)
    key = read_key(setting.key_file, None, PASSWORD)
    printed = capfd.readouterr()
    shown = f"{lines}{caplog.text}{printed}{credentials!r}{credentials!s}{key!r}{key!s}"
    assert len(setting.oauth.tokens) == 2
    assert [line for line in lines if "token" in line]
    assert not [secret for secret in secrets_of(setting) if secret in shown]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(),
        Fault(503, {}, b"canary-body"),
        Fault(400, {}, b'{"error":"canary-body"}'),
        Fault(200, {}, b'{"access_token":"canary-body","token_type":"bearer"}'),
        Fault(200, {}, b'{"access_token":"canary-body"'),
        Fault(200, {"Content-Encoding": "gzip"}, b"canary-body"),
        Fault(302, {"Location": "https://evil.example/?canary-body"}, b""),
    ],
)
def test_promise_70_no_failure_shows_a_secret(setting: Setting, fault: Fault) -> None:
    setting.oauth.faults = [fault] * 10
    assert setting.refused(CrmoFhirError)


def test_promise_70_a_crash_in_the_library_shows_no_key(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> str:
        raise RuntimeError("crash")

    credentials = setting.sign_in()
    monkeypatch.setattr(jwt, "encode", crash)
    with pytest.raises(RuntimeError) as caught:
        credentials.header()
    assert_no_secret(setting, caught.value)


def test_starting_the_module_loads_no_cryptography() -> None:
    import subprocess
    import sys

    code = "import sys, crmo_fhir.fhir.sign_in; print([n for n in ('jwt', 'cryptography') if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    assert module.ASSERTION_LIFETIME <= 300
