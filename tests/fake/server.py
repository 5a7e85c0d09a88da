"""The fake server itself: what it answers, and how the answer goes over the wire."""

import gzip
import json
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from types import TracebackType
from typing import Any, Literal, Protocol, Self
from urllib.parse import urlencode, urlsplit

from fake.faults import BEFORE, ON_THE_WIRE, Fault, outcome, pack, spoil
from fake.requests import Answer, Request
from fake.store import Resource, Store, Stored, make_test
from fake.writes import WRITTEN, Writes

SEARCH_PARAMETERS = {
    "Patient": ("_id", "identifier", "link"),
    "Condition": ("_id", "code", "patient"),
    "AdverseEvent": ("_id", "subject"),
    "Medication": ("_id", "code"),
}
TYPES = (
    *SEARCH_PARAMETERS,
    "Encounter",
    "MedicationStatement",
    "MedicationRequest",
    "MedicationDispense",
    "MedicationAdministration",
    "Procedure",
    "Observation",
    "ImagingStudy",
    "DiagnosticReport",
)
_NO_FILTERS = ("_offset", "_count", "_total", "_summary", "_sort", "_format", "_again")


class Part(Protocol):
    """Something else on the same origin: a token endpoint, an export."""

    def handle(
        self, method: str, path: str, headers: Mapping[str, str], body: str
    ) -> tuple[int, Mapping[str, str], bytes | str] | None:
        """Status, headers and body; None for what is not its own. `path` has the query, header names are lower case."""


