"""SMART Backend Services (HL7 SMART App Launch 2, "backend-services" and "client-confidential-asymmetric").

A program without a user signs in with an assertion: a short-lived JWT, signed with the key whose public half the hospital has
registered. The server answers with an access token of a few minutes. What is asked for is the least that serves (named types,
never `*`); what is granted is held against it before the first record, because a server may grant less and then, with 200,
show less. The token is renewed before it expires, by one request however many threads wait.

No message holds a token, an assertion, a key, a password, or text of the server: its error codes are shown by whitelist.
"""

import base64
import contextlib
import hashlib
import json
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from crmo_fhir.errors import CrmoFhirError, NetworkError, SignInError
from crmo_fhir.fhir import strict
from crmo_fhir.fhir.client import Answer, FhirClient, RefusedError, is_loopback, origin_of, retry_after

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

DISCOVERY = ".well-known/smart-configuration"
OAUTH_URIS = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ASSERTION_LIFETIME = 240
"""Seconds an assertion is good for; the rule is no more than 300, and clocks differ."""
TOKEN_LIFETIME = 300
"""Seconds a token is taken to be good for where the server does not say: what it SHOULD NOT exceed."""
MARGIN = 30.0
"""A token is renewed this long before its end, in seconds, or a third of its lifetime where that is less."""
MIN_RSA_BITS = 2048
MAX_KEY_FILE = 1024 * 1024
ATTEMPTS = 3
MAX_WAIT = 60.0
"""A token endpoint that asks to wait longer than this, in seconds, is not waited for."""
CLOCK_SKEW = 60.0
_BOM = b"\xef\xbb\xbf"
_SETTING = "set token_url under [sign_in] in crmo-fhir.toml (or CRMO_FHIR_TOKEN_URL)"
_ERRORS = (  # RFC 6749 5.2
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
)
_SCOPE = re.compile(r"[a-z]+/(\*|[A-Z][A-Za-z]*)\.(read|write|\*|(?=[cruds])c?r?u?d?s?)")
_V1_LETTERS = {"read": "rs", "write": "cud", "*": "cruds"}


@dataclass(frozen=True, slots=True)
class Key:
    """A private key to sign with, and what the header of an assertion says of it."""

    private: "RSAPrivateKey | EllipticCurvePrivateKey" = field(repr=False)
    algorithm: str
    key_id: str


