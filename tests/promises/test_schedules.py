"""Promise 1: random schedules of faults over random servers. Whole pulls in process; each ends CLEAN or LOUD.

A schedule is a server and the faults that strike some of the requests to it: while its records are searched, while they are
searched and change, or while they are exported. CLEAN: what has landed is that of a pull without faults, byte by byte (of
changing data, what `what_is_wrong` says). LOUD: an error with its documented exit code, and nothing that passes for whole;
then the same call in the same folder, with the faults gone, ends CLEAN. Anything else is a *silent wrong*.

Each schedule is drawn from its number: `ending(schedule(4711))` runs one. (Not by Hypothesis, which draws some 25 small
changes of an example after each new one.) `CRMO_FHIR_SCHEDULES=10000` runs so many instead of 1,000.

Left out is what no client can find out, and no more:

* A *lie* is a whole answer that is not the truth: a refusal, another answer, something missing. No question is lied to twice
  in one run, for what a server says twice is its word. A search, its count and a read of what it finds are one question.
* A server that neither names totals nor counts does not answer a search by less, and in the files of an export nothing is
  missing that neither its manifest nor a search counts.

And one gap that could be closed: of the files of one type of an export none is sent in the place of another. Numbers are
compared there, not ids, so a file that comes twice hides the one that does not come.
"""

import csv
import gc
import io
import json
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Literal

import msgspec
import pytest
from fake.export import Export, in_progress
from fake.faults import _CONTENT, BEFORE, ON_THE_WIRE
from fake_server import FakeServer, Fault, Request, Resource

from crmo_fhir import pipeline
from crmo_fhir.artifacts import Artifacts
from crmo_fhir.errors import CrmoFhirError
from crmo_fhir.fhir import client, search
from crmo_fhir.fhir.client import FhirClient
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.records import READ_TYPES
from crmo_fhir.source import bulk, crawl, plan
from promises.records import diagnosis, drug, effect, patient
from promises.test_network import MEDICATION, OTHERS, compact, lab

SCHEDULES = int(os.environ.get("CRMO_FHIR_SCHEDULES", "1000"))
QUICK = "/dev/shm" if Path("/dev/shm").is_dir() else None
SILENCE = 0.15
"""So many seconds may a server be silent here; its waits are not waited."""

# ------------------------------------------------------------------------------------------------------------- the cohort


def sorted_under(observation: Resource, category: str) -> Resource:
    """An Observation of a category, of the standard ones or of the hospital's own."""
    return {**observation, "category": [{"coding": [{"code": category}]}]}


def prescribed(identity: str, who: str) -> Resource:
    """A drug that a Medication names."""
    one = drug(identity, who, medicationReference={"reference": "Medication/anakinra"})
    return {name: value for name, value in one.items() if name != "medicationCodeableConcept"}


NUMBER = [{"system": "urn:mrn", "value": "2"}]
COHORT = [
    patient("p1"),
    diagnosis("c1", "p1"),
    diagnosis("c3", "p1", code={"text": "psoriasis"}),
    drug("m1", "p1"),
    prescribed("m3", "p1"),
    drug("m4", "p1", status="stopped"),
    effect("o1", "p1", "m1"),
    sorted_under(lab("o2", "p1"), "laboratory"),
    # Another record of the same child, of which only its own link tells.
    patient("p1b", link=[{"other": {"reference": "Patient/p1"}, "type": "replaces"}]),
    sorted_under(lab("o3", "p1b"), "our own"),
    # A child known by words alone, with a second record under the same number.
    patient("p2", identifier=NUMBER),
    diagnosis("c2", "p2", code={"text": "CRMO"}),
    drug("m2", "p2"),
    patient("p2b", identifier=NUMBER),
    lab("o4", "p2b"),
    lab("o6", "p2b"),
    lab("o7", "p2"),
    MEDICATION,
    *OTHERS,
]
TYPES = ("Patient", "Condition", "MedicationStatement", "Observation", "Medication")
ABSENT = tuple(kind for kind in READ_TYPES if kind not in TYPES)

