"""An OAuth 2 token endpoint for SMART Backend Services on a real socket of 127.0.0.1, that verifies assertions for real.

    with FakeOAuth("client", [public_jwk]) as oauth:
        oauth.granted = "system/Patient.rs"   # less than was asked for
        ...
        oauth.requests  # every request: method, path with query, headers, body, time

Beside the token endpoint and the discovery it serves `metadata` and, to whoever holds a live token, empty searches.
Another fake server embeds it: it sets `origin` to its own, and asks `handle` first and `valid` for each request of data.
"""

import json
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

import jwt

ALGORITHMS = ("RS384", "ES384")
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
OAUTH_URIS = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
Reply = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: str
    at: float


@dataclass(frozen=True, slots=True)
class Fault:
    """An answer of the token endpoint in place of the right one; without a status the connection is closed."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error":"server_error"}'


class _RefusedError(Exception):
    """Why a token request is refused: an OAuth error code."""


class FakeOAuth:
    """One registered client with its public keys; what differs from a good server are the attributes set here."""

    def __init__(
        self, client_id: str, keys: Sequence[dict[str, Any]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the client and its public JWKs (each with a kid) without starting; `clock` is what tokens expire by."""
        self.client_id = client_id
        self.keys = {key["kid"]: key for key in keys}
        self.algorithms: tuple[str, ...] = ALGORITHMS
        self.granted: str | None = None  # the scope of the answer, where it is not the one asked for
        self.known_scopes: set[str] | None = None  # any other is an invalid_scope
        self.changes: dict[str, Any] = {}  # members of the token answer laid over the right ones; None takes one away
        self.lifetime = 300
        self.faults: list[Fault] = []  # used up one by one
        self.date_shift = 0.0  # seconds by which this server's clock is ahead
        self.delay = 0.0  # seconds a token takes, so that requests overlap
        self.one_token = False  # a new token ends the one before
        self.same_token = False  # gives out the live token again
        self.discovery: dict[str, Any] | None = {"capabilities": ["client-confidential-asymmetric", "permission-v2"]}
        self.relative = False  # the endpoint in the discovery, relative to the base
        self.endpoint: str | None = ""  # another endpoint in the discovery; None for none
        self.in_metadata = False  # the endpoint in the CapabilityStatement
        self.base_path = "/fhir"
        self.requests: list[Request] = []
        self.refusals: list[str] = []  # why, in words, for whoever debugs a test
        self.tokens: list[tuple[str, float]] = []  # every token given out, and when
        self._live: dict[str, float] = {}
        self._seen: set[str] = set()
        self._clock = clock
        self._lock = threading.Lock()
        self.origin = ""
        self._http: ThreadingHTTPServer | None = None

    @property
    def base(self) -> str:
        """The FHIR base URL."""
        return self.origin + self.base_path

    @property
    def token_url(self) -> str:
        """The token endpoint: the audience of assertions."""
        return f"{self.origin}/token"

    def __enter__(self) -> Self:
        """Start serving on a port of its own."""
        self._http = _Http(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))
        self.origin = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving."""
        assert self._http is not None
        self._http.shutdown()
        self._http.server_close()

    @property
    def token_requests(self) -> list[Request]:
        """The requests to the token endpoint."""
        return [request for request in self.requests if urlsplit(request.path).path == "/token"]

    def assertions(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Header and claims of every assertion that came."""
        texts = [dict(parse_qsl(request.body)).get("client_assertion", "") for request in self.token_requests]
        return [
            (jwt.get_unverified_header(text), jwt.decode(text, options={"verify_signature": False})) for text in texts
        ]

    def valid(self, header: str) -> bool:
        """Whether an Authorization header holds a live token."""
        with self._lock:
            return self._live.get(header.removeprefix("Bearer "), 0.0) > self._clock()

    def revoke(self) -> None:
        """End all tokens."""
        with self._lock:
            self._live.clear()

    def handle(self, method: str, path: str, headers: dict[str, str], body: str | bytes) -> Reply | None:
        """The answer to a request for the token endpoint or the discovery; None for any other. Names in lower case."""
        text = body.decode() if isinstance(body, bytes) else body
        place = urlsplit(path).path
        if place not in ("/token", f"{self.base_path}/.well-known/smart-configuration"):
            return None
        with self._lock:
            self.requests.append(Request(method, path, headers, text, self._clock()))
        if place == "/token":
            return self._token(method, path, headers, text)
        if self.discovery is None:
            return _reply(
                404, {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "not-found"}]}
            )
        endpoint = "../token" if self.relative else self.endpoint or self.token_url
        named = {} if self.endpoint is None else {"token_endpoint": endpoint}
        return _reply(200, {**named, **self.discovery})

    def capabilities(self) -> dict[str, Any]:
        """A CapabilityStatement; with `in_metadata` it names the token endpoint, as in SMART 1."""
        uris = {"url": OAUTH_URIS, "extension": [{"url": "token", "valueUri": self.token_url}]}
        security = {"extension": [uris]} if self.in_metadata else {}
        rest = [{"mode": "server", "security": security}]
        return {"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1", "rest": rest}

    def _token(self, method: str, path: str, headers: dict[str, str], body: str) -> Reply | None:
        time.sleep(self.delay)
        date = {"Date": formatdate(time.time() + self.date_shift, usegmt=True)}
        with self._lock:
            if self.faults:
                fault = self.faults.pop(0)
                return fault.status, {**date, **fault.headers}, fault.body
            try:
                scope = self._verified(method, path, headers, body)
            except _RefusedError as refused:
                code = str(refused)
                return _reply(
                    401 if code == "invalid_client" else 400, {"error": code, "error_description": body}, date
                )
            now = self._clock()
            if self.one_token:
                self._live.clear()
            token = self.tokens[-1][0] if self.same_token and self.tokens else f"canary-{uuid.uuid4()}"
            self._live[token] = now + self.lifetime
            self.tokens.append((token, now))
            answer = {"access_token": token, "token_type": "bearer", "expires_in": self.lifetime}
            answer |= {"scope": scope if self.granted is None else self.granted, **self.changes}
            return _reply(200, {name: value for name, value in answer.items() if value is not None}, date)

    def _verified(self, method: str, path: str, headers: dict[str, str], body: str) -> str:
        """The scope asked for by a request that is right in every respect."""
        form = parse_qsl(body, keep_blank_values=True)
        fields = dict(form)
        if (
            method != "POST"
            or path != "/token"
            or "authorization" in headers
            or headers.get("content-type") != "application/x-www-form-urlencoded"
            or len(form) != len(fields)
            or set(fields) != {"grant_type", "scope", "client_assertion_type", "client_assertion"}
            or fields["client_assertion_type"] != JWT_BEARER
        ):
            raise self._refused("invalid_request", f"{method} {path} {sorted(fields)}")
        if fields["grant_type"] != "client_credentials":
            raise self._refused("unsupported_grant_type", fields["grant_type"])
        self._verify(fields["client_assertion"])
        scope = fields["scope"]
        if not scope or (self.known_scopes is not None and not set(scope.split(" ")) <= self.known_scopes):
            raise self._refused("invalid_scope", scope)
        return scope

    def _verify(self, assertion: str) -> None:
        try:
            header = jwt.get_unverified_header(assertion)
            algorithm = header["alg"]
            if header["typ"] != "JWT" or algorithm not in self.algorithms:
                raise self._refused("invalid_client", f"typ or alg: {header}")
            key = jwt.PyJWK(self.keys[header["kid"]], algorithm=algorithm).key
            required = {"require": ["iss", "sub", "aud", "exp", "jti"], "verify_exp": False, "strict_aud": True}
            claims = jwt.decode(
                assertion,
                key,
                algorithms=[algorithm],
                audience=self.token_url,
                issuer=self.client_id,
                subject=self.client_id,
                options=required,
            )
        except (jwt.PyJWTError, KeyError) as error:
            raise self._refused("invalid_client", f"{type(error).__name__}: {error}") from error
        now = time.time() + self.date_shift
        if not now < claims["exp"] <= now + 300:
            raise self._refused("invalid_client", f"exp is {claims['exp'] - now:.0f} s ahead")
        if claims["jti"] in self._seen:
            raise self._refused("invalid_client", "jti was used before")
        self._seen.add(claims["jti"])

    def _refused(self, code: str, why: str) -> _RefusedError:
        self.refusals.append(why)
        return _RefusedError(code)


def _reply(status: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> Reply:
    return status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode()


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing when a client leaves in the middle of an answer."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: FakeOAuth

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve("")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode())

    def _serve(self, body: str) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.fake.handle(self.command, self.path, headers, body) or self._data(headers, body)
        status, sent, content = reply
        if status == 0:
            self.close_connection = True
            return
        self.send_response_only(status)
        if "Date" not in sent:
            self.send_header("Date", self.date_time_string())
        for name, value in {**sent, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _data(self, headers: dict[str, str], body: str) -> Reply:
        """What a FHIR server has beside its sign-in: `metadata` for all, empty searches for whoever holds a token."""
        self.fake.requests.append(Request(self.command, self.path, headers, body, time.monotonic()))
        if self.path == f"{self.fake.base_path}/metadata":
            return _reply(200, self.fake.capabilities())
        if not self.path.startswith(f"{self.fake.base_path}/"):
            return _reply(404, {})
        if not self.fake.valid(headers.get("authorization", "")):
            outcome = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "login"}]}
            return _reply(401, outcome)
        return _reply(200, {"resourceType": "Bundle", "type": "searchset", "total": 0})