def sign_in(
    client: FhirClient,
    client_id: str,
    key_file: Path,
    *,
    key_id: str | None = None,
    key_password: str | None = None,
    types: Sequence[str],
    writes: Sequence[str] = (),
    token_url: str | None = None,
    scope: str | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> "BackendServices":
    """Prepare to sign in for reading `types` and writing `writes`; the token itself is fetched when first needed.

    `token_url` and `scope` (both from the configuration) go before what the server declares, and with both it is not asked.
    Raises SignInError: the key cannot be used, the server names no token endpoint, or one that cannot be right; NetworkError.
    """
    key = read_key(key_file, key_id, key_password)
    configuration = {} if token_url and scope else _discover(client)
    accepted = configuration.get("token_endpoint_auth_signing_alg_values_supported")
    if isinstance(accepted, list) and key.algorithm not in accepted:
        others = " or ".join(name for name in ("RS384", "ES384") if name in accepted)
        raise SignInError(
            f"{client.host}: the server takes no {key.algorithm} signatures; "
            + (f"sign in with a key for {others}" if others else "it takes none of those that SMART requires")
        )
    asked = scope.split() if scope else compute_scopes(configuration, types, writes)
    endpoint = _token_endpoint(client, token_url or configuration.get("token_endpoint"))
    return BackendServices(client, client_id, key, endpoint, asked, clock=clock)


class BackendServices:
    """Credentials (of `FhirClient`) that sign in by themselves; safe to use from many threads, of which one asks for all."""

    def __init__(
        self,
        client: FhirClient,
        client_id: str,
        key: Key,
        token_url: str,
        asked: Sequence[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what a token request needs, without sending one; `sign_in` finds it out."""
        self.asked = tuple(asked)
        self.granted: tuple[str, ...] = ()
        self._client = client
        self._client_id = client_id
        self._key = key
        self._token_url = token_url
        self._where = f"{origin_of(token_url)[1]}, token endpoint"
        self._clock = clock
        self._lock = threading.Lock()
        self._header = ""
        self._renew_at = 0.0
        self._refused = ""
        self._rounds = 0
        self._failure: tuple[type[CrmoFhirError], str] | None = None

    def header(self) -> str:
        """The `Authorization` of a token that is good now; signs in or renews where there is none.

        Raises SignInError (refused, or granted less than asked: then for good) or NetworkError.
        """
        seen = self._rounds
        with self._lock:
            if self._header and self._clock() < self._renew_at:
                return self._header
            # A refusal stands; a failure of the network is shared by all who waited for that one attempt.
            if self._failure is not None and (self._failure[0] is SignInError or self._rounds != seen):
                kind, message = self._failure
                raise kind(message)
            try:
                self._renew()
            except CrmoFhirError as error:
                self._failure = type(error), str(error)
                raise
            finally:
                self._rounds += 1
            return self._header

    def refused(self, header: str) -> bool:
        """Take note of a 401: the next `header` is a new one, unless another thread has renewed it meanwhile."""
        with self._lock:
            if header == self._header:
                self._header, self._refused = "", header
        return True

    def _renew(self) -> None:
        answer, sent = self._ask()
        if answer.status != 200:
            raise self._refusal(answer)
        token = _parsed(answer.body)
        if token is None:
            raise SignInError(f"{self._where}: the server answers with no JSON; {_SETTING} if it is another address")
        kind, value = token.get("token_type"), token.get("access_token")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise SignInError(f"{self._where}: the server gives a token that is no bearer token; ask its administrator")
        if not isinstance(value, str) or not re.fullmatch(r"[\x21-\x7e]+", value):
            raise SignInError(
                f"{self._where}: the server gives no token that a header can carry; ask its administrator"
            )
        lifetime = token.get("expires_in", TOKEN_LIFETIME)
        if type(lifetime) is not int or lifetime <= 0:
            raise SignInError(f"{self._where}: the server gives a token without a right lifetime (expires_in)")
        scope = token.get("scope")
        if not isinstance(scope, str) or not scope.strip():
            raise SignInError(
                f"{self._where}: the server does not say what it grants (scope, which SMART requires); nothing was read"
            )
        if missing := compute_missing(self.asked, scope.split()):
            raise SignInError(
                f"{self._where}: the server does not grant {' '.join(missing)}; nothing more was read, because it would be "
                "incomplete, and nothing written; have these scopes registered for the client"
            )
        header = f"Bearer {value}"
        if header == self._refused:
            raise SignInError(f"{self._where}: the server gives the very token again that was answered with 401")
        self.granted = tuple(one for one in scope.split() if _SCOPE.fullmatch(one) or one in self.asked)
        # Counted from before the request was sent: the server's own count begins later.
        self._renew_at = sent + lifetime - min(MARGIN, lifetime / 3)
        self._header, self._failure = header, None

    def _ask(self) -> tuple[Answer, float]:
        """Ask for a token, three times where the failure may pass; the answer, and the clock before it was asked for."""
        attempt = 0
        while True:
            attempt += 1
            wait, sent = None, self._clock()
            try:
                answer = self._client.post_form(self._token_url, self._form())
            except NetworkError as error:
                failure = str(error)
            else:
                if answer.status < 500 and answer.status not in (408, 429):
                    return answer, sent
                wait = retry_after(answer.headers.get("retry-after"), answer.headers.get("date"))
                asks = "" if wait is None else f" and asks to wait {wait:.0f} s"
                failure = f"{self._where}: the server answers {answer.status}{asks}; run again later"
            if attempt == ATTEMPTS or (wait or 0.0) > MAX_WAIT:
                break
            self._client.wait(0.5 * 2**attempt * random.uniform(0.75, 1.25) if wait is None else wait)  # noqa: S311
        raise NetworkError(failure)

    def _form(self) -> dict[str, str]:
        """The form of a token request, with an assertion of its own: `jti` serves once."""
        import jwt

        claims = {
            "iss": self._client_id,
            "sub": self._client_id,
            "aud": self._token_url,
            "exp": int(time.time()) + ASSERTION_LIFETIME,
            "jti": str(uuid.uuid4()),
        }
        assertion = jwt.encode(
            claims, self._key.private, self._key.algorithm, headers={"typ": "JWT", "kid": self._key.key_id}
        )
        return {
            "grant_type": "client_credentials",
            "scope": " ".join(self.asked),
            "client_assertion_type": JWT_BEARER,
            "client_assertion": assertion,
        }

    def _refusal(self, answer: Answer) -> SignInError:
        """What an answer other than 200 means, in one line."""
        if 300 <= answer.status < 400:
            return SignInError(
                f"{self._where}: the server redirects, which is not followed with an assertion; {_SETTING} to where it leads"
            )
        code = (_parsed(answer.body) or {}).get("error")
        if code == "invalid_scope":
            return SignInError(
                f"{self._where}: the server refuses the scope {' '.join(self.asked)} (invalid_scope); have it registered for "
                "the client, or set scope under [sign_in] in crmo-fhir.toml"
            )
        said = f"{answer.status}, {code}" if code in _ERRORS else f"{answer.status}"
        skew = _clock_skew(answer.headers.get("date"))
        if answer.status in (400, 401) and abs(skew) > CLOCK_SKEW:
            return SignInError(
                f"{self._where}: the server refuses the sign-in ({said}); clock skew: this machine's clock and the server's "
                f"differ by {abs(skew):.0f} s; set the clock"
            )
        if code == "invalid_client":
            return SignInError(
                f"{self._where}: the server refuses the client or its key ({said}); check the client id, and that the public "
                "key is registered there under the same key id"
            )
        return SignInError(
            f"{self._where}: the server refuses the sign-in ({said}); check client id, key and token endpoint"
        )


# ------------------------------------------------------------------------------------------------------------- discovery


def _discover(client: FhirClient) -> dict[str, Any]:
    """The SMART configuration, or as much of one as the CapabilityStatement holds (SMART 1.0); empty where neither is."""
    try:
        return client.get_json(DISCOVERY, signed=False)
    except (RefusedError, SignInError):
        pass
    try:
        statement = client.get("metadata", signed=False)
    except (RefusedError, SignInError):
        return {}
    found = [
        uri.get("valueUri")
        for rest in _objects(statement.get("rest"))
        for extension in _objects(_object(rest.get("security")).get("extension"))
        if extension.get("url") == OAUTH_URIS
        for uri in _objects(extension.get("extension"))
        if uri.get("url") == "token"
    ]
    return {"token_endpoint": found[0]} if found else {}


def _token_endpoint(client: FhirClient, endpoint: object) -> str:
    """The token endpoint, resolved against the base; SignInError where it is no URL to send an assertion to."""
    if not isinstance(endpoint, str) or not endpoint:
        raise SignInError(f"{client.host}: the server does not say where to sign in (token_endpoint); {_SETTING}")
    try:
        # An absolute one stays as it is written: it is the audience of assertions, to the letter.
        url = endpoint if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", endpoint) else urljoin(f"{client.base}/", endpoint)
        scheme, host, _ = origin_of(url)
        parts = urlsplit(url)
    except ValueError:
        url = ""
    if not re.fullmatch(r"[\x21-\x7e]+", url) or parts.username is not None or parts.fragment:
        raise SignInError(f"{client.host}: the token endpoint is no http or https URL; {_SETTING}")
    if scheme == "http" and not is_loopback(host):
        raise SignInError(
            f"the token endpoint on {host} is plain http, which would show the token; {_SETTING} with https"
        )
    return url


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# ----------------------------------------------------------------------------------------------------------------- scopes


def compute_scopes(configuration: Mapping[str, Any], types: Collection[str], writes: Collection[str]) -> list[str]:
    """The scopes for reading `types` and writing `writes`, in the syntax the server speaks, sorted.

    SMART 2 (`system/Patient.rs`) unless the server declares or lists only that of SMART 1 (`system/Patient.read`).
    """

    def listed(name: str) -> list[str]:
        value = configuration.get(name)
        return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []

    capabilities = listed("capabilities")
    rights = [match[2] for item in listed("scopes_supported") if (match := _SCOPE.fullmatch(item))]
    only_v1_listed = bool(rights) and all(right in _V1_LETTERS for right in rights)
    declared = {"permission-v1", "permission-v2"} & set(capabilities)
    if declared == {"permission-v1"} or (not declared and only_v1_listed):
        return sorted(f"system/{name}.read" for name in set(types)) + sorted(
            f"system/{name}.write" for name in set(writes)
        )
    letters = {(True, False): "rs", (False, True): "cu", (True, True): "crus"}
    return [f"system/{name}.{letters[name in types, name in writes]}" for name in sorted({*types, *writes})]


def compute_missing(asked: Sequence[str], granted: Sequence[str]) -> list[str]:
    """What was asked for and is not granted. A wider grant covers (`system/*.rs`, `.read`), a conditional one (`?`) does not."""
    held = [rights for scope in granted if (rights := _rights(scope)) is not None]
    missing = []
    for scope in asked:
        wanted = _rights(scope.partition("?")[0])
        letters = {letter for name, those in held if wanted and name in (wanted[0], "*") for letter in those}
        if scope not in granted and (wanted is None or not wanted[1] <= letters):
            missing.append(scope)
    return missing


def compute_missing_in_token(token: str, asked: Sequence[str]) -> list[str]:
    """What is asked for and a bearer token says it does not allow, by its claim `scope` (RFC 9068); nothing where it is silent.

    The token is not verified, only read: what it says of itself may spare a request, it opens nothing. A user's scopes
    (`user/…`) count as those of a system.
    """
    try:
        payload = token.split(".")[1]
        claims = _parsed(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        return []
    said = (claims or {}).get("scope")
    scopes = said.split() if isinstance(said, str) else [one for one in said or () if isinstance(one, str)]
    held = [re.sub(r"^user/", "system/", one) for one in scopes]
    return compute_missing(asked, held) if any(_rights(one) for one in held) else []


def _rights(scope: str) -> tuple[str, frozenset[str]] | None:
    """Type (or `*`) and letters out of `cruds` of a system scope of either syntax; None for any other."""
    match = _SCOPE.fullmatch(scope)
    if match is None or not scope.startswith("system/"):
        return None
    return match[1], frozenset(_V1_LETTERS.get(match[2], match[2]))


# -------------------------------------------------------------------------------------------------------------------- key


def read_key(path: Path, key_id: str | None = None, password: str | None = None) -> Key:
    """Read the private key out of a PEM, JWK or JWKS file that only its owner can read.

    Of a JWKS it is the key with `key_id`, or the only private one. The key id of an assertion is that of the JWK, else
    `key_id`, else the key's thumbprint (RFC 7638). RSA keys sign with RS384, keys on P-384 with ES384.
    Raises SignInError: others can read the file, or it holds no such key.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(MAX_KEY_FILE).removeprefix(_BOM) if mode & 0o077 == 0 else b""
    except OSError as error:
        raise SignInError(f"{path}: the key file cannot be read ({error.strerror}); check its name") from None
    if mode & 0o077:
        raise SignInError(f"{path}: others than its owner can reach the key; run chmod 600 on it")
    if raw.lstrip().startswith(b"{"):
        private, named = _from_jwk(path, raw, key_id)
    else:
        private, named = _from_pem(path, raw, password), None
    algorithm, public = _algorithm(path, private)
    return Key(private, algorithm, named or key_id or _thumbprint(public))


def _from_pem(path: Path, raw: bytes, password: str | None) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    locked = b"ENCRYPTED" in raw
    if locked and not password:
        raise SignInError(f"{path}: the key is protected by a password; give it in CRMO_FHIR_KEY_PASSWORD")
    private = None
    # What the library says is not chained: nothing of a key file can get out this way.
    with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
        private = load_pem_private_key(raw, password.encode() if locked and password else None)
    if private is None and locked:
        raise SignInError(f"{path}: the key cannot be opened; check the password in CRMO_FHIR_KEY_PASSWORD")
    if private is None and (b"PUBLIC KEY" in raw or b"CERTIFICATE" in raw):
        raise SignInError(f"{path}: the file holds a public key only; give the private one")
    if private is None:
        raise SignInError(f"{path}: the file holds no private key in PEM, JWK or JWKS form")
    return private


def _from_jwk(path: Path, raw: bytes, key_id: str | None) -> tuple[Any, str | None]:
    from jwt.algorithms import ECAlgorithm, RSAAlgorithm

    document = _parsed(raw)
    if document is None:
        raise SignInError(f"{path}: the file is no valid JSON; give a key in PEM, JWK or JWKS form")
    keys = [key for key in _objects(document.get("keys", [document])) if key.get("use", "sig") == "sig"]
    private = [key for key in keys if "d" in key]
    if not private and any(key.get("kty") == "oct" for key in keys):
        raise SignInError(f"{path}: a shared secret (HMAC) is no key for SMART; give an RSA key or one on P-384")
    if keys and not private:
        raise SignInError(f"{path}: the file holds a public key only; give the private one")
    if key_id:
        named = [key for key in private if key.get("kid") == key_id]
        private = named or [key for key in private if "kid" not in key]
    if len(private) != 1:
        raise SignInError(
            f"{path}: the file holds {len(private) or 'no'} private keys"
            + (" with that key_id" if key_id else "")
            + "; name the right one with key_id under [sign_in] in crmo-fhir.toml (or CRMO_FHIR_KEY_ID)"
        )
    (key,) = private
    loaders: dict[str, Callable[[Any], Any]] = {"RSA": RSAAlgorithm.from_jwk, "EC": ECAlgorithm.from_jwk}
    if str(key.get("kty")) not in loaders:
        raise SignInError(f"{path}: {_WRONG_KIND}")
    loaded = None
    with contextlib.suppress(Exception):  # the library lets errors of many kinds through, and they may hold the key
        loaded = loaders[key["kty"]](key)
    if loaded is None:
        raise SignInError(f"{path}: the JWK is damaged or of a kind that SMART does not use; make it anew")
    return loaded, key["kid"] if isinstance(key.get("kid"), str) else None


_WRONG_KIND = "a key of this kind is not for SMART; make an RSA key of 2048 bits or more, or an EC key on P-384"


def _algorithm(path: Path, private: Any) -> tuple[str, dict[str, Any]]:
    """The signature a key makes (RS384 or ES384), and its public half as a JWK."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from jwt.algorithms import ECAlgorithm, RSAAlgorithm

    if isinstance(private, RSAPrivateKey):
        if private.key_size < MIN_RSA_BITS:
            raise SignInError(f"{path}: an RSA key of {private.key_size} bits is too short; make one of 2048 or more")
        return "RS384", RSAAlgorithm.to_jwk(private.public_key(), as_dict=True)
    if isinstance(private, EllipticCurvePrivateKey) and isinstance(private.curve, SECP384R1):
        return "ES384", ECAlgorithm.to_jwk(private.public_key(), as_dict=True)
    raise SignInError(f"{path}: {_WRONG_KIND}")


def _thumbprint(public: Mapping[str, Any]) -> str:
    """The SHA-256 thumbprint of a public JWK (RFC 7638): its required members, sorted, without white space."""
    members = {name: public[name] for name in ("crv", "e", "kty", "n", "x", "y") if name in public}
    digest = hashlib.sha256(json.dumps(members, sort_keys=True, separators=(",", ":")).encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


# ---------------------------------------------------------------------------------------------------------------- answers


def _parsed(body: bytes) -> dict[str, Any] | None:
    """A JSON object, or None; without an error, which would hold on to the text, and that may be a token."""
    try:
        value = strict.parse(body.removeprefix(_BOM))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _clock_skew(date: str | None) -> float:
    """Seconds by which the server's `Date` is ahead of this machine's clock; 0 where it shows none."""
    try:
        return (parsedate_to_datetime(date or "") - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return 0.0