WRITES = {
    "a lab is corrected": [sorted_under(lab("o2", "p1"), "exam")],
    "an effect is judged again": [effect("o1", "p1", "m1", status="amended")],
    "a drug is written again": [drug("m1", "p1", status="active")],
    "a diagnosis is dated": [diagnosis("c1", "p1", onsetDateTime="2004-12-01")],
    "a child moves": [patient("p2", identifier=NUMBER, address=[{"city": "Aarhus"}])],
    "a lab comes": [lab("o5", "p2")],
    "a child comes": [patient("p9"), diagnosis("c9", "p9"), drug("m9", "p9"), lab("o9", "p9"), lab("o8", "p9")],
}
DELETES = {
    "a lab goes": ("Observation", "o4"),
    "an effect goes": ("Observation", "o1"),
    "a drug goes": ("MedicationStatement", "m2"),
}

# ------------------------------------------------------------------------------------------------------------- the faults


def changing(change: Callable[[Resource], Resource]) -> dict[str, Any]:
    """A fault in the content of a Bundle."""
    return {"kind": "change", "change": lambda page: change(page) if page["resourceType"] == "Bundle" else page}


REFUSALS = {f"status {status}": {"kind": "status", "status": status} for status in (400, 404, 405, 410, 422, 501)}
LESS = {
    **{kind: {"kind": kind} for kind in ("slice", "wrong-page", "wrong-type")},
    "nothing": changing(lambda page: {**page, "total": 0, "entry": [], "link": page.get("link", [])[:1]}),
    "no next": changing(
        lambda page: {**page, "link": [one for one in page.get("link", ()) if one["relation"] != "next"]}
    ),
}
LIES = {*REFUSALS, *LESS, "one more"}
KINDS = {kind for kind in (*BEFORE, *ON_THE_WIRE, *_CONTENT) if kind not in ("change", "status", *LESS)}
FAULTS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in sorted(KINDS)},
    **REFUSALS,
    **LESS,
    **{f"status {status}": {"kind": "status", "status": status} for status in (401, 403, 408, 429, 500, 502, 503, 504)},
    **{
        f"429 after {wait}": {"kind": "status", "status": 429, "headers": {"Retry-After": wait}}
        for wait in ("1", "20", "1000", "soon")
    },
    "one more": changing(lambda page: {**page, "total": page.get("total", 0) + 1}),
    "no id": changing(lambda page: json.loads(json.dumps(page).replace('"id"', '"no"'))),
    "stall-first": {"kind": "stall-first", "seconds": 2 * SILENCE},
    "stall": {"kind": "stall", "seconds": 2 * SILENCE},
    "slow": {"kind": "slow", "seconds": 0.01},
    "bomb": {"kind": "bomb", "size": 2 * 2**20},  # of the 1 MiB that are allowed here
    "stacked": {"kind": "stacked", "size": 2 * 2**20},
}
_OF_BUNDLES = {"duplicate", "repeat", "blank", "slice", "nothing", "no next", "one more", "no id"}
OF_LINES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a line is missing": lambda lines: lines[:-1],
    "a line is cut": lambda lines: [*lines[:-1], lines[-1][:-20]],
    "a line is no JSON": lambda lines: [*lines[:-1], b'{"resourceType":"Patient",NaN}\n'],
    "a line comes twice": lambda lines: [*lines, lines[-1]],
}
_NOT_ASKED = {"_offset", "_count", "_total", "_summary", "_again", "_lastUpdated", "_getpages", "_getpagesoffset"}


def question(request: Request) -> object:
    """What a request asks, however it asks it."""
    if len(request.segments) == 2 and request.segments[1] != "_search":
        return request.type, (("_id", request.segments[1]),)
    asked = {(name, value) for name, value in request.params if name not in _NOT_ASKED}
    return request.type, tuple(sorted(asked))


