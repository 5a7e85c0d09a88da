"""The only HTTP of the program: one FHIR server, asked over a session that gives nothing away and accepts nothing cut.

What it holds to (numbers are the documented limits):

* Credentials and cookies go to the server's own origin, and credentials with an export's files to an allowed one; nowhere
  else. Plain http is for loopback addresses; no proxy, no netrc.
* A redirect is followed within the origin or to an allowed one, at most 5 times; there without credentials.
* A body counts only when its framing and its gzip members are complete. Unpacked it may hold 64 MiB, of them 8 MiB and
  200 times what came over the wire; a file of an export 64 MiB and 200 times that.
* A connection may take 5 s, silence 60 s, an answer 300 s and no less than 100 bytes/s after the first minute.
* No more requests are open at once than there are workers (4); a 429 or a `Retry-After` to one holds all of them back.
* Safe requests are repeated on lost connections, cut bodies and 408, 429, 500, 502, 503, 504, with waits that double and
  jitter, or as long as `Retry-After` says (up to 300 s), until the retry budget is spent. A server that cannot be
  reached at all when the run starts is given 8 s. What changes the server is sent once.

No message holds a query, an id, a token, or free text of the server: queries name patients, and the text may too.
"""

import base64
import contextlib
import hashlib
import ipaddress
import os
import random
import re
import socket
import ssl
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit

import requests
import requests.adapters
import urllib3
import urllib3.connection
import urllib3.exceptions

from crmo_fhir import __version__
from crmo_fhir.errors import IncompleteError, IntegrityError, NetworkError, SignInError, UsageError
from crmo_fhir.fhir import references, strict
from crmo_fhir.fhir.outcomes import issue_codes, said

