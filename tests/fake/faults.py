"""What goes wrong on the way, or in what is sent.

A fault has a kind:

    reset, drop            the connection is reset, or closed without an answer
    stall-first, stall     nothing comes for `seconds` (2), before or after the headers; then the connection is closed
    drip, drip-head        a byte every `seconds` (0.05) of the body, or of all
    slow                   the answer comes `seconds` (0.05) later
    lose, hold             what was asked is done, and then closed without an answer; after `seconds` (2)
    cut                    half of what Content-Length says
    chunked, chunked-cut   in chunks; without the last one
    unframed, unframed-cut neither length nor chunks; the end cut off, at a line end where there is one
    gzip-two               gzip in two members
    gzip-cut, gzip-half    gzip cut inside, or after the first of two members; the framing is intact
    status                 another `status`, with `headers` and `body`
    html, outcome, empty   an HTML page, an OperationOutcome, nothing; with status 200
    change                 the answer as `change` makes it
    duplicate              every entry of the page twice
    repeat                 the page once more, behind a next link of its own
    blank                  a page without entries, and the page itself behind its next link
    slice                  the last entry of the page is left out; the total stays
    wrong-page, wrong-type an earlier answer of the same type, or of another one
    nan, double-key, bad-utf8, deep   what is no JSON, or no JSON to be read: in the first resource, or in the answer
    charset                a charset that the body does not have
    bomb, stacked          `size` (80 MiB) of blanks, packed 1,000:1; packed twice
"""

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import urlencode

from fake.requests import Answer, Request
from fake.store import Resource

BEFORE = ("reset", "drop", "stall-first")
ON_THE_WIRE = (
    *(
        "cut",
        "chunked",
        "chunked-cut",
        "unframed",
        "unframed-cut",
        "drip",
        "drip-head",
        "stall",
        "slow",
        "lose",
        "hold",
    ),
    *("gzip-two", "gzip-cut", "gzip-half"),
)
_PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>PHI-CANARY</body></html>"
_EMPTY = b'{"resourceType":"Bundle","type":"searchset","total":0}'


@dataclass(slots=True)
class Fault:
    """What goes wrong, where, and how often.

    It strikes the requests whose path with query holds `path` and that `where` agrees to, after `skip` of them, `times`
    times.
    """

    kind: str
    path: str = ""
    times: int = 1
    skip: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    change: Callable[[Resource], Resource] | None = None
    where: Callable[[Request], bool] = lambda _: True
    seconds: float | None = None
    size: int = 80 * 2**20

    def __post_init__(self) -> None:
        assert self.kind in (*BEFORE, *ON_THE_WIRE, *_CONTENT, "wrong-page", "wrong-type"), self.kind


def outcome(code: str, text: str = "PHI-CANARY", severity: str = "error") -> bytes:
    """An OperationOutcome."""
    issue = {"severity": severity, "code": code, "diagnostics": text}
    return json.dumps({"resourceType": "OperationOutcome", "issue": [issue]}).encode()


def spoil(fault: Fault, request: Request, answer: Answer, earlier: list[tuple[str, bytes]]) -> Answer:
    """The answer with the fault in its content; `earlier` are type and body of the answers before it."""
    if fault.kind in ("wrong-page", "wrong-type"):
        same = fault.kind == "wrong-page"
        others = (body for kind, body in reversed(earlier) if (kind == request.type) == same and body != answer.body)
        return Answer(200, next(others, _EMPTY))
    if fault.kind in _CONTENT:
        spoilt = _CONTENT[fault.kind](fault, request, answer)
        return Answer(spoilt.status, spoilt.body, {**spoilt.headers, **fault.headers})
    return answer


def _changed(change: Callable[[Resource], Resource]) -> Callable[[Fault, Request, Answer], Answer]:
    return lambda _, __, answer: Answer(answer.status, json.dumps(change(json.loads(answer.body))).encode())


def _change(fault: Fault, request: Request, answer: Answer) -> Answer:
    assert fault.change is not None
    return _changed(fault.change)(fault, request, answer)


def _duplicate(page: Resource) -> Resource:
    return {**page, "entry": [entry for entry in page["entry"] for _ in range(2)]} if page.get("entry") else page


def _slice(page: Resource) -> Resource:
    return {**page, "entry": page["entry"][:-1]} if page.get("entry") else page


def _again(changed: Resource) -> Callable[[Fault, Request, Answer], Answer]:
    """The page with these members, and behind a next link of its own as it is."""

    def again(_: Fault, request: Request, answer: Answer) -> Answer:
        page = json.loads(answer.body)
        if page["resourceType"] != "Bundle":
            return answer
        links = {link["relation"]: link["url"] for link in page.get("link", ())}
        params = [(name, value) for name, value in request.params if name != "_again"]
        links["next"] = f"/fhir/{request.type}?{urlencode([*params, ('_again', str(request.at))])}"
        said = [{"relation": relation, "url": url} for relation, url in links.items()]
        return Answer(answer.status, json.dumps({**page, **changed, "link": said}).encode())

    return again


def _inject(member: bytes) -> Callable[[Fault, Request, Answer], Answer]:
    def inject(_: Fault, __: Request, answer: Answer) -> Answer:
        before, start, rest = answer.body.partition(b'"resource":{')
        if not start:
            before, start, rest = answer.body.partition(b"{")
        return Answer(answer.status, before + start + member + rest)

    return inject


def pack(body: bytes) -> bytes:
    """Gzip in two members, as RFC 1952 allows."""
    half = len(body) // 2
    return gzip.compress(body[:half], 1) + gzip.compress(body[half:], 1)


@cache
def _bomb(size: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(b'{"resourceType":"Bundle"')]
    parts += [packer.compress(b" " * 2**20) for _ in range(size // 2**20)]
    return b"".join([*parts, packer.compress(b"}"), packer.flush()])


def _with(headers: dict[str, str], body: bytes, status: int = 200) -> Answer:
    return Answer(status, body, {"Content-Type": "application/fhir+json", **headers})


_CONTENT: dict[str, Callable[[Fault, Request, Answer], Answer]] = {
    "status": lambda fault, _, __: _with({}, fault.body or outcome("exception"), fault.status),
    "html": lambda _, __, ___: _with({"Content-Type": "text/html"}, _PAGE),
    "outcome": lambda _, __, ___: _with({}, outcome("timeout")),
    "empty": lambda _, __, ___: _with({}, b""),
    "change": _change,
    "duplicate": _changed(_duplicate),
    "slice": _changed(_slice),
    "repeat": _again({}),
    "blank": _again({"entry": []}),
    "nan": _inject(b'"x":NaN,'),
    "double-key": _inject(b'"x":1,"x":2,'),
    "bad-utf8": _inject(b'"x":"\xff\xfe",'),
    "deep": _inject(b'"x":' + b"[" * 100_000 + b"]" * 100_000 + b","),
    "charset": lambda _, __, answer: _with(
        {"Content-Type": "application/fhir+json;charset=ISO-8859-1"}, answer.body, answer.status
    ),
    "bomb": lambda fault, _, __: _with({"Content-Encoding": "gzip"}, _bomb(fault.size)),
    "stacked": lambda fault, _, __: _with({"Content-Encoding": "gzip, gzip"}, gzip.compress(_bomb(fault.size))),
}
