"""A small FHIR server on a real socket of 127.0.0.1, with switches for what real servers and networks do wrong.

    with FakeServer(resources) as server:
        server.faults.append(Fault("reset", path="Observation"))
        ...
        server.requests  # every request: method, path with query, headers, body

A fault applies to the requests whose path holds `path`, after `skip` of them, `times` times.
"""

import gzip
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

Resource = dict[str, Any]

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


@dataclass(slots=True)
class Fault:
    """What goes wrong: a kind of `_Handler.break_answer`, where, and how often."""

    kind: str
    path: str = ""
    times: int = 1
    skip: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    change: Callable[[Resource], Resource] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: str
    at: float


class FakeServer:
    """Resources behind FHIR search; `text` of a resource may be given to keep its numbers as written."""

    def __init__(
        self, resources: Iterable[Resource | str] = (), *, page_size: int = 200, version: str = "4.0.1"
    ) -> None:
        """Take the resources (parsed, or as JSON text) without starting."""
        self.texts = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in resources]
        self.page_size = page_size
        self.version = version
        self.types: tuple[str, ...] = TYPES
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.zipped = False
        self.totals = True
        self.counts = True  # answers `_summary=count`
        self.next_links = True
        self.lists_types = True
        self.typed_only = False  # finds a patient's records under Patient/id alone
        self.text_as_code = False  # takes `code:text` for `code`
        self.text_indexed = True  # else a code in words alone is found by `code:missing` alone
        self.hidden: set[str] = set()  # ids that a search by patient leaves out
        self.modes = True
        self.self_links = True
        self.relative_links = False
        self.ignored: set[str] = set()
        self.needs_category = False
        self.text_search = True
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"fake": self})
        self._http = _Http(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

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
        """Stop serving."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def paths(self, part: str = "") -> list[str]:
        """The paths of the requests that hold `part`."""
        return [request.path for request in self.requests if part in request.path]

    def fault_for(self, path: str) -> Fault | None:
        """The fault that strikes this request, counted off."""
        with self.lock:
            for fault in self.faults:
                if fault.path in path and fault.times > 0:
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None


class _Http(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing when a client leaves in the middle of an answer."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _values(value: str) -> list[str]:
    return [one.replace("\\|", "|").replace("\\,", ",") for one in value.split(",")]


def _tokens(concept: Resource) -> set[str]:
    codings = list(concept.get("coding", ()))
    return {c.get("code", "") for c in codings} | {f"{c.get('system', '')}|{c.get('code', '')}" for c in codings}


def _holds(fake: FakeServer, resource: Resource, name: str, value: str) -> bool:
    """Whether a resource meets one search parameter."""
    wanted = _values(value)
    subject = resource.get("subject", resource.get("patient", {})).get("reference", "")
    if name == "_id":
        return resource["id"] in wanted
    if name in ("patient", "subject"):
        if resource["id"] in fake.hidden:
            return False
        if fake.typed_only:
            return subject in wanted
        return any(subject.endswith(f"Patient/{one.removeprefix('Patient/')}") for one in wanted)
    if name == "code:missing":
        code = resource.get("code", {})
        return not code.get("coding") and not (fake.text_indexed and code.get("text"))
    if name == "code" or (name == "code:text" and fake.text_as_code):
        return bool(_tokens(resource.get("code", {})) & set(wanted))
    if name == "code:text":
        code = resource.get("code", {})
        displays = [c.get("display", "") for c in code.get("coding", ())]
        said = " ".join([code.get("text", ""), *displays] if displays or fake.text_indexed else []).lower()
        return any(one.lower() in said for one in wanted)
    if name == "identifier":
        found = {f"{i.get('system')}|{i.get('value')}" for i in resource.get("identifier", ())}
        return bool(found & set(wanted))
    if name == "link":
        return bool({link["other"].get("reference") for link in resource.get("link", ())} & set(wanted))
    if name == "category":
        return bool({t for c in resource.get("category", ()) for t in _tokens(c)} & set(wanted))
    return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    fake: FakeServer

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve("")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode())

    def _serve(self, body: str) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.fake.requests.append(Request(self.command, self.path, headers, body, time.monotonic()))
        fault = self.fake.fault_for(self.path)
        if fault is not None and fault.kind not in ("change", "cut", "drip", "stall", "gzip-cut", "unframed-cut"):
            self._break(fault)
            return
        status, answer = self._answer(body)
        if fault is not None and fault.kind == "change":
            assert fault.change is not None
            answer = json.dumps(fault.change(json.loads(answer)))
            fault = None
        self._send(status, answer.encode(), fault)

    def _break(self, fault: Fault) -> None:
        if fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
            self.close_connection = True
        elif fault.kind == "status":
            body = (
                fault.body or b'{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"exception"}]}'
            )
            self._send(fault.status, body, None, fault.headers)
        else:
            raise AssertionError(fault.kind)

    def _send(self, status: int, body: bytes, fault: Fault | None, headers: dict[str, str] | None = None) -> None:
        sent = {"Content-Type": "application/fhir+json", **(headers or {})}
        kind = fault.kind if fault else ""
        if self.fake.zipped or kind == "gzip-cut":
            half = len(body) // 2
            body = gzip.compress(body[:half]) + gzip.compress(body[half:])  # two members, as RFC 1952 allows
            sent["Content-Encoding"] = "gzip"
        if kind == "gzip-cut":
            body = body[:-20]
        if kind == "unframed-cut":
            body = body[:-30]
            sent["Connection"] = "close"
        else:
            sent["Content-Length"] = str(len(body))
        self.send_response(status)
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if kind == "drip":
            for index in range(60):
                self.wfile.write(body[index : index + 1])
                time.sleep(0.05)
        elif kind == "stall":
            time.sleep(2)
        elif kind == "cut":
            self.wfile.write(body[: len(body) // 2])
        else:
            self.wfile.write(body)
        if kind and kind != "gzip-cut":  # a cut inside intact framing leaves the connection as it is
            self.wfile.flush()
            self.close_connection = True

    def _answer(self, body: str) -> tuple[int, str]:
        parts = urlsplit(self.path)
        path = parts.path.removeprefix("/fhir/")
        if path == "metadata":
            return 200, json.dumps(self._capabilities())
        kind, _, rest = path.partition("/")
        if rest and rest != "_search":
            for text in self.fake.texts:
                resource = json.loads(text)
                if (resource["resourceType"], resource["id"]) == (kind, rest):
                    return 200, text
            return 404, _outcome("not-found")
        params = parse_qsl(body if rest else parts.query, keep_blank_values=True)
        names = {name for name, _ in params}
        if kind == "Observation" and self.fake.needs_category and "category" not in names:
            return 400, _outcome("required")
        if {"code:text", "code:missing"} & names and not self.fake.text_search:
            return 400, _outcome("not-supported")
        return 200, self._bundle(kind, params)

    def _bundle(self, kind: str, params: list[tuple[str, str]]) -> str:
        fake = self.fake
        offset = int(dict(params).get("_offset", "0"))
        ours = ("_offset", "_count", "_total", "_summary")
        filters = [(n, v) for n, v in params if n not in ours and n not in fake.ignored]
        found = [
            text
            for text in fake.texts
            if (resource := json.loads(text))["resourceType"] == kind
            and all(_holds(fake, resource, n, v) for n, v in filters)
        ]
        if fake.counts and ("_summary", "count") in params:
            return json.dumps({"resourceType": "Bundle", "type": "searchset", "total": len(found)})
        size = min(fake.page_size, int(dict(params).get("_count", "50")))
        page = found[offset : offset + size]
        links = []
        if fake.self_links:
            used = [(n, v) for n, v in params if n not in fake.ignored]
            links.append({"relation": "self", "url": f"{fake.base}/{kind}?{urlencode(used)}"})
        if fake.next_links and offset + size < len(found):
            rest = [(n, v) for n, v in params if n != "_offset"]
            url = f"{kind}?{urlencode([*rest, ('_offset', str(offset + size))])}"
            links.append({"relation": "next", "url": url if fake.relative_links else f"{fake.base}/{url}"})
        entries = [
            f'{{"fullUrl":"{fake.base}/{kind}/{json.loads(text)["id"]}","resource":{text}'
            + (',"search":{"mode":"match"}}' if fake.modes else "}")
            for text in page
        ]
        total = f'"total":{len(found)},' if fake.totals else ""
        return (
            f'{{"resourceType":"Bundle","type":"searchset",{total}"link":{json.dumps(links)},'
            f'"entry":[{",".join(entries)}]}}'
        )

    def _capabilities(self) -> Resource:
        resources = [
            {
                "type": kind,
                "searchParam": [{"name": name} for name in SEARCH_PARAMETERS.get(kind, ("_id", "patient", "subject"))],
            }
            for kind in self.fake.types
        ]
        return {
            "resourceType": "CapabilityStatement",
            "fhirVersion": self.fake.version,
            "software": {"name": "fake", "version": "1"},
            "rest": [{"mode": "server", "resource": resources} if self.fake.lists_types else {"mode": "server"}],
        }


def _outcome(code: str) -> str:
    issue = {"severity": "error", "code": code, "diagnostics": "PHI-CANARY"}
    return json.dumps({"resourceType": "OperationOutcome", "issue": [issue]})