# ----------------------------------------------------------------------------------------------------------- the schedules


@dataclass(frozen=True)
class Site:
    """What the server is like."""

    page_size: int
    links: Literal["plain", "opaque", "relative"]
    totals: bool | Literal["asked"]
    counts: bool
    posts: bool
    self_links: bool
    modes: bool
    stamped: bool
    zipped: bool
    per_file: int
    per_manifest: int
    counted_files: bool
    version: str

    @property
    def shows_less(self) -> bool:
        """Whether anything that it says shows when a search was answered by less."""
        return bool(self.totals or self.counts)

    def serve(self) -> FakeServer:
        """The server, not yet started."""
        server = FakeServer(map(compact, COHORT), page_size=self.page_size, stamped=self.stamped)
        server.opaque_links, server.relative_links = self.links == "opaque", self.links == "relative"
        server.totals, server.counts, server.posts = self.totals, self.counts, self.posts
        server.self_links, server.modes, server.zipped = self.self_links, self.modes, self.zipped
        server.types = TYPES
        return server


@dataclass(frozen=True)
class Schedule:
    """What happens in one pull: faults and changes by the number of the request, faults in files by their number."""

    way: Literal["search", "changing", "bulk"]
    site: Site
    workers: int
    batch: int
    budget: float
    faults: dict[int, str]
    changes: dict[int, str] = field(default_factory=dict)
    lines: dict[int, str] = field(default_factory=dict)


def schedule(number: int, way: str = "") -> Schedule:
    """The schedule of a number; of twenty, 14 are searches, 3 searches of changing data, and 3 exports."""
    r = Random(number)
    way = way or r.choice(["search"] * 14 + ["changing"] * 3 + ["bulk"] * 3)
    site = Site(
        page_size=r.choice([1, 2, 3] if way == "changing" else [1, 2, 3, 200, 200, 200]),
        links=r.choice(["plain", "opaque", "relative"]),
        totals=r.choice([True, "asked", False] if way != "changing" else [True, "asked", False, False, False]),
        counts=r.random() < 0.6,
        posts=r.random() < 0.8,
        self_links=r.random() < 0.7,
        modes=r.random() < 0.7,
        stamped=r.random() < 0.5,
        zipped=r.random() < 0.3,
        per_file=r.choice([1, 2, 1000]),
        per_manifest=r.choice([3, 1000]),
        counted_files=r.random() < 0.6,
        version=r.choice(["2.0.0", "3.0.0", "4.0.0-ballot", ""]),
    )
    changes, lines = {}, {}
    names = [name for name in FAULTS if name not in LESS or site.shows_less]
    if way == "bulk":
        counted = site.counted_files or site.counts or site.totals is True
        wrong = [name for name in OF_LINES if counted or name != "a line is missing"]
        lines = {at: r.choice(wrong) for at in r.sample(range(6), r.choice([0, 0, 1]))}
        names = [name for name in FAULTS if name not in _OF_BUNDLES]
        if not counted:
            names.remove("unframed-cut")
        if lines and not site.counted_files:  # the server's count is all that tells
            names = [name for name in names if name not in LIES]
        if site.per_file < 1000:  # the gap
            names = [name for name in names if name != "wrong-page"]
    requests = {"search": 22, "changing": 36, "bulk": 12}[way]
    few = {"search": [1, 1, 2, 3, 5], "changing": [0, 1, 2], "bulk": [0, 1, 1, 2]}[way]
    faults = {at: r.choice(names) for at in r.sample(range(requests), r.choice(few))}
    if way == "changing":
        changes = {at: r.choice([*WRITES, *DELETES]) for at in r.sample(range(requests), r.choice([1, 2, 4, 8]))}
    budget = r.choice([120.0, 120.0, 5.0, 0.0])
    return Schedule(way, site, r.randint(1, 4), r.choice([50, 50, 50, 3]), budget, faults, changes, lines)