FHIR_JSON = "application/fhir+json"
FORM = "application/x-www-form-urlencoded"
NDJSON = "application/fhir+ndjson"
RETRY_BUDGET = 120.0
TIMEOUT = 60.0
CONNECT_TIMEOUT = 5.0
TOTAL_TIMEOUTS = 5
START_LIMIT = 8.0
LEAST_RATE = 100
MAX_BODY = 64 * 1024 * 1024
MAX_RATIO = 200
SMALL_BODY = 8 * 1024 * 1024
MAX_REDIRECTS = 5
MAX_RETRY_AFTER = 300.0
WORKERS = 4
_CHUNK = 65536
_RETRIED = (408, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
_BOM = b"\xef\xbb\xbf"
_ELEMENT = re.compile(rb'"resourceType":\s?"([A-Za-z]{1,40})"|"([A-Za-z]{1,40})"\s*:')
_Origin = tuple[str, str, int]


class RefusedError(IncompleteError):
    """The server refuses one request (4xx or 5xx that no repetition mends): `status`, and the OperationOutcome's codes."""

    def __init__(self, message: str, status: int, codes: tuple[str, ...] = ()) -> None:
        """Keep what a caller may decide on."""
        super().__init__(message)
        self.status = status
        self.codes = codes


class ForbiddenError(SignInError):
    """The server knows us and does not let us have this one thing (403)."""


class LostError(NetworkError):
    """What was sent may have been taken by the server or not: no whole answer came."""


class _AgainError(Exception):
    """One attempt failed in a way that may pass; `wait` is what the server asked for, `busy` that it asks all to wait."""

    def __init__(
        self, reason: str, wait: float | None = None, *, unreachable: bool = False, busy: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait
        self.unreachable = unreachable
        self.busy = busy


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: status, headers (names in lower case), the unpacked body, the URL it came from.

    `framed` is False where the server said neither how long the body is nor where it ends; `recalled`, that it is out of
    the journal.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    framed: bool
    recalled: bool = False


@dataclass(frozen=True, slots=True)
class Download:
    """A whole file as it was saved: size and SHA-256 of the unpacked bytes, headers, and `framed` as for an Answer."""

    bytes: int
    sha256: str
    framed: bool
    headers: Mapping[str, str]


class Credentials(Protocol):
    """Who we are to the server: asked for a header before each request, told when the server does not take it."""

    def header(self) -> str:
        """The value of `Authorization` to send now; empty for none. May sign in or renew; safe from many threads."""

    def refused(self, header: str) -> bool:
        """Take note of a 401 to `header`; True where another header may be tried now."""


class PageStore(Protocol):
    """Where answers outlive a killed run (the journal of the study)."""

    def recall(self, key: str) -> Answer | None:
        """The answer kept under a key."""

    def keep(self, key: str, answer: Answer) -> None:
        """Keep an answer."""

    def forget(self, keys: Iterable[str]) -> None:
        """Drop answers that turned out not to be whole."""


class Static:
    """Credentials that do not change: a bearer token, or user name and password (RFC 7617), out of the environment."""

    def __init__(self, *, token: str = "", basic: str = "") -> None:
        """Take one of both. SignInError where the token holds what no header can carry."""
        if not re.fullmatch(r"[\x21-\x7e]*", token.strip()):
            raise SignInError("the token holds characters that no bearer token has; check CRMO_FHIR_TOKEN")
        encoded = base64.b64encode(basic.encode()).decode()
        self._header = f"Basic {encoded}" if basic else f"Bearer {token.strip()}" if token.strip() else ""

    def header(self) -> str:
        """The same value every time."""
        return self._header

    def refused(self, header: str) -> bool:
        """There is no other."""
        del header
        return False


def origin_of(url: str) -> _Origin:
    """Scheme, host and port of a URL; ValueError where it is none of http or https."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or not parts.hostname:
        raise ValueError("not an http or https URL")
    return scheme, parts.hostname.lower(), parts.port or _PORTS[scheme]


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def checked_base(base: str) -> str:
    """Normalise a FHIR base URL; UsageError where it is none, carries a secret or a query, or is plain http elsewhere."""
    try:
        scheme, host, _ = origin_of(base.strip())
    except ValueError as error:
        raise UsageError("the server address is no http or https URL; give the FHIR base URL") from error
    parts = urlsplit(base.strip())
    if parts.username is not None or parts.password is not None:
        raise UsageError("the server address holds a user name or password; give the token in CRMO_FHIR_TOKEN")
    if parts.query or parts.fragment:
        raise UsageError("the server address holds a query; give the FHIR base URL alone")
    if scheme == "http" and not is_loopback(host):
        raise UsageError(f"plain http to {host} would show records and token to the network; use https")
    return references.same_base(base)


def retry_after(value: str | None, date: str | None) -> float | None:
    """Seconds a `Retry-After` asks for (RFC 9110 10.2.3: seconds or HTTP-date); None for what is neither."""
    if value is None:
        return None
    value = value.strip()
    if value.isdecimal() and value.isascii():
        return float(value[:12])
    try:
        then = parsedate_to_datetime(value)
        # The server's own clock, where it shows one, so that a wrong clock here makes no wrong wait.
        now = parsedate_to_datetime(date) if date else datetime.now(UTC)
        if then.tzinfo is None or now.tzinfo is None:
            return None
        return max(0.0, (then - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _unpacked(chunks: Iterator[bytes], encoding: str, limit: Callable[[int], int]) -> Iterator[bytes]:
    """Undo a Content-Encoding piece by piece.

    `limit` says how many bytes may come out of how many that went in. `_AgainError` where the packing is cut or damaged,
    IncompleteError where it grows beyond the limit or was not asked for.
    """
    packed = encoding not in ("", "identity")
    if packed and encoding not in ("gzip", "x-gzip", "deflate"):
        raise IncompleteError("the server packs its answer in a way that was not asked for")
    unpacker, received, given = None, 0, 0
    for chunk in chunks:
        received += len(chunk)
        data, more = chunk, False
        while data or more:
            if packed:
                # 47 = the largest window, gzip or zlib header; after the end of a member another one may follow.
                unpacker = zlib.decompressobj(wbits=47) if unpacker is None or unpacker.eof else unpacker
                try:
                    piece = unpacker.decompress(data, 4 * _CHUNK)
                except zlib.error as error:
                    raise _AgainError("its packed answer is damaged") from error
                data = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
                more = len(piece) == 4 * _CHUNK and not unpacker.eof
            else:
                piece, data = data, b""
            given += len(piece)
            if given > limit(received):
                raise IncompleteError(
                    f"the server's answer is larger than {limit(received) // 2**20} MiB unpacked; ask it for smaller pages"
                )
            yield piece
    if unpacker is not None and not unpacker.eof:
        raise _AgainError("its packed answer is cut off")


def _most(received: int) -> int:
    """How many bytes may come out of an answer; several are read at a time, so a bomb must not come near the limit."""
    return min(MAX_BODY, SMALL_BODY + MAX_RATIO * received)


class _Timed(urllib3.connection.HTTPConnection):
    """A connection on which the head of an answer has a limit of time too: a byte now and then never is silence."""

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        """The head of the answer; the connection is cut where it does not come in time."""
        alarm = threading.Timer(TOTAL_TIMEOUTS * (self.timeout or TIMEOUT), _cut, [self.sock])
        alarm.daemon = True
        alarm.start()
        try:
            return super().getresponse()
        finally:
            alarm.cancel()


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class _TimedTls(_Timed, urllib3.connection.HTTPSConnection):
    """The same over TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Timed


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TimedTls


class _Adapter(requests.adapters.HTTPAdapter):
    """The way to a server, over connections that are timed."""

    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        """Make the pools."""
        super().init_poolmanager(*arguments, **named)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}


class _Session(requests.Session):
    """A session that leaves redirects to us: requests would read their bodies, unpacked and without limit, before we do."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Nowhere."""
        del resp


class FhirClient:
    """A session with one FHIR server (see the head of this module for what it holds to); safe to use from many threads."""

    def __init__(
        self,
        base: str,
        credentials: Credentials | None = None,
        *,
        retry_budget: float = RETRY_BUDGET,
        ca_file: Path | None = None,
        timeout: float = TIMEOUT,
        workers: int = WORKERS,
        allow: Collection[str] = (),
        journal: PageStore | None = None,
        tell: Callable[[str], None] = lambda _: None,
        log: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare the session; nothing is sent yet. UsageError: base, `allow` or `ca_file` cannot be right.

        `allow` are the origins, besides the server's own, that links may lead to; `journal` keeps the answers of searches;
        `tell` is told what a user should know, `log` of every request its kind, status and time.
        """
        self.base = checked_base(base)
        self.credentials = credentials
        self.server_date = ""
        self.workers = workers
        self.wait = sleep
        self.journal = journal
        self.tell = tell
        self._log = log
        self._origin = origin_of(self.base)
        self._allowed = {origin_of(checked_base(url)) for url in allow}
        self._left = max(0.0, retry_budget)
        self._start_left = START_LIMIT
        self._met = False
        self._asked = set[str]()  # types, operations and parameters of our own asking: only these are ever shown
        self._shut_out = ""
        self._of_thread = threading.local()
        self._timeout = timeout
        self._lock = threading.Lock()
        self._open = threading.BoundedSemaphore(workers)
        self._held_until, self._held_by = 0.0, 0
        self._session = _Session()
        weakref.finalize(self, self._session.close)  # a run may end anywhere
        self._session.trust_env = False
        self._session.headers.clear()
        self._session.headers.update(
            {"User-Agent": f"crmo-fhir/{__version__}", "Accept": FHIR_JSON, "Accept-Encoding": "gzip"}
        )
        adapter = _Adapter(pool_maxsize=workers)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)
        if ca_file is not None:
            if not ca_file.is_file():
                raise UsageError(f"there is no CA file {ca_file}")
            try:
                ssl.create_default_context(cafile=str(ca_file))
            except (ssl.SSLError, OSError) as error:
                raise UsageError(f"{ca_file} holds no certificates in PEM form") from error
            self._session.verify = str(ca_file)

    @property
    def host(self) -> str:
        """Host and port, as messages name the server."""
        return f"{self._origin[1]}:{self._origin[2]}"

    def close(self) -> None:
        """Close the session's connections."""
        self._session.close()

    def ask_until(self, ended: threading.Event) -> None:
        """Let this thread ask for nothing more once `ended` is set: a NetworkError, which nobody waits for, ends it."""
        self._of_thread.ended = ended

    # ------------------------------------------------------------------------------------------------------- what is asked

    def get(self, url_or_path: str, params: Sequence[tuple[str, str]] = (), *, signed: bool = True) -> dict[str, Any]:
        """GET a resource, relative to the base or absolute on its origin, and parse it strictly.

        Raises NetworkError, SignInError, RefusedError (4xx), IncompleteError (no FHIR JSON, another origin).
        """
        return self.resource(self.answer("GET", self.url(url_or_path, params), signed=signed))

    def get_json(self, url_or_path: str, *, signed: bool) -> dict[str, Any]:
        """GET a JSON object that is no resource (a SMART configuration, an export's manifest); raises as `get`."""
        return self.json(
            self.answer("GET", self.url(url_or_path), headers={"Accept": "application/json"}, signed=signed)
        )

    def read(
        self, type_name: str, identity: str, check: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> tuple[dict[str, Any], str]:
        """Read one resource by type and id: parsed, and on one line with every number as sent.

        Raises as `get`; IncompleteError too where the server answers with another resource than the one asked for. What
        `check` raises goes through, and the answer is not kept.
        """
        if not identity.strip("."):
            # `..` is an id by the letter of FHIR, and in a path a step upwards, however it is escaped.
            raise RefusedError(f"{self.host}, {type_name}: a resource with an id of dots cannot be read alone", 404)
        answer = self.answer("GET", self.url(f"{type_name}/{quote(identity, safe='')}"), journaled=True)
        resource = self.resource(answer)
        if resource["resourceType"] != type_name or resource.get("id") != identity:
            raise IncompleteError(f"{self.host}, {type_name}: the server answers a read with another resource")
        check(resource)
        self.keep("GET", answer)
        return resource, strict.compact(answer.body.removeprefix(_BOM))

    def answer(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        expect: Collection[int] = (),
        signed: bool = True,
        journaled: bool = False,
    ) -> Answer:
        """Send a safe request until it is answered or the budget is spent; statuses in `expect` come back as they are.

        `journaled`: an answer of a killed run is given again; whoever finds the answer good hands it to `keep`.
        """
        if (
            journaled
            and self.journal is not None
            and (kept := self.journal.recall(_key(method, url, body))) is not None
        ):
            return kept
        attempt = 0
        while True:
            started = time.monotonic()
            try:
                return self._once(method, url, body, headers or {}, expect, signed=signed)
            except _AgainError as again:
                self._wait_again(again, attempt, time.monotonic() - started, f"{self.host}, {self.shown(url)}")
                attempt += 1

    def keep(self, method: str, answer: Answer, body: bytes | None = None, url: str = "") -> str:
        """Keep a good answer in the journal, under the URL that was asked where it is another one; gives its key."""
        key = _key(method, url or answer.url, body)
        if self.journal is not None:
            self.journal.keep(key, answer)
        return key

    def forget(self, keys: Iterable[str]) -> None:
        """Drop answers from the journal that turned out not to be whole."""
        if self.journal is not None:
            self.journal.forget(keys)

    def send(
        self, method: str, url_or_path: str, body: bytes, headers: Mapping[str, str], expect: Collection[int] = ()
    ) -> Answer:
        """Send something that changes the server, once and never again; statuses in `expect` come back as answers.

        Raises LostError where it was sent and no whole answer came; NetworkError where it never left; else as `get`.
        """
        url = self.url(url_or_path)
        try:
            return self._once(method, url, body, {**({"Content-Type": FHIR_JSON} if body else {}), **headers}, expect)
        except _AgainError as again:
            where = f"{self.host}, {self.shown(url)}"
            if again.unreachable:
                raise NetworkError(f"{where}: {again.reason}; nothing was sent, run again later") from again
            raise LostError(f"{where}: {again.reason}; whether the server took it is not known") from again

    def pause(self, url: str, reason: str, attempt: int, wait: float | None = None) -> None:
        """Wait as after a failed attempt (`attempt` counts from 0), where a caller finds that an answer will pass.

        `wait` is what the server asked for, in seconds. NetworkError where the retry budget does not hold it.
        """
        self._wait_again(_AgainError(reason, wait), attempt, 0.0, f"{self.host}, {self.shown(url)}")

    def post_form(self, url: str, fields: Mapping[str, str]) -> Answer:
        """Send a form to a token endpoint, once, without credentials and without following a redirect.

        Any status comes back. Raises NetworkError where no whole answer comes, UsageError for plain http elsewhere.
        """
        checked_base(url)
        self._asked.add(self._part(url))
        headers = {"Content-Type": FORM, "Accept": "application/json"}
        try:
            answer, _ = self._exchange("POST", url, urlencode(fields).encode(), headers, signed=False)
        except _AgainError as again:
            raise NetworkError(f"{origin_of(url)[1]}, token endpoint: {again.reason}; run again later") from again
        return answer

    def download(self, url: str, path: Path, *, signed: bool, accept: str) -> Download:
        """Save a file of an export, unpacked, as `path`; whole or not at all, repeated within the budget.

        Raises as `get`; IntegrityError where it cannot be written.
        """
        attempt = 0
        while True:
            started = time.monotonic()
            try:
                return self._save(self.url(url), path, {"Accept": accept}, signed=signed)
            except _AgainError as again:
                self._wait_again(again, attempt, time.monotonic() - started, f"{self.host}, a file of the export")
                attempt += 1

    # ---------------------------------------------------------------------------------------------------- what an answer is

    def url(self, url_or_path: str, params: Sequence[tuple[str, str]] = ()) -> str:
        """Give the URL of a path below the base or of an absolute address; IncompleteError where that is not to be fetched."""
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url_or_path):
            url = url_or_path
            if not self._may_ask(url):
                raise IncompleteError(
                    f"an address on another origin than {self.host} was not fetched; allow it with --allow-origin if it is right"
                )
        else:
            url = f"{self.base}/{url_or_path.lstrip('/')}"
            self._asked.update((self._part(url), *(name for name, _ in params)))
        return f"{url}{'&' if '?' in url else '?'}{urlencode(params)}" if params else url

    def resource(self, answer: Answer) -> dict[str, Any]:
        """Parse a FHIR resource out of an answer, or say in an IncompleteError that it is none."""
        value = self.json(answer)
        if not isinstance(value.get("resourceType"), str):
            raise IncompleteError(f"{self.host}, {self.shown(answer.url)}: no FHIR JSON; check the base URL")
        return value

    def json(self, answer: Answer) -> dict[str, Any]:
        """Parse a JSON object out of an answer, or say in an IncompleteError that it is none."""
        where = f"{self.host}, {self.shown(answer.url)}"
        if "html" in answer.headers.get("content-type", "").lower():
            raise IncompleteError(f"{where}: an HTML page instead of FHIR JSON; check the base URL and the sign-in")
        try:
            value = strict.parse(answer.body.removeprefix(_BOM))
        except ValueError as error:
            raise IncompleteError(f"{where}: no FHIR JSON, {error}") from error
        if not isinstance(value, dict):
            raise IncompleteError(f"{where}: no FHIR JSON; check the base URL")
        return value

    def shown(self, url: str) -> str:
        """The first part of a path below the base, where we have asked for it: a type or operation, no id and no query."""
        part = self._part(url)
        if url == self.base:
            return "transaction"
        return part if part in self._asked and re.fullmatch(r"\$?[A-Za-z_-]{1,40}", part) else "a page"

    def _part(self, url: str) -> str:
        return urlsplit(url).path.removeprefix(urlsplit(self.base).path).strip("/").split("/")[0]

    def is_own(self, url: str) -> bool:
        """Whether a URL is on the server's own origin."""
        try:
            return origin_of(url) == self._origin
        except ValueError:
            return False

    def _may_ask(self, url: str) -> bool:
        """Own origin, or an allowed one; never from https to plain http, nor with a user in the address."""
        try:
            origin = origin_of(url)
            if "@" in urlsplit(url).netloc:
                return False  # of `a@b` and worse, libraries do not agree on what is the host
        except ValueError:
            return False
        return origin == self._origin or (
            origin in self._allowed and (origin[0] == "https" or self._origin[0] == "http")
        )

    # -------------------------------------------------------------------------------------------------------- one attempt

    def _wait_again(self, again: _AgainError, attempt: int, lost: float, where: str) -> None:
        """Wait before the next attempt; NetworkError where the budget does not hold another one."""
        with self._lock:
            self._left -= lost
            limit = self._left
            if not self._met and again.unreachable:
                self._start_left -= lost
                limit = min(limit, self._start_left)
            wait = again.wait
            if wait is not None and wait > MAX_RETRY_AFTER:
                self.tell(
                    f"{where}: the server asks to wait {wait:.0f} s; the limit of {MAX_RETRY_AFTER:.0f} s is taken"
                )
                wait = MAX_RETRY_AFTER
            if wait is not None and wait > max(limit, 0.0):
                raise NetworkError(
                    f"{where}: {again.reason} and asks to wait {wait:.0f} s, more than is left of the retry budget; run "
                    "again later or with a larger --retry-budget"
                ) from again
            if wait is None:
                # 0.5 s, 1 s, 2 s, ... with a jitter small enough that each wait is longer than the last.
                wait = min(limit, min(30.0, 0.5 * 2.0**attempt) * random.uniform(0.75, 1.25))  # noqa: S311
            if limit <= 0:
                raise NetworkError(
                    f"{where}: {again.reason} ({attempt + 1} tries); check the address and the network, "
                    "or run again with a larger --retry-budget"
                ) from again
            self._left -= wait
            if not self._met and again.unreachable:
                self._start_left -= wait
            if again.busy:
                self._held_until, self._held_by = time.monotonic() + wait, threading.get_ident()
        self.wait(wait)

    def _hold_back(self) -> None:
        """Wait where the server has asked another worker to; that worker itself has done so already."""
        with self._lock:
            rest = 0.0 if self._held_by == threading.get_ident() else self._held_until - time.monotonic()
        if rest > 0:
            self.wait(rest)

    def _once(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        expect: Collection[int],
        *,
        signed: bool = True,
    ) -> Answer:
        """One attempt: redirects within the origin included, and one more try where a 401 can be mended."""
        renewed, redirects = False, 0
        while True:
            answer, used = self._exchange(method, url, body, headers, signed=signed)
            if answer.status in _REDIRECTS and answer.status not in expect:
                redirects += 1
                if redirects > MAX_REDIRECTS:
                    raise IncompleteError(f"{self.host}, {self.shown(url)}: more than {MAX_REDIRECTS} redirects")
                url = self._redirected(method, answer.url, answer.status, answer.headers)
                continue
            if answer.status == 401 and used and not renewed and self.credentials and self.credentials.refused(used):
                renewed = True
                continue
            if 200 <= answer.status < 300:
                if not answer.framed:
                    _check_unframed(answer)
                return answer
            if answer.status in expect:
                return answer
            refusal = self._refusal(answer, body)
            if answer.status == 401 and renewed:
                self._shut_out = str(refusal)  # the others need not find out for themselves
            raise refusal

    def _redirected(self, method: str, asked: str, status: int, headers: Mapping[str, str]) -> str:
        where = f"{self.host}, {self.shown(asked)}"
        try:
            url = urljoin(asked, headers.get("location", ""))
        except ValueError:
            url = ""
        if not headers.get("location") or not self._may_ask(url):
            raise IncompleteError(f"{where}: the server redirects to another origin; give the base URL it points to")
        if method != "GET" and not (self.is_own(url) or asked.endswith("/_search")):
            raise IncompleteError(f"{where}: the server redirects a {method} to another origin; nothing was sent there")
        if method != "GET" and status not in (307, 308):
            raise IncompleteError(f"{where}: the server redirects a {method}; give the base URL it points to")
        return url

    def _refusal(self, answer: Answer, body: bytes | None = None) -> Exception:
        where = f"{self.host}, {self.shown(answer.url)}"
        try:
            outcome = strict.parse(answer.body.removeprefix(_BOM))
        except ValueError:
            outcome = None
        names = _names_in(body) if body else self._asked & _names_in(urlsplit(answer.url).query.encode())
        words = said(outcome, {*names, *(name.partition(":")[0] for name in names), self.shown(answer.url)})
        shown = f"{answer.status} ({words})" if words else f"{answer.status}"
        if answer.status in _RETRIED:
            wait = retry_after(answer.headers.get("retry-after"), answer.headers.get("date"))
            busy = answer.status == 429 or wait is not None
            return _AgainError(f"the server answers {shown}", wait, busy=busy)
        if answer.status == 401:
            return SignInError(
                f"{where}: the server answers {shown}; give valid credentials (CRMO_FHIR_TOKEN or a client id with its key)"
            )
        if answer.status == 403:
            return ForbiddenError(f"{where}: the server answers {shown}; the token's scope does not reach this")
        return RefusedError(
            f"{where}: the server refuses the request with {shown}", answer.status, issue_codes(outcome)
        )

    def _exchange(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], *, signed: bool
    ) -> tuple[Answer, str]:
        """Send once and read the whole answer, with the credentials used; `_AgainError` for what may pass."""
        with self._request(method, url, body, headers, signed=signed) as sent:
            content = bytearray()
            try:
                for piece in _unpacked(sent.chunks(self._timeout, total=True), sent.encoding, _most):
                    content += piece
            except Exception:
                content.clear()  # an error may be kept for long, and with it all that it went through
                raise
            return Answer(sent.status, sent.headers, bytes(content), url, sent.framed), sent.used

    def _save(self, url: str, path: Path, headers: Mapping[str, str], *, signed: bool) -> Download:
        """One attempt at a file, redirects and one renewal of the credentials included."""
        renewed = False
        for _ in range(MAX_REDIRECTS + 1):
            with self._request("GET", url, None, headers, signed=signed) as sent:
                if sent.status == 200 and "html" not in sent.headers.get("content-type", "").lower():
                    chunks = sent.chunks(self._timeout, total=False)
                    pieces = _unpacked(chunks, sent.encoding, lambda received: MAX_BODY + MAX_RATIO * received)
                    try:
                        size, digest = _write(pieces, path)
                    except BaseException:
                        path.unlink(missing_ok=True)  # a bomb, or half a file of everybody's records
                        raise
                    return Download(size, digest, sent.framed, sent.headers)
                pieces = _unpacked(sent.chunks(self._timeout, total=True), sent.encoding, _most)
                answer = Answer(sent.status, sent.headers, b"".join(pieces), url, sent.framed)
            if answer.status in _REDIRECTS:
                url = self._redirected("GET", url, answer.status, answer.headers)
            elif (
                answer.status == 401
                and sent.used
                and not renewed
                and self.credentials
                and self.credentials.refused(sent.used)
            ):
                renewed = True
            elif answer.status == 200:
                raise IncompleteError(f"{self.host}: an HTML page instead of a file of the export; run again")
            else:
                raise self._refusal(answer)
        raise IncompleteError(f"{self.host}, a file of the export: more than {MAX_REDIRECTS} redirects")

    def _request(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], *, signed: bool
    ) -> "_Sent":
        """Send once and read the head of the answer."""
        self._hold_back()
        if signed and self._shut_out:
            raise SignInError(self._shut_out)
        sent = dict(headers)
        used = self.credentials.header() if signed and self.credentials is not None else ""
        if used:
            # A page or redirect elsewhere never sees them; a file that the export says needs them may be on an allowed origin.
            if self.is_own(url) or (headers.get("Accept") == NDJSON and self._may_ask(url)):
                sent["Authorization"] = used
            else:
                used = ""
        # Silence is waiting on a failing server too: with a small budget it is cut short, but never under 5 s.
        silence = min(self._timeout, max(5.0, self._left))
        started = time.monotonic()
        self._open.acquire()
        ended = getattr(self._of_thread, "ended", None)
        if ended is not None and ended.is_set():
            self._open.release()
            raise NetworkError(f"{self.host}: the run is over, nothing more is asked")
        try:
            prepared = self._session.prepare_request(requests.Request(method, url, data=body, headers=sent))
            prepared.url = url if url.isascii() else prepared.url  # links are opaque: not spelt anew
            if not self.is_own(url):
                prepared.headers.pop("Cookie", None)  # a jar knows hosts but no ports
            response = self._session.send(
                prepared,
                allow_redirects=False,
                stream=True,
                timeout=(min(CONNECT_TIMEOUT, silence), silence),
                verify=self._session.verify,
            )
        except Exception as error:
            self._open.release()
            raise self._failure(error, url) from error
        self._met = True
        self._log(f"{method} {self.shown(url)} {response.status_code} {1000 * (time.monotonic() - started):.0f} ms")
        self.server_date = self.server_date or response.headers.get("Date", "")
        return _Sent(response, self._open, used, started, silence)

    def _failure(self, error: Exception, url: str) -> Exception:
        """What a failed attempt to send means: something that may pass, or the user's one line."""
        if isinstance(error, requests.exceptions.SSLError):
            if "EOF occurred" in str(error) or "reset" in str(error).lower():
                return _AgainError("the connection broke off")
            return NetworkError(
                f"{self.host}: no trusted TLS connection; check the name, or give the hospital's CA with --ca-file"
            )
        if isinstance(error, requests.exceptions.ConnectTimeout):
            return _AgainError("no connection in time", unreachable=True)
        if isinstance(error, requests.exceptions.Timeout):
            return _AgainError("no answer in time")
        if isinstance(error, (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            inner = getattr(error.args[0], "reason", None) if error.args else None
            if isinstance(inner, urllib3.exceptions.NameResolutionError):
                return _AgainError("the host name cannot be resolved", unreachable=True)
            if isinstance(inner, urllib3.exceptions.NewConnectionError):
                return _AgainError("the connection is refused", unreachable=True)
            return _AgainError("the connection broke off")
        if isinstance(error, (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, ValueError)):
            return IncompleteError(f"{self.host}, {self.shown(url)}: the request cannot be sent")
        return error


class _Sent:
    """A request on its way: the head of its answer is here, the body is to be read; holds one of the open places."""

    def __init__(
        self, response: requests.Response, place: threading.BoundedSemaphore, used: str, started: float, silence: float
    ) -> None:
        self.status = response.status_code
        self.headers = {name.lower(): value for name, value in response.headers.items()}
        self.encoding = self.headers.get("content-encoding", "").strip().lower()
        self.framed = "content-length" in self.headers or "chunked" in self.headers.get("transfer-encoding", "").lower()
        self.used = used
        self._response, self._place, self._started, self._silence = response, place, started, silence

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._response.close()
        finally:
            self._place.release()

    def chunks(self, timeout: float, *, total: bool) -> Iterator[bytes]:
        """The body as it arrives, still packed: `read1` gives what is there, so that a drip cannot outrun the clock.

        `total`: the whole answer has a limit of time; a file of an export has only the least rate, minute by minute.
        """
        received, since, since_then = 0, self._started, 0
        while True:
            try:
                chunk = self._response.raw.read1(_CHUNK, decode_content=False)
            except (urllib3.exceptions.ReadTimeoutError, TimeoutError) as error:
                raise _AgainError("its answer stalls") from error
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                raise _AgainError("its answer is cut off") from error
            if not chunk:
                return
            received += len(chunk)
            since_then += len(chunk)
            now = time.monotonic()
            if total and now - self._started > TOTAL_TIMEOUTS * timeout:
                raise _AgainError("its answer is too slow")
            if now - since > self._silence:
                if since_then < LEAST_RATE * (now - since):
                    raise _AgainError("its answer is too slow")
                if not total:
                    since, since_then = now, 0
            yield chunk


def _names_in(sent: bytes) -> set[str]:
    """What we named in a request, which the server may therefore repeat: parameters, or the elements of a resource."""
    if sent[:1] == b"{":
        return {name.decode() for pair in _ELEMENT.findall(sent) for name in pair if name}
    return (
        {name for name, _ in parse_qsl(sent.decode("utf-8", "replace"), keep_blank_values=True)}
        if len(sent) < _CHUNK
        else set()
    )


def _key(method: str, url: str, body: bytes | None) -> str:
    return hashlib.sha256(b"\0".join((method.encode(), url.encode(), body or b""))).hexdigest()


def _check_unframed(answer: Answer) -> None:
    try:
        strict.parse(answer.body.removeprefix(_BOM))
    except ValueError as error:
        if "too early" in str(error):
            raise _AgainError("its answer is cut off") from error


def _write(pieces: Iterable[bytes], path: Path) -> tuple[int, str]:
    """Write a file as it arrives; its size and SHA-256. IntegrityError where the disk does not take it."""
    digest, size = hashlib.sha256(), 0
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise IntegrityError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from error
    return size, digest.hexdigest()