class FakeServer:
    """Resources behind FHIR search; a resource may be given as text, to keep its numbers as written."""

    def __init__(
        self,
        resources: Iterable[Resource | str] = (),
        *,
        page_size: int = 200,
        version: str = "4.0.1",
        host: str = "127.0.0.1",
        origin: str = "",
        tls: ssl.SSLContext | None = None,
        stamped: bool = False,
    ) -> None:
        """Take the resources (parsed, or as JSON text) without starting.

        `host` is how the server names itself; `origin` replaces scheme, host and port in what it says. `stamped` gives
        every resource a meta with versionId and lastUpdated; without it only those written later have one.
        """
        self.store = Store(resources, stamped=stamped)
        self.page_size = page_size
        self.version = version
        self.tls = tls
        self.types: tuple[str, ...] = TYPES
        self.parts: list[Part] = []
        self.authorized: Callable[[str], bool] | None = None  # of the Authorization header; 401 where it says no
        self.on_request: Callable[[Request], None] | None = None  # before each answer: may update and delete
        self.declare: Callable[[Resource], Resource] = lambda statement: statement  # changes the CapabilityStatement
        self.faults: list[Fault] = []
        self.schedule: dict[int, Fault] = {}  # by the number of the request, from 0
        self.delay = 0.0  # seconds that every answer takes
        self.skew = timedelta(0)  # of the server's clock
        self.zipped = False
        self.totals: bool | Literal["asked"] = True  # "asked": with _total=accurate only
        self.counts = True  # answers `_summary=count`
        self.posts = True  # takes searches by POST
        self.reads_forms = True  # else what is posted is not read, and all of the type is found
        self.next_links = True
        self.opaque_links = False  # next links hold a token, and what they lead to does not change
        self.relative_links = False
        self.link: Callable[[str], str] = lambda url: url  # writes next links, which it is given absolute
        self.self_links = True
        self.lies = False  # the self link repeats what was ignored
        self.ignored: set[str] = set()
        self.unknown: set[str] = set()  # parameters refused under handling=strict, else ignored
        self.lists_types = True
        self.typed_only = False  # finds a patient's records under Patient/id alone
        self.text_as_code = False  # takes `code:text` for `code`
        self.text_indexed = True  # else a code in words alone is found by `code:missing` alone
        self.hidden: set[str] = set()  # ids that a search by patient leaves out
        self.writes: Writes | None = None  # takes what is written, which it does not without
        self.modes = True
        self.blanks = 0  # so many make a page longer
        self.needs_category = False
        self.text_search = True
        self.requests: list[Request] = []
        self.most_open = 0  # requests waiting for an answer at once
        self._open = 0
        self._earlier: deque[tuple[str, bytes]] = deque(maxlen=50)
        self._found: dict[tuple[object, ...], list[Stored]] = {}
        self._snapshots: dict[str, tuple[str, list[tuple[str, str]], list[Stored]]] = {}
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._tcp = _Tcp(("127.0.0.1", 0), type("Connection", (_Connection,), {"fake": self}))
        port = self._tcp.server_address[1]
        self.origin = origin or f"{'https' if tls else 'http'}://{host}:{port}"
        self._thread = threading.Thread(target=self._tcp.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._tcp.server_address[1])

    @property
    def base(self) -> str:
        """The FHIR base URL."""
        return f"{self.origin}/fhir"

    def __enter__(self) -> Self:
        """Start serving."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving; what stalls ends too."""
        self._stopped.set()
        self._tcp.shutdown()
        self._tcp.server_close()
        self._thread.join()

    def now(self) -> datetime:
        """The time by the server's clock."""
        return datetime.now(UTC) + self.skew

    def update(self, resource: Resource) -> None:
        """Write a resource, new or in a new version; it stands last in what searches give."""
        with self._lock:
            self.store.put(resource, self.now())

    def delete(self, kind: str, identity: str) -> None:
        """Delete a resource."""
        with self._lock:
            self.store.remove(kind, identity)

    def expire(self) -> None:
        """Forget what opaque next links lead to."""
        with self._lock:
            self._snapshots.clear()

    def paths(self, part: str = "") -> list[str]:
        """The paths of the requests that hold `part`."""
        return [request.path for request in self.requests if part in request.path]

    def searches(self, kind: str = "") -> list[Request]:
        """The searches of a type, or of all."""
        return [request for request in self.requests if request.is_search and kind in ("", request.type)]

    # ------------------------------------------------------------------------------------------------- what is answered

    def take(self, request: Request) -> Fault | None:
        """Take down a request and find the fault that strikes it, counted off."""
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            self._open += 1
            self.most_open = max(self.most_open, self._open)
            if number in self.schedule:
                return self.schedule[number]
            for fault in self.faults:
                if fault.times > 0 and fault.path in request.path and fault.where(request):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def release(self) -> None:
        """Count a request as answered."""
        with self._lock:
            self._open -= 1

    def wait(self, seconds: float) -> None:
        """Wait, but not longer than the server runs."""
        if seconds:
            self._stopped.wait(seconds)

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        """The answer to a request, with the fault of its content."""
        if self.on_request is not None:
            self.on_request(request)
        with self._lock:
            answer = self._answer(request)
            spoilt = spoil(fault, request, answer, list(self._earlier)) if fault else answer
            self._earlier.append((request.type, answer.body))
        return spoilt

    def _answer(self, request: Request) -> Answer:
        for part in self.parts:
            if (found := part.handle(request.method, request.path, request.headers, request.body)) is not None:
                status, headers, body = found
                return Answer(status, body.encode() if isinstance(body, str) else body, dict(headers))
        if self.authorized is not None and not self.authorized(request.headers.get("authorization", "")):
            return Answer(
                401, outcome("login"), {"Content-Type": "application/fhir+json", "WWW-Authenticate": "Bearer"}
            )
        if not urlsplit(request.path).path.startswith("/fhir"):
            return Answer(404, outcome("not-found"))
        if self.writes is not None and (answer := self.writes.take(self.store, request, self.now())) is not None:
            return answer
        if request.method not in ("GET", "POST") or (request.method == "POST" and not self.posts):
            return Answer(405, outcome("not-supported"))
        if request.segments == ["metadata"]:
            return Answer(200, json.dumps(self.declare(self._capabilities())).encode())
        if token := request.param("_getpages"):
            if token not in self._snapshots:
                return Answer(410, outcome("expired"))
            kind, params, found = self._snapshots[token]
            return self._page(kind, params, found, int(request.param("_getpagesoffset")), token)
        kind, *rest = request.segments
        if len(rest) > 1 or (rest == ["_search"]) != (request.method == "POST"):
            return Answer(404, outcome("not-found"))
        if rest and rest != ["_search"]:
            one = self.store.get(kind, rest[0])
            return Answer(200, one.text.encode()) if one else Answer(404, outcome("not-found"))
        return self._search(request, kind)

    def _search(self, request: Request, kind: str) -> Answer:
        params = request.params if self.reads_forms or request.method == "GET" else []
        names = {name for name, _ in params}
        if kind == "Observation" and self.needs_category and "category" not in names:
            return Answer(400, outcome("required"))
        if {"code:text", "code:missing"} & names and not self.text_search:
            return Answer(400, outcome("not-supported"))
        if self.unknown & names and "handling=strict" in request.headers.get("prefer", ""):
            (name, *_) = sorted(self.unknown & names)
            return Answer(400, outcome("invalid", f'Unknown search parameter "{name}" for resource type "{kind}"'))
        ignored = self.ignored | self.unknown
        filters = tuple((n, v) for n, v in params if n not in _NO_FILTERS and n not in ignored)
        found = self._find(kind, filters)
        if self.counts and ("_summary", "count") in params:
            return Answer(
                200, json.dumps({"resourceType": "Bundle", "type": "searchset", "total": len(found)}).encode()
            )
        return self._page(kind, params, found, int(request.param("_offset") or 0), "")

    def _find(self, kind: str, filters: tuple[tuple[str, str], ...]) -> list[Stored]:
        hidden = frozenset(self.hidden)
        switches = (self.typed_only, self.text_as_code, self.text_indexed)
        key = (kind, filters, self.store.writes, hidden, switches)
        if key not in self._found:
            tests = [
                make_test(
                    name,
                    value,
                    hidden=hidden,
                    typed_only=self.typed_only,
                    text_as_code=self.text_as_code,
                    text_indexed=self.text_indexed,
                )
                for name, value in filters
            ]
            self._found[key] = self.store.find(kind, tests)
        return self._found[key]

    def _page(self, kind: str, params: list[tuple[str, str]], found: list[Stored], offset: int, token: str) -> Answer:
        given = dict(params)
        size = min(self.page_size, int(given.get("_count", "50")))
        links = []
        if self.self_links:
            ignored = set() if self.lies else self.ignored | self.unknown
            used = [(name, value) for name, value in params if name not in ignored]
            links.append({"relation": "self", "url": f"{self.base}/{kind}?{urlencode(used)}"})
        if self.next_links and offset + size < len(found):
            if self.opaque_links:
                token = token or f"t{len(self._snapshots)}"
                self._snapshots[token] = (kind, params, found)
                url = f"?_getpages={token}&_getpagesoffset={offset + size}&_bundletype=searchset"
            else:
                rest = [(name, value) for name, value in params if name not in ("_offset", "_again")]
                url = f"/{kind}?{urlencode([*rest, ('_offset', str(offset + size))])}"
            links.append(
                {
                    "relation": "next",
                    "url": self.link(url.removeprefix("/") if self.relative_links else self.base + url),
                }
            )
        mode = ',"search":{"mode":"match"}}' if self.modes else "}"
        entries = ",".join(
            f'{{"fullUrl":"{self.base}/{kind}/{one.id}","resource":{one.text}{mode}'
            for one in found[offset : offset + size]
        )
        shown = self.totals is True or (self.totals == "asked" and given.get("_total") == "accurate")
        total = f'"total":{len(found)},' if shown else ""
        page = f'{{"resourceType":"Bundle","type":"searchset",{total}"link":{json.dumps(links)},"entry":[{entries}]{" " * self.blanks}}}'
        return Answer(200, page.encode())

    def _capabilities(self) -> Resource:
        resources = [
            {
                "type": kind,
                "searchParam": [
                    {"name": name}
                    for name in (
                        *{**SEARCH_PARAMETERS, **(WRITTEN if self.writes else {})}.get(
                            kind, ("_id", "patient", "subject")
                        ),
                        "_lastUpdated",
                        *(("_total",) if self.totals == "asked" else ()),
                    )
                ],
                **(self.writes.declared() if self.writes else {}),
            }
            for kind in (*self.types, *(self.writes.types if self.writes else ()))
        ]
        more = {"interaction": [{"code": "transaction"}]} if self.writes and self.writes.transactions else {}
        return {
            "resourceType": "CapabilityStatement",
            "fhirVersion": self.version,
            "software": {"name": "fake", "version": "1"},
            "rest": [{"mode": "server", **more, **({"resource": resources} if self.lists_types else {})}],
        }