class Course:
    """What a schedule does to a server, once it has begun; `texts` are all that the server ever held, by type and id."""

    def __init__(self, drawn: Schedule, server: FakeServer) -> None:
        self.drawn, self.server = drawn, server
        self.texts: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.deleted: set[tuple[str, str]] = set()
        self._lied_to: set[object] = set()
        self._answers = count()
        self._files = count()
        for kind, held in server.store.types.items():
            for identity, one in held.items():
                self.texts[kind, identity].add(compact(one.resource))
        if drawn.way == "bulk":
            export = Export(server, version=drawn.site.version)
            export.per_file, export.per_manifest = drawn.site.per_file, drawn.site.per_manifest
            export.counts, export.requires_token = drawn.site.counted_files, False
            export.polls, export.spoil = [in_progress(retry_after="1")], self._spoil

    def begin(self) -> None:
        """Let the faults come."""
        self.server.faults = [
            Fault(**FAULTS[name], where=self._strikes(number, name)) for number, name in self.drawn.faults.items()
        ]
        self.server.on_request = self._change

    def end(self) -> None:
        """From now on nothing goes wrong, and the data hold still."""
        self.server.faults, self.server.on_request, self._files = [], None, count(1000)

    def _strikes(self, number: int, name: str) -> Callable[[Request], bool]:
        def strikes(request: Request) -> bool:
            if len(self.server.requests) != number + 1 or (name in LIES and question(request) in self._lied_to):
                return False
            if name in LIES:
                self._lied_to.add(question(request))
            return True

        return strikes

    def _change(self, _: Request) -> None:
        with self.server._lock:
            name = self.drawn.changes.get(next(self._answers), "")
            for one in WRITES.get(name, ()):
                key = one["resourceType"], one["id"]
                self.server.update(one)
                self.texts[key].add(compact(self.server.store.get(*key).resource))
            if name in DELETES and DELETES[name] not in self.deleted:
                self.server.delete(*DELETES[name])
                self.deleted.add(DELETES[name])

    def _spoil(self, _: str, body: bytes) -> bytes:
        wrong = OF_LINES.get(self.drawn.lines.get(next(self._files), ""), list)
        return b"".join(wrong(body.splitlines(keepends=True))) if body else body


# --------------------------------------------------------------------------------------------------------------- the pulls


def pull(server: FakeServer, study: Path, drawn: Schedule, budget: float = 120.0) -> CrmoFhirError | None:
    """Pull, and give the error if there is one."""
    before = set(threading.enumerate())
    try:
        pipeline.extract(
            server.base,
            study,
            Parameters(text_diagnosis=True),
            server=pipeline.Server(workers=drawn.workers, retry_budget=budget, absent=ABSENT),
            how=pipeline.How(mode="bulk" if drawn.way == "bulk" else "search"),
        )
    except CrmoFhirError as error:
        # A process would end here, with what its threads are still at.
        for thread in set(threading.enumerate()) - before:
            if thread.name.startswith("ThreadPoolExecutor"):
                thread.join()
        return error
    return None


def is_whole(study: Path) -> bool:
    """Whether the study says that it is complete."""
    manifest = study / "raw" / "manifest.json"
    return manifest.is_file() and json.loads(manifest.read_text())["complete"] is True


def landed(study: Path) -> dict[str, bytes]:
    """What has landed, and the types that the source holds, which decide whether orders make courses."""
    raw = study / "raw"
    records = json.loads((raw / "manifest.json").read_text())["source"]["records"]
    names = [path.name for path in raw.iterdir() if path.name[0].isupper()] + ["ledger.csv", "quarantine.ndjson"]
    types = sorted(kind for kind, number in records.items() if number)
    return {name: (raw / name).read_bytes() for name in names} | {"types": json.dumps(types).encode()}


