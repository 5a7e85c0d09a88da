"""Promise 1: random schedules of faults. Whole pulls; each ends CLEAN or LOUD, and is CLEAN when the faults are gone."""

import json
import os
import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from random import Random
from typing import Any, Literal

import pytest
from fake.faults import BEFORE, _CONTENT, ON_THE_WIRE
from fake_server import FakeServer, Fault
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from crmo_fhir import landing, pipeline
from crmo_fhir.artifacts import Artifacts
from crmo_fhir.errors import CrmoFhirError
from crmo_fhir.fhir import client
from crmo_fhir.fhir.client import FhirClient
from crmo_fhir.source import plan
from crmo_fhir.model.parameters import Parameters
from promises.records import about, diagnosis, drug, effect, patient
from promises.test_network import MEDICATION, OTHERS, Resource, compact, lab

SCHEDULES = int(os.environ.get("CRMO_FHIR_SCHEDULES", "1000"))
SILENCE = 0.1

_PRESCRIBED = drug("m3", "p1", medicationReference={"reference": "Medication/anakinra"})
del _PRESCRIBED["medicationCodeableConcept"]
MRN = [{"system": "urn:mrn", "value": "2"}]
COHORT = [
    patient("p1"),
    diagnosis("c1", "p1", encounter={"reference": "Encounter/e1"}),
    about("Encounter", "e1", "p1", status="finished", **{"class": {"code": "AMB"}}),
    drug("m1", "p1"),
    _PRESCRIBED,
    effect("o1", "p1", "m1"),
    lab("o2", "p1"),
    # Another record of the same child, which only its own link tells.
    patient("p1b", link=[{"other": {"reference": "Patient/p1"}, "type": "replaces"}]),
    lab("o3", "p1b"),
    # A child known by words alone, with a second record under the same number.
    patient("p2", identifier=MRN),
    diagnosis("c2", "p2", code={"text": "CRMO"}),
    drug("m2", "p2"),
    patient("p2b", identifier=MRN),
    lab("o4", "p2b"),
    MEDICATION,
    *OTHERS,
]
TYPES = ("Patient", "Condition", "Encounter", "MedicationStatement", "Observation", "Medication")
ABSENT = (
    "MedicationRequest",
    "MedicationDispense",
    "MedicationAdministration",
    "Procedure",
    "ImagingStudy",
    "DiagnosticReport",
    "AdverseEvent",
)

FAULTS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in (*BEFORE, *ON_THE_WIRE, *_CONTENT, "wrong-page", "wrong-type")},
    "stall-first": {"kind": "stall-first", "seconds": 1.5 * SILENCE},
    "stall": {"kind": "stall", "seconds": 1.5 * SILENCE},
    "slow": {"kind": "slow", "seconds": 0.01},
    "bomb": {"kind": "bomb", "size": 2 * 2**20},
    "stacked": {"kind": "stacked", "size": 2 * 2**20},
    **{
        f"status {s}": {"kind": "status", "status": s}
        for s in (400, 401, 403, 404, 405, 408, 410, 422, 429, 500, 501, 502, 503, 504)
    },
    **{
        f"429 after {wait}": {"kind": "status", "status": 429, "headers": {"Retry-After": wait}}
        for wait in ("1", "20", "1000", "soon")
    },
    "no next": {"kind": "change", "change": lambda page: {**page, "link": []}},
    "total more": {"kind": "change", "change": lambda page: {**page, "total": page.get("total", 0) + 1}},
    "no id": {"kind": "change", "change": lambda page: json.loads(json.dumps(page).replace('"id"', '"no"'))},
}
del FAULTS["change"], FAULTS["status"]


@dataclass(frozen=True)
class Site:
    page_size: int = 200
    links: str = "plain"
    totals: Any = True
    counts: bool = True
    posts: bool = True
    self_links: bool = True
    modes: bool = True
    stamped: bool = False
    zipped: bool = False

    def serve(self) -> FakeServer:
        server = FakeServer(map(compact, COHORT), page_size=self.page_size, stamped=self.stamped)
        server.opaque_links, server.relative_links = self.links == "opaque", self.links == "relative"
        server.totals, server.counts, server.posts = self.totals, self.counts, self.posts
        server.self_links, server.modes, server.zipped = self.self_links, self.modes, self.zipped
        server.types = TYPES
        return server


@dataclass(frozen=True)
class Schedule:
    site: Site
    faults: dict[int, str] = field(default_factory=dict)
    lasting: tuple[int, str] | None = None
    workers: int = 1
    budget: float = 120