# ----------------------------------------------------------------------------------------------------------- the wire


class _Tcp(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing when a client leaves in the middle of an answer, or does not trust our certificate."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Connection(socketserver.StreamRequestHandler):
    """One connection: HTTP/1.1 by hand, so that every way of breaking it is open."""

    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    fake: FakeServer

    def setup(self) -> None:
        if self.fake.tls is not None:
            self.request.settimeout(5)
            self.request = self.fake.tls.wrap_socket(self.request, server_side=True)
            self.request.settimeout(None)
        try:
            super().setup()
        except OSError:  # the client has left already
            self._close()
            raise

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self._close()

    def _close(self) -> None:
        if self.fake.tls is not None:  # wrapping took the socket from the one that the server would close
            self.request.close()

    def handle(self) -> None:
        while (request := self._read()) is not None:
            fault = self.fake.take(request)
            try:
                goes_on = self._serve(request, fault)
            finally:
                self.fake.release()
            if not goes_on:
                return

    def _read(self) -> Request | None:
        try:
            line = self.rfile.readline().decode("latin-1")
            headers = {}
            while (header := self.rfile.readline()) not in (b"\r\n", b""):
                name, _, value = header.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            body = self.rfile.read(int(headers.get("content-length", "0")))
        except OSError:
            return None
        if not line:
            return None
        method, path, _ = line.split(" ")
        return Request(method, path, headers, body.decode(), time.monotonic())

    def _serve(self, request: Request, fault: Fault | None) -> bool:
        """Answer one request; whether the connection goes on."""
        fake, kind = self.fake, fault.kind if fault else ""
        fake.wait(fake.delay)
        seconds = (
            fault.seconds
            if fault and fault.seconds is not None
            else 0.05
            if kind in ("drip", "drip-head", "slow")
            else 2.0
        )
        if kind in BEFORE:
            if kind == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if kind == "stall-first":
                fake.wait(seconds)
            return False
        if kind == "slow":
            fake.wait(seconds)
        answer = fake.answer(request, fault)
        body, headers = answer.body, dict(answer.headers)
        if kind in ("gzip-two", "gzip-cut", "gzip-half") or (fake.zipped and "Content-Encoding" not in headers):
            packed = pack(body)
            ends = {"gzip-cut": -20, "gzip-half": len(gzip.compress(body[: len(body) // 2], 1))}
            body, headers["Content-Encoding"] = packed[: ends.get(kind)], "gzip"
        return self._send(Answer(answer.status, body, headers), kind, seconds)

    def _send(self, answer: Answer, kind: str, seconds: float) -> bool:
        body, headers = answer.body, {"Date": format_datetime(self.fake.now(), usegmt=True), **answer.headers}
        chunked, unframed = kind in ("chunked", "chunked-cut"), kind in ("unframed", "unframed-cut")
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
            last = b"" if kind == "chunked-cut" else b"0\r\n\r\n"
            body = b"%x\r\n%b\r\n%b" % (len(body), body, last)
        elif unframed:
            headers["Connection"] = "close"
            body = _shortened(body) if kind == "unframed-cut" else body
        else:
            headers["Content-Length"] = str(len(body))
        lines = [f"HTTP/1.1 {answer.status} X", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        head = "\r\n".join(lines).encode("latin-1")
        if kind in ("lose", "hold"):
            self.fake.wait(seconds if kind == "hold" else 0)
        elif kind == "stall":
            self.wfile.write(head)
            self.fake.wait(seconds)
        elif kind in ("drip", "drip-head"):
            self.wfile.write(head if kind == "drip" else b"")
            slowly = body if kind == "drip" else head + body
            for index in range(len(slowly)):
                self.wfile.write(slowly[index : index + 1])
                self.fake.wait(seconds)
        else:
            self.wfile.write(head + (body[: len(body) // 2] if kind == "cut" else body))
        return kind not in ON_THE_WIRE or kind in ("chunked", "slow", "gzip-two", "gzip-cut", "gzip-half")


def _shortened(body: bytes) -> bytes:
    """The body without its last line, or without its end where it is one line."""
    lines = body.rstrip(b"\n").rfind(b"\n")
    return body[: lines + 1] if lines >= 0 else body[:-30]


def seconds_between(requests: Iterable[Request]) -> list[float]:
    """How far apart requests came."""
    times = [request.at for request in requests]
    return [later - earlier for earlier, later in pairwise(times)]