QUIET = Site(200, "plain", True, True, True, True, True, False, False, 1000, 1000, True, "3.0.0")


@cache
def reference(way: str, stamped: bool, posts: bool) -> dict[str, bytes]:
    """What lands without faults. A search for a child's number is made by POST alone, and its answer missed without."""
    drawn = Schedule(
        "bulk" if way == "bulk" else "search", replace(QUIET, stamped=stamped, posts=posts), 1, 20, 0.0, {}
    )
    with TemporaryDirectory() as folder, drawn.site.serve() as server:
        Course(drawn, server)
        assert pull(server, Path(folder) / "study", drawn) is None
        return landed(Path(folder) / "study")


def keys(found: dict[str, bytes]) -> dict[tuple[str, str], str]:
    """The records that have landed, by type and id."""
    lines = (line for name, text in found.items() if name[0].isupper() for line in text.decode().splitlines())
    return {(one["resourceType"], one["id"]): line for line in lines for one in [json.loads(line)]}


def what_is_wrong(study: Path, course: Course) -> str:
    """What of a pull that says it is whole is not so; empty where nothing is."""
    site = course.drawn.site
    expected = reference(course.drawn.way, site.stamped, site.posts)
    if not is_whole(study):
        return "no complete manifest"
    found = landed(study)
    if course.drawn.way != "changing":
        names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        return f"{', '.join(names)} differ" if names else ""
    # Data that change have no single truth: what stood all the time must be there, in one of its versions; what came or
    # went may be; a child that came is there with all it came with, or not at all.
    there, before = keys(found), keys(expected)
    child = {(one["resourceType"], one["id"]) for one in WRITES["a child comes"]}
    came = child | {("Observation", "o5")}
    if lost := before.keys() - there.keys() - course.deleted:
        return f"{sorted(lost)} are missing"
    if other := {
        key for key, text in there.items() if key not in before.keys() | came or text not in course.texts[key]
    }:
        return f"{sorted(other)} are not what the server held"
    if child & there.keys() not in (set(), child):
        return "a child came without some of its records"
    rows = list(csv.DictReader(io.StringIO(found["ledger.csv"].decode())))
    counted = {(row["patient"], row["type"]): int(row["count"]) for row in rows}
    mine = Counter(
        (text["subject"]["reference"][8:], kind)
        for (kind, _), line in there.items()
        for text in [json.loads(line)]
        if "subject" in text
    )
    if any(counted[cell] != number for cell, number in mine.items()):
        return "the ledger does not agree with the records"
    return ""


def ending(drawn: Schedule) -> str:
    """How a schedule ends: clean, loud, or what is silently wrong."""
    with TemporaryDirectory(dir=QUICK) as folder, drawn.site.serve() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "BATCH", drawn.batch)
        try:
            return _ending(drawn, server, Path(folder) / "study")
        except Exception as error:  # noqa: BLE001 - whatever it is, no user should meet it
            return f"raised {error!r}"


