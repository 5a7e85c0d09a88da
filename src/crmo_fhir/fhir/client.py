"""The only HTTP of the program: one FHIR server, asked over a session that gives nothing away and accepts nothing cut.

What it holds to (numbers are the documented limits):

* The token goes to the server's own origin and nowhere else; plain http is for loopback addresses; no proxy, no netrc.
* A redirect is followed within the origin, at most 5 times; a `next` link within the origin, as often as it brings news.
* A body counts only when its framing and its gzip members are complete; it may hold 128 MiB when unpacked.
* A connection may take 10 s, silence 60 s, an answer 300 s and no less than 100 bytes/s after the first minute.
* Safe requests are repeated on lost connections, cut bodies and 408, 429, 500, 502, 503, 504, with waits that double and
  jitter, or as long as `Retry-After` says, until the retry budget is spent. A server that cannot be reached at all when
  the run starts is given 8 s.

No message holds a query, an id, the token, or free text of the server: queries name patients, and the text may too.
"""

import ipaddress
import random
import re
import ssl
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit

import requests
import urllib3.exceptions

from crmo_fhir import __version__
from crmo_fhir.errors import IncompleteError, NetworkError, SignInError, UsageError
from crmo_fhir.fhir import references, strict

FHIR_JSON = "application/fhir+json"
RETRY_BUDGET = 120.0
TIMEOUT = 60.0
CONNECT_TIMEOUT = 10.0
TOTAL_TIMEOUTS = 5
START_LIMIT = 8.0
LEAST_RATE = 100
MAX_BODY = 128 * 1024 * 1024
MAX_REDIRECTS = 5
MAX_PAGES_WITHOUT_NEWS = 3
_RETRIED = (408, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_VERSIONS = re.compile(r"(4\.0|4\.3|5\.0)(\.\d+)?")
_PORTS = {"http": 80, "https": 443}
_OUR_PARAMETERS = ("_count", "_format", "_total", "_summary", "_sort", "_pretty", "_elements")
_Origin = tuple[str, str, int]


class RefusedError(IncompleteError):
    """The server refuses one request (4xx or 5xx that no repetition mends): `status`, and the OperationOutcome's codes."""

    def __init__(self, message: str, status: int, codes: tuple[str, ...] = ()) -> None:
        """Keep what a caller may decide on."""
        super().__init__(message)
        self.status = status
        self.codes = codes


class ShortError(IncompleteError):
    """A search came to its end with fewer matches than the server counts: `total`."""

    def __init__(self, message: str, total: int) -> None:
        """Keep what a caller may ask again with."""
        super().__init__(message)
        self.total = total


class _AgainError(Exception):
    """One attempt failed in a way that may pass; `wait` is what the server asked for."""

    def __init__(self, reason: str, wait: float | None = None, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait
        self.unreachable = unreachable


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: status, headers (names in lower case), the unpacked body, the URL it came from.

    `framed` is False where the server said neither how long the body is nor where it ends.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    framed: bool


@dataclass(frozen=True, slots=True)
class Match:
    """One resource a search found: parsed, and as one line of JSON with every number as sent."""

    type: str
    id: str
    resource: dict[str, Any]
    text: str
    full_url: str | None
    page: int


@dataclass(slots=True)
class Account:
    """How one search went; a caller passes an empty one to `search` and reads it when the search is over."""

    self_link: str = ""
    pages: int = 0
    matches: int = 0
    repeated: int = 0
    total: int | None = None
    framed: bool = True
    outcomes: list[str] = field(default_factory=list)


def origin_of(url: str) -> _Origin:
    """Scheme, host and port of a URL; ValueError where it is none of http or https."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or not parts.hostname:
        raise ValueError("not an http or https URL")
    return scheme, parts.hostname.lower(), parts.port or _PORTS[scheme]


def _is_loopback(host: str) -> bool:
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
    if scheme == "http" and not _is_loopback(host):
        raise UsageError(f"plain http to {host} would show records and token to the network; use https")
    return references.same_base(base)


def issue_codes(resource: object, severities: Collection[str] = ("fatal", "error")) -> tuple[str, ...]:
    """The issue types of an OperationOutcome of these severities (FHIR issue-type codes; never its free text)."""
    if not isinstance(resource, dict) or resource.get("resourceType") != "OperationOutcome":
        return ()
    issues = resource.get("issue")
    found = []
    for issue in issues if isinstance(issues, list) else []:
        if isinstance(issue, dict) and issue.get("severity") in severities:
            code = issue.get("code")
            found.append(code if isinstance(code, str) and re.fullmatch(r"[a-z-]{1,40}", code) else "unknown")
    return tuple(dict.fromkeys(found))


def _retry_after(value: str | None, date: str | None) -> float | None:
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


def _unpack(chunks: Iterator[bytes], encoding: str) -> bytes:
    """Join a body and undo its Content-Encoding; `_AgainError` where it is cut, IncompleteError where it is too large."""
    packed = encoding not in ("", "identity")
    if packed and encoding not in ("gzip", "x-gzip", "deflate"):
        raise IncompleteError("the server packs its answer in a way that was not asked for")
    body = bytearray()
    unpacker = None
    for chunk in chunks:
        data = chunk
        while data:
            if not packed:
                body += data
                data = b""
            else:
                # 47 = the largest window, gzip or zlib header; after the end of a member another one may follow.
                unpacker = zlib.decompressobj(wbits=47) if unpacker is None or unpacker.eof else unpacker
                try:
                    body += unpacker.decompress(data, MAX_BODY + 1 - len(body))
                except zlib.error as error:
                    raise _AgainError("its packed answer is damaged") from error
                data = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            if len(body) > MAX_BODY:
                raise IncompleteError(f"the server's answer is larger than {MAX_BODY // 2**20} MiB unpacked")
    if unpacker is not None and not unpacker.eof:
        raise _AgainError("its packed answer is cut off")
    return bytes(body)


class FhirClient:
    """A session with one FHIR server (see the head of this module for what it holds to)."""

    def __init__(
        self,
        base: str,
        token: str | Callable[[], str] | None = None,
        *,
        retry_budget: float = RETRY_BUDGET,
        ca_file: Path | None = None,
        timeout: float = TIMEOUT,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare the session; nothing is sent yet. UsageError: base, token or `ca_file` cannot be right."""
        self.base = checked_base(base)
        self.server_date = ""
        self._origin = origin_of(self.base)
        self._token = token
        self._left = max(0.0, retry_budget)
        self._start_left = START_LIMIT
        self._met = False
        self._timeout = timeout
        self._sleep = sleep
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers.clear()
        self._session.headers.update(
            {"User-Agent": f"crmo-fhir/{__version__}", "Accept": FHIR_JSON, "Accept-Encoding": "gzip"}
        )
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

    def get(self, url_or_path: str, params: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
        """GET a resource, relative to the base or absolute on its origin, and parse it strictly.

        Raises NetworkError, SignInError, RefusedError (4xx), IncompleteError (no FHIR JSON, another origin).
        """
        return self._resource(self._answer("GET", self._url(url_or_path, params)))

    def get_text(self, url_or_path: str, params: Sequence[tuple[str, str]] = ()) -> str:
        """GET a resource as `get` does, and give its JSON on one line with every number as sent."""
        answer = self._answer("GET", self._url(url_or_path, params))
        self._resource(answer)
        return strict.compact(answer.body.removeprefix(b"\xef\xbb\xbf"))

    def read(self, type_name: str, identity: str) -> tuple[dict[str, Any], str]:
        """Read one resource by type and id: parsed, and on one line with every number as sent.

        Raises as `get`; IncompleteError too where the server answers with another resource than the one asked for.
        """
        answer = self._answer("GET", self._url(f"{type_name}/{quote(identity, safe='')}", ()))
        resource = self._resource(answer)
        if resource["resourceType"] != type_name or resource.get("id") != identity:
            raise IncompleteError(f"{self.host}, {type_name}: the server answers a read with another resource")
        return resource, strict.compact(answer.body.removeprefix(b"\xef\xbb\xbf"))

    def send(
        self, method: str, url_or_path: str, body: bytes, headers: Mapping[str, str], expect: Collection[int]
    ) -> Answer:
        """Send something that changes the server, once and never again; statuses in `expect` come back as answers."""
        url = self._url(url_or_path, ())
        try:
            return self._once(method, url, body, {"Content-Type": FHIR_JSON, **headers}, expect, parse=False)
        except _AgainError as again:
            raise NetworkError(f"{self.host}: {again.reason}; whether it was stored is not known") from again

    def capabilities(self) -> dict[str, Any]:
        """GET the CapabilityStatement; IncompleteError where there is none or its FHIR version is not 4.0, 4.3 or 5.0."""
        statement = self.get("metadata")
        kind = statement.get("resourceType")
        if kind != "CapabilityStatement":
            older = " (DSTU2 or older)" if kind == "Conformance" else ""
            raise IncompleteError(
                f"{self.host} answers metadata with no CapabilityStatement{older}; check the base URL"
            )
        version = statement.get("fhirVersion")
        if not isinstance(version, str) or not _VERSIONS.match(version):
            shown = version if isinstance(version, str) and re.fullmatch(r"[\w.-]{1,20}", version) else "no version"
            raise IncompleteError(f"{self.host} speaks FHIR {shown}; R4 (4.0), R4B (4.3) and R5 (5.0) are read")
        return statement

    def search(
        self,
        type_name: str,
        params: Sequence[tuple[str, str]],
        *,
        post: bool = False,
        account: Account | None = None,
    ) -> Iterator[Match]:
        """Search one type over all its pages and yield each match once per page it stands on.

        The matches are those of the asked type with `search.mode` match, or none where the server gives no modes.
        Raises IncompleteError where a page is no searchset, an entry has no resource or id, an outcome is an error, the
        self link lacks a parameter that was sent, a `next` leads off the origin or in circles, a resource is cut down
        (SUBSETTED), or the total does not agree with the matches (ShortError where it is larger); else as `get`.
        """
        account = Account() if account is None else account
        prefer = {"Prefer": "handling=strict"}
        if post:
            url, form = self._url(f"{type_name}/_search", ()), urlencode(params).encode()
            prefer["Content-Type"] = "application/x-www-form-urlencoded"
        else:
            url, form = self._url(type_name, params), None
        seen_urls, seen, without_news = {url}, set[str](), 0
        while True:
            # A search by POST changes nothing, so it may be repeated like a GET.
            answer = self._answer("POST" if form is not None else "GET", url, form, prefer)
            account.pages += 1
            where = f"{self.host}, {type_name} search, page {account.pages}"
            account.framed = account.framed and answer.framed
            page, matches = self._page(answer, type_name, account, where)
            links = _links(page)
            if account.pages == 1:
                account.self_link = links.get("self", "")
                _check_self_link(account.self_link, params, where)
            news = [match for match in matches if match.id not in seen]
            account.repeated += len(matches) - len({match.id for match in news})
            seen.update(match.id for match in matches)
            account.matches = len(seen)
            yield from matches
            if "next" not in links:
                break
            without_news = 0 if news else without_news + 1
            url, form = self._next(answer.url, links["next"], where), None
            prefer.pop("Content-Type", None)
            if url in seen_urls or without_news > MAX_PAGES_WITHOUT_NEWS:
                raise IncompleteError(f"{where}: the next links go in circles; the search cannot be completed")
            seen_urls.add(url)
        if account.total is not None:
            self.check_total(type_name, account.total, len(seen))

    def check_total(self, type_name: str, total: int, sent: int) -> None:
        """IncompleteError where a search sent more matches than the server counts, ShortError where it sent fewer."""
        if total == sent:
            return
        counts = f"{self.host}, {type_name} search: the server counts {total} matches and sent {sent}"
        if total > sent:
            raise ShortError(
                f"{counts} without a link to the rest; run again, and if it stays so, raise the server's page size",
                total,
            )
        raise IncompleteError(f"{counts}; run again, the server's data may have changed in between")

    def count(self, type_name: str, params: Sequence[tuple[str, str]], *, post: bool = False) -> int | None:
        """How many matches the server counts for a search (`_summary=count`), or None where it does not say.

        Raises as `get`: a server that does not know `_summary` may refuse it.
        """
        asked = [*((name, value) for name, value in params if name != "_count"), ("_summary", "count")]
        if post:
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = self._answer("POST", self._url(f"{type_name}/_search", ()), urlencode(asked).encode(), form)
        else:
            answer = self._answer("GET", self._url(type_name, asked))
        return _total(self._resource(answer))

    def _page(self, answer: Answer, type_name: str, account: Account, where: str) -> tuple[dict[str, Any], list[Match]]:
        page = self._resource(answer)
        if page["resourceType"] == "OperationOutcome":
            said = ", ".join(issue_codes(page, ("fatal", "error", "warning", "information")))
            raise IncompleteError(f"{where}: an OperationOutcome ({said}) instead of a Bundle")
        if page["resourceType"] != "Bundle" or page.get("type") != "searchset":
            raise IncompleteError(f"{where}: not a Bundle of type searchset")
        total = _total(page)
        account.total = account.total if total is None else total
        try:
            _, entries = strict.bundle(answer.body.removeprefix(b"\xef\xbb\xbf"))
        except ValueError as error:
            raise IncompleteError(f"{where}: {error}") from error
        matches = []
        for index, entry in enumerate(entries, 1):
            resource = page["entry"][index - 1].get("resource")
            if entry.resource is None or not isinstance(resource, dict):
                raise IncompleteError(f"{where}, entry {index}: no resource")
            search = entry.head.get("search")
            mode = search.get("mode") if isinstance(search, dict) else None
            kind = resource.get("resourceType")
            if kind == "OperationOutcome":
                if codes := issue_codes(resource):
                    raise IncompleteError(f"{where}, entry {index}: the server reports {', '.join(codes)}")
                account.outcomes += issue_codes(resource, ("warning",))
                continue
            if mode in ("include", "outcome") or (mode is None and kind != type_name):
                continue
            if kind != type_name:
                raise IncompleteError(f"{where}, entry {index}: a match of another type")
            identity = resource.get("id")
            if not isinstance(identity, str) or not identity:
                raise IncompleteError(f"{where}, entry {index}: a resource without id")
            if is_subsetted(resource):
                raise IncompleteError(
                    f"{where}, entry {index}: the server sent only a part of the resource (SUBSETTED)"
                )
            full_url = entry.head.get("fullUrl")
            full_url = full_url if isinstance(full_url, str) else None
            matches.append(Match(kind, identity, resource, strict.compact(entry.resource), full_url, account.pages))
        return page, matches

    def _next(self, page_url: str, link: str, where: str) -> str:
        url = urljoin(page_url, link)
        try:
            same = origin_of(url) == self._origin
        except ValueError:
            same = False
        if not same:
            raise IncompleteError(f"{where}: the next page is on another origin; it was not fetched")
        return url

    def _url(self, url_or_path: str, params: Sequence[tuple[str, str]]) -> str:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url_or_path):
            url = url_or_path
            try:
                same = origin_of(url) == self._origin
            except ValueError:
                same = False
            if not same:
                raise IncompleteError(f"an address on another origin than {self.host} was not fetched")
        else:
            url = f"{self.base}/{url_or_path.lstrip('/')}"
        return f"{url}{'&' if '?' in url else '?'}{urlencode(params)}" if params else url

    def _resource(self, answer: Answer) -> dict[str, Any]:
        """Parse a FHIR resource out of an answer, or say in an IncompleteError that it is none."""
        where = f"{self.host}, {self._shown(answer.url)}"
        if "html" in answer.headers.get("content-type", "").lower():
            raise IncompleteError(f"{where}: an HTML page instead of FHIR JSON; check the base URL and the sign-in")
        try:
            value = strict.parse(answer.body.removeprefix(b"\xef\xbb\xbf"))
        except ValueError as error:
            raise IncompleteError(f"{where}: no FHIR JSON, {error}") from error
        if not isinstance(value, dict) or not isinstance(value.get("resourceType"), str):
            raise IncompleteError(f"{where}: no FHIR JSON; check the base URL")
        return value

    def _shown(self, url: str) -> str:
        """The first part of a path below the base: a type or operation, never an id or a query."""
        path = urlsplit(url).path.removeprefix(urlsplit(self.base).path).strip("/").split("/")[0]
        return path if re.fullmatch(r"\$?[A-Za-z_-]{1,40}", path) else "a page"

    def _answer(
        self, method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a safe request until it is answered or the budget is spent."""
        attempt = 0
        while True:
            started = time.monotonic()
            try:
                return self._once(method, url, body, headers or {}, (), parse=True)
            except _AgainError as again:
                lost = time.monotonic() - started
                self._left -= lost
                limit = self._left
                if not self._met and again.unreachable:
                    self._start_left -= lost
                    limit = min(limit, self._start_left)
                wait = again.wait
                if wait is None:
                    # 0.5 s, 1 s, 2 s, ... with a jitter small enough that each wait is longer than the last.
                    wait = min(limit, min(30.0, 0.5 * 2.0**attempt) * random.uniform(0.75, 1.25))  # noqa: S311
                where = f"{self.host}, {self._shown(url)}"
                if again.wait is not None and again.wait > max(limit, 0.0):
                    raise NetworkError(
                        f"{where}: {again.reason} and asks to wait {again.wait:.0f} s, more than is left of the retry "
                        "budget; run again later or with a larger --retry-budget"
                    ) from again
                if limit <= 0:
                    raise NetworkError(
                        f"{where}: {again.reason} ({attempt + 1} tries); check the address and the network, "
                        "or run again with a larger --retry-budget"
                    ) from again
                self._sleep(wait)
                self._left -= wait
                if not self._met and again.unreachable:
                    self._start_left -= wait
                attempt += 1

    def _once(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        expect: Collection[int],
        *,
        parse: bool,
    ) -> Answer:
        """One attempt, redirects within the origin included."""
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._exchange(method, url, body, headers)
            if answer.status in _REDIRECTS and answer.status not in expect:
                url = self._redirected(method, answer)
                continue
            if 200 <= answer.status < 300:
                if parse and not answer.framed:
                    self._check_unframed(answer)
                return answer
            if answer.status in expect:
                return answer
            raise self._refusal(answer)
        raise IncompleteError(f"{self.host}, {self._shown(url)}: more than {MAX_REDIRECTS} redirects")

    def _check_unframed(self, answer: Answer) -> None:
        try:
            strict.parse(answer.body.removeprefix(b"\xef\xbb\xbf"))
        except ValueError as error:
            if "too early" in str(error):
                raise _AgainError("its answer is cut off") from error

    def _redirected(self, method: str, answer: Answer) -> str:
        where = f"{self.host}, {self._shown(answer.url)}"
        url = urljoin(answer.url, answer.headers.get("location", ""))
        try:
            same = bool(answer.headers.get("location")) and origin_of(url) == self._origin
        except ValueError:
            same = False
        if not same:
            raise IncompleteError(f"{where}: the server redirects to another origin; give the base URL it points to")
        if method != "GET" and answer.status not in (307, 308):
            raise IncompleteError(f"{where}: the server redirects a {method}; give the base URL it points to")
        return url

    def _refusal(self, answer: Answer) -> Exception:
        where = f"{self.host}, {self._shown(answer.url)}"
        try:
            codes = issue_codes(strict.parse(answer.body))
        except ValueError:
            codes = ()
        said = f"{answer.status} ({', '.join(codes)})" if codes else f"{answer.status}"
        if answer.status in _RETRIED:
            wait = _retry_after(answer.headers.get("retry-after"), answer.headers.get("date"))
            return _AgainError(f"the server answers {said}", wait)
        if answer.status == 401:
            return SignInError(f"{where}: the server answers {said}; give a valid token in CRMO_FHIR_TOKEN")
        if answer.status == 403:
            return SignInError(f"{where}: the server answers {said}; the token's scope does not reach this")
        return RefusedError(f"{where}: the server refuses the request with {said}", answer.status, codes)

    def _exchange(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        """Send once and read the whole answer; `_AgainError` for what may pass."""
        sent = dict(headers)
        if (token := self._checked_token()) and origin_of(url) == self._origin:
            sent["Authorization"] = f"Bearer {token}"
        # Silence is waiting on a failing server too: with a small budget it is cut short, but never under 5 s.
        silence = min(self._timeout, max(5.0, self._left))
        started = time.monotonic()
        try:
            response = self._session.request(
                method,
                url,
                data=body,
                headers=sent,
                allow_redirects=False,
                stream=True,
                timeout=(min(CONNECT_TIMEOUT, silence), silence),
            )
        except requests.exceptions.SSLError as error:
            if "EOF occurred" in str(error) or "reset" in str(error).lower():
                raise _AgainError("the connection broke off") from error
            raise NetworkError(
                f"{self.host}: no trusted TLS connection; check the name, or give the hospital's CA with --ca-file"
            ) from error
        except requests.exceptions.ConnectTimeout as error:
            raise _AgainError("no connection in time", unreachable=True) from error
        except requests.exceptions.Timeout as error:
            raise _AgainError("no answer in time") from error
        except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            inner = getattr(error.args[0], "reason", None) if error.args else None
            if isinstance(inner, urllib3.exceptions.NameResolutionError):
                raise _AgainError("the host name cannot be resolved", unreachable=True) from error
            if isinstance(inner, urllib3.exceptions.NewConnectionError):
                raise _AgainError("the connection is refused", unreachable=True) from error
            raise _AgainError("the connection broke off") from error
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            raise IncompleteError(f"{self.host}, {self._shown(url)}: the request cannot be sent") from error
        self._met = True
        with response:
            names = {name.lower(): value for name, value in response.headers.items()}
            content = _unpack(
                self._chunks(response, started, silence), names.get("content-encoding", "").strip().lower()
            )
        self.server_date = self.server_date or names.get("date", "")
        framed = "content-length" in names or "chunked" in names.get("transfer-encoding", "").lower()
        return Answer(response.status_code, names, content, url, framed)

    def _chunks(self, response: requests.Response, started: float, silence: float) -> Iterator[bytes]:
        """The body as it arrives, still packed: `read1` gives what is there, so that a drip cannot outrun the clock."""
        received = 0
        while True:
            try:
                chunk = response.raw.read1(65536, decode_content=False)
            except (urllib3.exceptions.ReadTimeoutError, TimeoutError) as error:
                raise _AgainError("its answer stalls") from error
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                raise _AgainError("its answer is cut off") from error
            if not chunk:
                return
            received += len(chunk)
            lasted = time.monotonic() - started
            if lasted > TOTAL_TIMEOUTS * self._timeout or (lasted > silence and received < LEAST_RATE * lasted):
                raise _AgainError("its answer is too slow")
            yield chunk

    def _checked_token(self) -> str:
        token = (self._token() if callable(self._token) else self._token or "").strip()
        if not re.fullmatch(r"[\x21-\x7e]*", token):
            raise SignInError("the token holds characters that no bearer token has; check CRMO_FHIR_TOKEN")
        return token


def is_subsetted(resource: Mapping[str, Any]) -> bool:
    """Whether a resource says that it is only a part of itself (FHIR R4 search, `_summary` and `_elements`)."""
    meta = resource.get("meta")
    tags = meta.get("tag") if isinstance(meta, dict) else None
    found = tags if isinstance(tags, list) else []
    return any(isinstance(tag, dict) and tag.get("code") == "SUBSETTED" for tag in found)


def _total(page: Mapping[str, Any]) -> int | None:
    total = page.get("total")
    return total if isinstance(total, int) and not isinstance(total, bool) else None


def _links(page: Mapping[str, Any]) -> dict[str, str]:
    links = page.get("link")
    return {
        link["relation"]: link["url"]
        for link in (links if isinstance(links, list) else [])
        if isinstance(link, dict) and isinstance(link.get("relation"), str) and isinstance(link.get("url"), str)
    }


def _check_self_link(self_link: str, params: Sequence[tuple[str, str]], where: str) -> None:
    """Refuse a self link that lacks a parameter sent (FHIR R4 search 3.1.1.6: clients SHALL check what was used)."""
    used = {name.partition(":")[0] for name, _ in parse_qsl(urlsplit(self_link).query, keep_blank_values=True)}
    used -= {"_getpages", "_getpagesoffset", "_bundletype", *_OUR_PARAMETERS}
    if not used:  # no self link, or one that repeats no filter: only the check of what came can tell
        return
    used |= {"patient", "subject"} if used & {"patient", "subject"} else set()
    for name, _ in params:
        if name not in _OUR_PARAMETERS and name.partition(":")[0] not in used:
            raise IncompleteError(f"{where}: the server ignored the parameter {name}; what it sent is not the answer")