def pull(server, study, schedule) -> CrmoFhirError | None:
    before = set(threading.enumerate())
    try:
        pipeline.extract(
            server.base,
            study,
            Parameters(text_diagnosis=True),
            server=pipeline.Server(workers=schedule.workers, retry_budget=schedule.budget, absent=ABSENT),
        )
    except CrmoFhirError as error:
        for thread in set(threading.enumerate()) - before:
            if thread.name.startswith("ThreadPool"):
                thread.join()
        return error
    return None


def landed(study: Path):
    raw = study / "raw"
    manifest = json.loads((raw / "manifest.json").read_text())
    assert manifest["complete"] is True
    files = {p.name: p.read_bytes() for p in raw.glob("[A-Z]*.ndjson")}
    return {
        **files,
        "ledger.csv": (raw / "ledger.csv").read_bytes(),
        "records": json.dumps(manifest["source"]["records"]).encode(),
    }


@cache
def reference(stamped: bool, posts):
    with TemporaryDirectory() as folder, Site(stamped=stamped, posts=posts).serve() as server:
        assert pull(server, Path(folder) / "s", Schedule(Site())) is None
        found = landed(Path(folder) / "s")
    return found


def run(schedule: Schedule):
    with TemporaryDirectory() as folder, schedule.site.serve() as server:
        study = Path(folder) / "study"
        server.schedule = {n: Fault(**FAULTS[name]) for n, name in schedule.faults.items()}
        if schedule.lasting:
            server.faults = [Fault(skip=schedule.lasting[0], times=10**6, **FAULTS[schedule.lasting[1]])]
        error = pull(server, study, schedule)
        log = [
            (f"{schedule.faults.get(n)}!" if n in schedule.faults else "") + f"{r.method} {r.path[5:60]} {r.body[:60]}"
            for n, r in enumerate(server.requests)
        ]
        if error is None:
            got = landed(study)
            if got != reference(schedule.site.stamped, schedule.site.posts):
                ref = reference(schedule.site.stamped, schedule.site.posts)
                m = json.loads((study / "raw" / "manifest.json").read_text())
                return "silent wrong", log, ([k for k in {*got, *ref} if got.get(k) != ref.get(k)], m["warnings"])
            return "clean", log, None
        if error.exit_code not in (3, 4, 5):
            return "silent wrong", log, error
        m = study / "raw" / "manifest.json"
        if m.exists() and json.loads(m.read_text())["complete"]:
            return "silent wrong", log, error
        server.schedule, server.faults = {}, []
        again = pull(server, study, Schedule(Site(), workers=schedule.workers))
        if again is not None:
            return "silent wrong", log, (error, again)
        if landed(study) != reference(schedule.site.stamped, schedule.site.posts):
            return "silent wrong after resume", log, error
        return "loud", log, error


def draw(seed: int) -> Schedule:
    r = Random(seed)
    site = Site(
        page_size=r.choice([1, 2, 3, 200]),
        links=r.choice(["plain", "opaque", "relative"]),
        totals=r.choice([True, "asked", False]),
        counts=r.random() < 0.5,
        posts=r.random() < 0.8,
        self_links=r.random() < 0.7,
        modes=r.random() < 0.7,
        stamped=r.random() < 0.5,
        zipped=r.random() < 0.3,
    )
    names = sorted(FAULTS)
    faults = {n: r.choice(names) for n in r.sample(range(26), r.choice([1, 2, 3, 4, 6, 8]))}
    return Schedule(site, faults, None, r.randint(1, 4), r.choice([120.0, 120.0, 5.0, 0.0]))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(pipeline, "_build", lambda *_, **__: None)
    found = Artifacts.load(None)
    monkeypatch.setattr(Artifacts, "load", lambda *_: found)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    tokens = plan.condition_tokens(found.value_set("crmo"))[:3]
    monkeypatch.setattr(plan, "condition_tokens", lambda _: tokens)
    monkeypatch.setattr(client, "MAX_BODY", 2**20)
    monkeypatch.setitem(FhirClient.__init__.__kwdefaults__, "sleep", lambda _: None)
    monkeypatch.setitem(FhirClient.__init__.__kwdefaults__, "timeout", SILENCE)


def test_promise_01_(quick):
    ended = Counter()
    import time

    t0 = time.time()
    out = open("/tmp/sched/wrong.txt", "w")

    @settings(
        max_examples=SCHEDULES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**32 - 1))
    def check(seed):
        schedule = draw(seed)
        how, log, error = run(schedule)
        ended[how] += 1
        if "wrong" in how:
            print(how, schedule, repr(error), *log, "", sep="\n  ", file=out, flush=True)
        return

    check()
    print(ended, time.time() - t0, file=out)
    assert not ended["silent wrong"]