def _ending(drawn: Schedule, server: FakeServer, study: Path) -> str:
    course = Course(drawn, server)
    course.begin()
    error = pull(server, study, drawn, drawn.budget)
    course.end()
    if error is None:
        return what_is_wrong(study, course) or "clean"
    if error.exit_code not in (3, 4, 5) or "\n" in str(error) or is_whole(study):
        return f"not as documented, or with a complete manifest: {error!r}"
    if (again := pull(server, study, drawn)) is not None:
        return f"after {error!r}, the faults gone: {again!r}"
    wrong = what_is_wrong(study, course)
    return f"after {error!r}: {wrong}" if wrong else "loud"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A thousand pulls in a minute or two: what is not about the network costs nothing, and nobody waits."""
    monkeypatch.setattr(pipeline, "_build", lambda *_, **__: None)
    ours = Artifacts.load(None)
    monkeypatch.setattr(Artifacts, "load", lambda *_: ours)
    tokens = plan.condition_tokens(ours.value_set("crmo"))[:3]  # the searches by code come down from twelve to one
    monkeypatch.setattr(plan, "condition_tokens", lambda _: tokens)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # that is promise 73
    monkeypatch.setattr(client, "MAX_BODY", 2**20)
    monkeypatch.setattr(client, "TOTAL_TIMEOUTS", 2)
    monkeypatch.setitem(FhirClient.__init__.__kwdefaults__, "sleep", lambda _: None)
    monkeypatch.setitem(FhirClient.__init__.__kwdefaults__, "timeout", SILENCE)
    # JSON that is nested too deeply leaves no room on the stack for what the collector closes.
    gc.disable()
    yield
    gc.enable()


WAYS = ("search", "changing", "bulk")
ENDINGS = ("clean", "loud", "silent wrong")


def test_promise_01_random_fault_schedules_end_clean_or_loud(capsys) -> None:
    ended: Counter[tuple[str, str]] = Counter()
    wrong = []
    for number in range(SCHEDULES):
        drawn = schedule(number)
        how = ending(drawn)
        if how not in ENDINGS:
            wrong.append(f"schedule({number}): {how}\n  {drawn}")
        ended[drawn.way, how if how in ENDINGS else "silent wrong"] += 1
        if number % 50 == 0:
            gc.collect()
    total = {how: sum(ended[way, how] for way in WAYS) for how in ENDINGS}
    said = [f"{SCHEDULES:,} schedules: {', '.join(f'{total[how]:,} {how}' for how in ENDINGS)}"]
    said += [f"    {way}: {', '.join(f'{ended[way, how]:,} {how}' for how in ENDINGS)}" for way in WAYS]
    with capsys.disabled():
        print("", *said, sep="\n")  # noqa: T201
    assert not wrong, "\n".join([f"{len(wrong)} silent wrong", *wrong[:20]])
    # It would prove nothing if every run came to nothing, or if no fault ever struck.
    assert min(total["clean"], total["loud"]) >= 0.2 * SCHEDULES
    assert all(ended[way, how] >= 0.1 * sum(ended[way, one] for one in ENDINGS) for way in WAYS for how in ENDINGS[:2])


def blind_to_totals(patch: pytest.MonkeyPatch) -> None:
    for module in (search, crawl):
        patch.setattr(module, "check_total", lambda *_: None)


def sure_of_empty_answers(patch: pytest.MonkeyPatch) -> None:
    counted = crawl._counted
    patch.setattr(crawl, "_counted", lambda run, one: None if one.patients else counted(run, one))


def put_off_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(crawl, "_insist", lambda ask: ask())


def content_with_one_pass(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(crawl, "_is_quiet", lambda *_: True)


def blind_to_counts_of_files(patch: pytest.MonkeyPatch) -> None:
    check, uncounted = bulk._check, partial(msgspec.structs.replace, count=None)
    patch.setattr(
        bulk, "_check", lambda *given: check(*(uncounted(one) if isinstance(one, bulk._File) else one for one in given))
    )


def struck_once(fault: str) -> list[Schedule]:
    """A fault at each request of a pull in turn."""
    return [Schedule("search", QUIET, 1, 50, 120.0, {number: fault}) for number in range(25)]


@pytest.mark.parametrize(
    ("weaken", "drawn"),
    [
        (blind_to_totals, struck_once("slice")),
        (sure_of_empty_answers, struck_once("nothing")),
        (put_off_at_once, struck_once("status 404")),
        (content_with_one_pass, [schedule(number, "changing") for number in range(300)]),
        (blind_to_counts_of_files, [schedule(number, "bulk") for number in range(300)]),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_promise_01_a_client_that_checks_less_is_found_out(monkeypatch, weaken, drawn) -> None:
    weaken(monkeypatch)
    found = next(how for one in drawn if (how := ending(one)) not in ENDINGS)
    assert "raised" not in found
