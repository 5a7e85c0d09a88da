"""Promises 73-76: killed, out of disk, two at once, interrupted. The program itself, as a process of its own.

`strace` kills it, or makes its disk fail, at a chosen system call. Which there are tells a run that is only watched: each is
known by its name, the path it is about, and how often that was met before, whatever the threads do. One of every kind is
struck; with CRMO_FHIR_KILLS=all (`make kill-everywhere`) every single one.
"""

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Fault, Request
from support import Ran, required

from crmo_fhir import landing
from promises.records import OUTPUTS, drug, figures, raw
from promises.test_network import cohort, landed, page, serving

EVERYWHERE = os.environ.get("CRMO_FHIR_KILLS") == "all"
EVERY = 10
"""One file in so many of a folder is struck, and the last two; they are all written alike."""
CALLS = ("write", "fsync", "rename", "unlink", "unlinkat", "mkdir", "rmdir")
STARTED = re.compile(r'\d+ +(\w+)\((?:(?:-?\d+|AT_FDCWD)(?:<([^>]*)>)?)?(?:, )?(?:"([^"]*)")?')
WORKERS = 4
CHILDREN = cohort(2)
WHOLE = landed(CHILDREN)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(CHILDREN) as fake:
        yield fake


# ----------------------------------------------------------------------------------------------------------- the program


def environment() -> dict[str, str]:
    rest = {name: value for name, value in os.environ.items() if not name.startswith("CRMO_FHIR_")}
    return {**rest, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONFAULTHANDLER": "1"}


BEGUN: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    """End what a test that failed has begun."""
    yield
    while BEGUN:
        process = BEGUN.pop()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what strace traces, too
        process.communicate()


def start(
    *arguments: object, tracer: Iterable[str] = (), code: Iterable[str] = ("-m", "crmo_fhir"), **more: Any
) -> subprocess.Popen[str]:
    """The program, begun."""
    command = [*tracer, sys.executable, *code, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    more = {**pipes, "start_new_session": True, **more}
    BEGUN.append(subprocess.Popen(command, text=True, env=environment(), **more))
    return BEGUN[-1]


def end(process: subprocess.Popen[str], seconds: float = 60) -> Ran:
    """How it ended."""
    out, err = process.communicate(timeout=seconds)
    BEGUN.remove(process)
    return Ran(process.returncode, out, err)


def program(*arguments: object, tracer: Iterable[str] = (), **more: Any) -> Ran:
    return end(start(*arguments, tracer=tracer, **more))


def until(what: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for something to become true."""
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.005)


def said(ran: Ran) -> str:
    """The one line of an error."""
    assert "Traceback" not in ran.err, ran.err
    lines = [line for line in ran.err.strip().splitlines() if "warning" not in line]
    assert len(lines) == 1, ran.err
    return lines[0]


# ------------------------------------------------------------------------------------------------------ where it is struck


@dataclass(frozen=True)
class Place:
    """A system call: its name, the path that strace knows it by, which of these it is (from 1), and the file of the study."""

    call: str
    path: str
    number: int
    file: Path

    @property
    def name(self) -> str:
        """Call and file; a page of the journal is called so."""
        return f"{self.call} {re.sub('[0-9a-f]{64}', 'page', str(self.file))}"

    @property
    def kind(self) -> str:
        """What other places are like it: the same call about files of the same folder; what is about a folder stands alone."""
        return f"{self.call} {self.file.parent}" if self.call in ("write", "fsync", "unlinkat") else self.name


@pytest.fixture(scope="session")
def strace() -> str:
    found = shutil.which("strace")
    traces = found and subprocess.run([found, "-qq", "-o", os.devnull, "true"], check=False, capture_output=True)
    if not (found and traces.returncode == 0):
        assert not required("strace"), "strace is missing, or may not trace here"
        pytest.skip("needs strace, and the right to trace")
    return found


def places(strace: str, folder: Path, study: Path, *arguments: object) -> list[Place]:
    """Every write, fsync, rename, unlink, mkdir and rmdir of a run below the study, in order."""
    log = folder / "trace"
    watched = (strace, "-f", "-qq", "-y", "-o", str(log), "-e", f"trace={','.join(CALLS)}")
    ran = program(*arguments, tracer=watched)
    assert ran.code == 0, ran.err
    met: Counter[tuple[str, str]] = Counter()
    found = []
    for line in log.read_text(errors="replace").splitlines():
        if not (started := STARTED.match(line)):
            continue
        call, of, name = started.groups()
        known_by = of if call in ("write", "fsync") else name
        path = Path(of or "/") / known_by
        if not path.is_relative_to(study):
            continue
        met[call, known_by] += 1
        if "ENOENT" not in line:
            found.append(Place(call, known_by, met[call, known_by], path.relative_to(study)))
    return found


def chosen(found: list[Place], calls: Iterable[str] = CALLS) -> list[Place]:
    """Some places of every kind; all of them on request."""
    if EVERYWHERE:
        return found
    kinds: dict[str, list[Place]] = defaultdict(list)
    for place in found:
        if place.call in calls:
            kinds[place.kind].append(place)
    return [place for own in kinds.values() for place in dict.fromkeys((*own[::EVERY], *own[-2:]))]


def landing_of(found: list[Place]) -> list[Place]:
    """Without the journal, which is the same in every pull; on request with it."""
    return [place for place in found if EVERYWHERE or ".journal" not in place.file.parts]


def striking(strace: str, place: Place, effect: str) -> tuple[str, ...]:
    """What strikes a run at a place: as it is about to do it, and then never again, unless the effect says so."""
    when = effect if "when=" in effect else f"{effect}:when={place.number}"
    inject = ("-e", f"trace={place.call}", "-e", f"inject={place.call}:{when}")
    return (strace, "-f", "-qq", "-o", os.devnull, "-P", place.path, *inject)


# ------------------------------------------------------------------------------------------------------- what must be true


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_sound(study: Path) -> None:
    """What passes for whole is whole: a manifest, a cohort, figures."""
    manifest, build = study / "raw" / "manifest.json", study / "cohort" / "build.json"
    if manifest.exists():
        whole = json.loads(manifest.read_text())
        assert whole["complete"] is True
        assert {p.name: sha256(p) for p in manifest.parent.iterdir() if p != manifest} == {
            name: one["sha256"] for name, one in whole["files"].items()
        }
    if build.exists():
        built = json.loads(build.read_text())
        assert {p.name: sha256(p) for p in build.parent.iterdir() if p != build} == built["files"]
    if (study / "results.csv").exists():
        assert all((study / name).exists() for name in landing.OUTPUTS)
        assert built["raw"] == sha256(manifest)


def tables(study: Path) -> dict[str, bytes]:
    """The cohort."""
    return {path.name: path.read_bytes() for path in (study / "cohort").iterdir() if path.name != "build.json"}


def contents(study: Path) -> dict[str, bytes]:
    """Every file that a user sees."""
    return {
        str(path.relative_to(study)): path.read_bytes()
        for path in study.rglob("*")
        if path.is_file() and not path.relative_to(study).parts[0].startswith(".")
    }


def hidden(study: Path) -> list[str]:
    """What a user does not see."""
    return sorted(path.name for path in study.iterdir() if path.name.startswith("."))


def half_written(study: Path) -> list[Path]:
    """What may hold a part of something."""
    return [path for path in study.rglob("*") if path.name.endswith((".new", "-new", "-old"))]


def fetched(requests: Iterable[Request]) -> set[tuple[str, str, str]]:
    """The pages and records asked for; what only counts or describes is no part of them."""
    return {
        (request.method, request.path, request.body)
        for request in requests
        if request.type != "metadata" and not request.param("_summary")
    }


@dataclass
class Rerun:
    """The same command again, after something happened: as if nothing had, and without what is there already."""

    crmo: Callable[..., Ran]
    server: FakeServer
    study: Path
    records: dict[str, bytes]
    cohort: dict[str, bytes]
    pages: int

    def clean(self, before: int, *, lost: int = WORKERS) -> None:
        """Run again what has sent its requests from number `before` on, and lost so many of their answers."""
        asked, again = len(fetched(self.server.requests[before:])), len(self.server.requests)
        journal = self.study / ".journal"
        kept = len([*journal.glob("*.answer")]) if (journal / "request.json").exists() else 0
        ran = self.crmo("extract", self.server.base, "-o", self.study)
        assert ran.code == 0, ran.err
        assert raw(self.study) == self.records
        assert tables(self.study) == self.cohort
        assert hidden(self.study) == [".lock"]
        if kept:
            # One more: a search of two pages, of which the kill left one only, may be asked for again as a whole.
            assert kept + len(fetched(self.server.requests[again:])) <= self.pages + 1
            assert asked - kept <= lost


@pytest.fixture
def rerun(crmo, server, tmp_path) -> Rerun:
    """A first pull, and what it must come to."""
    clean = tmp_path / "clean"
    assert crmo("extract", server.base, "-o", clean).code == 0
    assert raw(clean) == WHOLE
    return Rerun(crmo, server, tmp_path / "study", WHOLE, tables(clean), len(fetched(server.requests)))


@pytest.fixture
def replacing(crmo, server, tmp_path) -> Rerun:
    """A pull in the place of an earlier one, which was measured; the data have changed since. The earlier is in `earlier`."""
    assert crmo("run", server.base, "-o", tmp_path / "earlier").code == 0
    server.update(drug("m1", "p1", status="stopped"))
    server.delete("Observation", "l2")
    server.skew += timedelta(minutes=1)
    clean, before = tmp_path / "clean", len(server.requests)
    assert crmo("extract", server.base, "-o", clean).code == 0
    assert raw(clean) != WHOLE
    pages = len(fetched(server.requests[before:]))
    return Rerun(crmo, server, tmp_path / "study", raw(clean), tables(clean), pages)


# -------------------------------------------------------------------------------------------------------------- 73: kill -9


def test_promise_73_a_first_pull_killed_anywhere_resumes(strace, rerun, tmp_path):
    study, server = rerun.study, rerun.server
    found = places(strace, tmp_path, study, "extract", server.base, "-o", study)
    assert len(found) > 120
    for place in chosen(found):
        shutil.rmtree(study, ignore_errors=True)
        before = len(server.requests)
        ran = program("extract", server.base, "-o", study, tracer=striking(strace, place, "signal=SIGKILL"))
        assert ran.code == -signal.SIGKILL, (place, ran)
        if study.exists():
            assert_sound(study)
        rerun.clean(before)


def test_promise_73_a_pull_killed_while_it_replaces_another_leaves_one_of_them(strace, replacing, tmp_path):
    study, server, earlier = replacing.study, replacing.server, tmp_path / "earlier"
    shutil.copytree(earlier, study)
    found = places(strace, tmp_path, study, "extract", server.base, "-o", study)
    assert {"unlink results.csv", "rename raw", "rename .raw-new", "unlinkat .raw-old/ledger.csv"} <= {
        place.name for place in found
    }
    for place in chosen(landing_of(found), ("rename", "unlink", "unlinkat", "rmdir")):
        shutil.rmtree(study)
        shutil.copytree(earlier, study)
        before = len(server.requests)
        ran = program("extract", server.base, "-o", study, tracer=striking(strace, place, "signal=SIGKILL"))
        assert ran.code == -signal.SIGKILL, (place, ran)
        assert_sound(study)
        if (study / "raw").exists():
            assert raw(study) in (WHOLE, replacing.records)
        replacing.clean(before)


def test_promise_73_killed_while_measuring_the_figures_are_whole_or_not_there(strace, crmo, server, tmp_path):
    study, earlier = tmp_path / "study", tmp_path / "earlier"
    assert crmo("run", server.base, "-o", earlier).code == 0
    shutil.copytree(earlier, study)
    for place in chosen(places(strace, tmp_path, study, "measure", study)):
        shutil.rmtree(study)
        shutil.copytree(earlier, study)
        ran = program("measure", study, tracer=striking(strace, place, "signal=SIGKILL"))
        assert ran.code == -signal.SIGKILL, (place, ran)
        assert_sound(study)
        assert raw(study) == raw(earlier)
        assert tables(study) == tables(earlier)
        assert crmo("measure", study).code == 0
        assert figures(study) == figures(earlier)
        assert hidden(study) == [".lock"]


def test_promise_73_killed_at_any_connect_it_resumes(strace, rerun):
    study, server = rerun.study, rerun.server
    server.faults.append(Fault("unframed", times=10**9))  # each answer ends its connection
    struck, number = 0, 1
    while True:
        shutil.rmtree(study, ignore_errors=True)
        before = len(server.requests)
        kill = ("-e", "trace=connect", "-e", f"inject=connect:signal=SIGKILL:when={number}")
        watched = (strace, "-f", "-qq", "-o", os.devnull, *kill)
        ran = program("extract", server.base, "--workers", 1, "-o", study, tracer=watched)
        if ran.code == 0:
            break
        assert ran.code == -signal.SIGKILL, ran
        assert_sound(study)
        rerun.clean(before)
        struck, number = struck + 1, number + (1 if EVERYWHERE else 1 + number // 2)
    assert struck > (20 if EVERYWHERE else 4)


def leave(server: FakeServer) -> None:
    """A child goes, with its diagnosis."""
    server.delete("Condition", "c2")
    server.delete("Patient", "p2")


def merge(server: FakeServer) -> None:
    """A child's records go to another record of the same child."""
    patient = server.store.get("Patient", "p2").resource
    server.update({**patient, "id": "p2new"})
    server.update({**patient, "link": [{"other": {"reference": "Patient/p2new"}, "type": "replaced-by"}]})
    for kind in ("Condition", "MedicationStatement", "Observation"):
        for one in [one for one in server.store.types[kind].values() if one.patient == "Patient/p2"]:
            server.update({**one.resource, "subject": {"reference": "Patient/p2new"}})


def refute(server: FakeServer) -> None:
    """A diagnosis turns out to be none, and a drug was stopped."""
    server.update({**server.store.get("Condition", "c2").resource, "verificationStatus": {"text": "refuted"}})
    server.update(drug("m1", "p1", status="stopped"))


@pytest.mark.parametrize("change", [leave, merge, refute])
@pytest.mark.parametrize(
    "poor", [{}, {"totals": False}, {"totals": False, "counts": False}], ids=["", "totals", "counts"]
)
def test_promise_73_data_that_change_before_the_rerun_are_those_of_the_rerun(crmo, tmp_path, change, poor):
    study, clean = tmp_path / "study", tmp_path / "clean"
    with serving(CHILDREN, page_size=200) as server:
        for name, value in poor.items():
            setattr(server, name, value)
        with held(server, study, "Procedure"):
            assert len(list((study / ".journal").glob("*.answer"))) > 10
        server.skew += timedelta(minutes=1)
        change(server)
        for path in (study, clean):
            ran = crmo("extract", server.base, "-o", path)
            assert ran.code == 0, ran.err
    assert raw(study) == raw(clean)
    assert raw(study) != WHOLE


def test_promise_73_what_a_run_found_wrong_is_asked_for_anew(crmo, server, tmp_path):
    study = tmp_path / "study"
    wrong = {"resourceType": "Observation", "id": "o1", "status": ["final"], "subject": {"reference": "Patient/p1"}}
    right = server.store.get("Observation", "o1").resource
    server.update(wrong)
    assert crmo("extract", server.base, "-o", study).code == 3
    server.update(right)
    ran = crmo("extract", server.base, "-o", study)
    assert ran.code == 0, ran.err
    assert b'["final"]' not in raw(study)["Observation.ndjson"]


def test_promise_73_a_journal_is_dropped_from_its_head_on(strace, crmo, server, tmp_path):
    study, log = tmp_path / "study", tmp_path / "trace"
    found = places(strace, tmp_path, study, "extract", server.base, "-o", study)
    dropped = [place for place in found if place.call.startswith("unlink") and place.file.parts[0] == ".journal"]
    assert dropped[0].file.name == "request.json"
    shutil.rmtree(study)
    program("extract", server.base, "-o", study, tracer=striking(strace, dropped[5], "signal=SIGKILL"))
    assert list((study / ".journal").glob("*.answer"))
    log.unlink()
    before = len(server.requests)
    server.update(drug("m1", "p1", status="stopped"))
    assert crmo("extract", server.base, "-o", study).code == 0
    assert b"stopped" in raw(study)["MedicationStatement.ndjson"]
    assert len(fetched(server.requests[before:])) > 20


def test_promise_73_a_journal_is_used_for_a_day_by_any_clock(crmo, server, tmp_path):
    study = tmp_path / "study"
    for hours, resumes in ((1, True), (23, True), (25, False), (-1, True), (-25, False), (-24 * 365, False)):
        shutil.rmtree(study, ignore_errors=True)
        server.faults = [Fault("status", where=page("Observation", 2), status=503, times=99)]
        assert crmo("extract", server.base, "--retry-budget", "0", "-o", study).code == 5
        server.faults.clear()
        then = time.time() - 3600 * hours
        os.utime(study / ".journal" / "request.json", (then, then))
        before = len(server.requests)
        assert crmo("extract", server.base, "-o", study).code == 0
        assert any("code=" in path for _, path, _ in fetched(server.requests[before:])) is not resumes, hours
        assert raw(study) == WHOLE


# --------------------------------------------------------------------------------------------------------- 74: a full disk


ERRORS = ("ENOSPC", "EIO", "EDQUOT")


def failing(found: list[Place]) -> Iterator[tuple[Place, str]]:
    """Every place where the disk may fail, with the ways in turn; with all of them on request."""
    for index, place in enumerate(chosen(found, ("write", "fsync"))):
        for error in ERRORS if EVERYWHERE else (ERRORS[index % 3],):
            if place.call in ("write", "fsync"):
                yield place, error


def test_promise_74_a_disk_that_fails_a_first_pull_is_named(strace, rerun, tmp_path):
    study, server = rerun.study, rerun.server
    found = places(strace, tmp_path, study, "extract", server.base, "-o", study)
    for place, error in failing(found):
        shutil.rmtree(study)
        before = len(server.requests)
        strikes = striking(strace, place, f"error={error}:when={place.number}+")
        ran = program("extract", server.base, "-o", study, tracer=strikes)
        assert ran.code == 6, (place, ran)
        assert str(study / place.file) in said(ran)
        assert_sound(study)
        assert half_written(study) == []
        rerun.clean(before, lost=rerun.pages)


def test_promise_74_a_disk_that_fails_leaves_the_earlier_results(strace, replacing, tmp_path):
    study, server, earlier = replacing.study, replacing.server, tmp_path / "earlier"
    shutil.copytree(earlier, study)
    found = places(strace, tmp_path, study, "extract", server.base, "-o", study)
    landed_at = next(index for index, place in enumerate(found) if place.name == "rename .raw-new")
    for place, error in failing(landing_of(found)):
        shutil.rmtree(study)
        shutil.copytree(earlier, study)
        strikes = striking(strace, place, f"error={error}:when={place.number}+")
        before = len(server.requests)
        ran = program("extract", server.base, "-o", study, tracer=strikes)
        assert ran.code == 6, (place, ran)
        assert str(study / place.file) in said(ran)
        if found.index(place) < landed_at:
            assert contents(study) == contents(earlier), place
        else:  # the new records are there, and nothing that was computed from the old ones
            assert raw(study) == replacing.records
            assert not (study / "results.csv").exists()
        assert_sound(study)
        replacing.clean(before, lost=replacing.pages)


def test_promise_74_a_disk_that_fails_a_measure_leaves_the_earlier_figures(strace, crmo, server, tmp_path):
    study, earlier = tmp_path / "study", tmp_path / "earlier"
    assert crmo("run", server.base, "-o", earlier).code == 0
    shutil.copytree(earlier, study)
    found = places(strace, tmp_path, study, "measure", study)
    written = [place for place in found if place.file.name.endswith(".new")]
    assert len(written) > 2 * len(OUTPUTS)
    for place, error in failing(written):
        ran = program("measure", study, tracer=striking(strace, place, f"error={error}:when={place.number}+"))
        assert ran.code == 6, (place, ran)
        assert str(study / place.file) in said(ran)
        assert contents(study) == contents(earlier)
        assert half_written(study) == []
    assert crmo("measure", study).code == 0


def test_promise_74_a_disk_that_does_not_give_a_file_is_named(strace, crmo, server, tmp_path):
    study = tmp_path / "study"
    assert crmo("run", server.base, "-o", study).code == 0
    path, before = study / "raw" / "Condition.ndjson", contents(study)
    place = Place("read", str(path), 1, Path("raw") / "Condition.ndjson")
    ran = program("measure", study, tracer=striking(strace, place, "error=EIO"))
    assert ran.code == 6, ran
    assert str(path) in said(ran)
    assert contents(study) == before


@pytest.mark.parametrize("limit", [0, 100, 1000, 4096, 10_000])
def test_promise_74_a_file_may_be_no_larger(rerun, limit):
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    before = len(rerun.server.requests)
    ran = program("extract", rerun.server.base, "-o", rerun.study, preexec_fn=limited)
    assert ran.code == 6, ran
    assert f"{rerun.study}/" in said(ran)
    assert "File too large" in ran.err
    assert half_written(rerun.study) == []
    rerun.clean(before, lost=rerun.pages)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A file system of a size in memory; what is given changes the size."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip("needs the right to mount")
    try:
        yield lambda more: subprocess.run(["mount", "-o", f"remount,size={more}", folder], check=True) and None
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("size", ["4k", "8k", "16k", "64k", "128k", "200k"])
def test_promise_74_a_full_disk_is_named_and_with_more_room_it_goes_on(rerun, tmp_path, size):
    with small_disk(tmp_path / "disk", size) as resize:
        rerun.study = tmp_path / "disk" / "study"
        before = len(rerun.server.requests)
        ran = program("extract", rerun.server.base, "-o", rerun.study)
        assert ran.code == 6, ran
        assert str(rerun.study) in said(ran)
        assert "No space left" in ran.err
        assert half_written(rerun.study) == []
        resize("10m")
        rerun.clean(before, lost=rerun.pages)


@pytest.mark.parametrize("command", ["extract", "measure", "diff"])
def test_promise_74_a_screen_that_takes_nothing_is_said(crmo, server, tmp_path, command):
    study = tmp_path / "study"
    assert crmo("run", server.base, "-o", study).code == 0
    arguments = {"extract": (server.base, "-o", study), "measure": (study,), "diff": (study, study)}[command]
    with Path("/dev/full").open("w") as full:
        ran = program(command, *arguments, stdout=full)
    assert ran.code == 6, ran
    assert "standard output" in said(ran)
    assert_sound(study)


# ------------------------------------------------------------------------------------------------------------ 75: two at once


def tree(study: Path) -> dict[str, tuple[int, ...]]:
    """Everything in a study that a write would change."""
    return {
        str(path): (state.st_ino, state.st_mtime_ns, state.st_size, state.st_mode)
        for path in (study, *study.rglob("*"))
        for state in (path.lstat(),)
    }


@contextmanager
def held(server: FakeServer, study: Path, kind: str = "MedicationStatement") -> Iterator[subprocess.Popen[str]]:
    """A run that waits for its server to send a type, in a study; it is killed in the end."""
    stall = Fault("stall-first", path=f"/{kind}", seconds=60)
    server.faults.append(stall)
    process = start("extract", server.base, "-o", study)
    try:
        until(lambda: not stall.times)
        time.sleep(0.1)  # the other workers come to an end too
        yield process
    finally:
        process.kill()
        process.wait()
        server.faults.remove(stall)


@pytest.mark.parametrize("command", ["extract", "extract otherwise", "run", "build", "measure", "diff"])
def test_promise_75_a_second_run_leaves_at_once_and_touches_nothing(crmo, server, tmp_path, command):
    study, other = tmp_path / "study", tmp_path / "other"
    for path in (study, other):
        assert crmo("run", server.base, "-o", path).code == 0
    arguments = {
        "extract": ("extract", server.base, "-o", study),
        "extract otherwise": ("extract", server.base, "--since", "1999", "-o", study),
        "run": ("run", server.base, "-o", study),
        "build": ("build", study),
        "measure": ("measure", study),
        "diff": ("diff", other, study),
    }[command]
    results = figures(study)
    with held(server, study):
        before, asked = tree(study), len(server.requests)
        begun = time.monotonic()
        ran = crmo(*arguments)
        assert time.monotonic() - begun < 1
        assert ran.code == 7, ran.err
        assert str(study) in said(ran)
        assert tree(study) == before
        assert len(server.requests) == asked
    assert figures(study) == results


def test_promise_75_a_second_process_too(rerun):
    with held(rerun.server, rerun.study):
        before = tree(rerun.study)
        ran = program("extract", rerun.server.base, "-o", rerun.study)
        assert ran.code == 7, ran
        assert "another run" in said(ran)
        assert tree(rerun.study) == before


def test_promise_75_a_study_between_two_pulls_is_left_to_who_is_at_it(strace, replacing, tmp_path):
    study, earlier = replacing.study, tmp_path / "earlier"
    shutil.copytree(earlier, study)
    # It stands still when the old records are put aside, and the new ones not yet in their place.
    aside = striking(strace, Place("rename", str(study / "raw"), 1, Path("raw")), "signal=SIGSTOP")
    process = start("extract", replacing.server.base, "-o", study, tracer=aside)
    until(lambda: not (study / "raw").exists())
    before = tree(study)
    for arguments in (("extract", replacing.server.base, "-o", study), ("measure", study), ("diff", study, earlier)):
        assert replacing.crmo(*arguments).code == 7
    assert tree(study) == before
    os.killpg(process.pid, signal.SIGCONT)
    assert end(process).code == 0
    assert raw(study) == replacing.records


def test_promise_75_the_lock_of_a_killed_run_is_free(rerun):
    with held(rerun.server, rerun.study) as process:
        process.kill()
        process.wait()
        rerun.clean(0)


@pytest.mark.parametrize("attempt", range(3))
def test_promise_75_of_two_that_begin_a_study_one_does(rerun, attempt):
    rerun.server.delay = 0.02
    both = [start("extract", rerun.server.base, "-o", rerun.study) for _ in range(2)]
    assert sorted(end(process).code for process in both) == [0, 7]
    assert raw(rerun.study) == WHOLE
    assert tables(rerun.study) == rerun.cohort


# ------------------------------------------------------------------------------------------------------------ 76: interrupts


SIGNALS = (signal.SIGINT, signal.SIGTERM)


def interrupted(process: subprocess.Popen[str], number: int, study: Path) -> None:
    """It ends within 5 s with the code and the one line of an interrupt, and leaves nothing half-written."""
    begun = time.monotonic()
    process.send_signal(number)
    ran = end(process)
    assert time.monotonic() - begun < 5
    assert ran.code == 128 + number, ran
    assert "interrupted" in said(ran)
    assert half_written(study) == []
    assert_sound(study)


SLOW = {
    "answers that are slow": Fault("stall-first", times=99, seconds=60),
    "a body that stalls": Fault("stall", where=page("Observation"), seconds=60),
    "a body that drips": Fault("drip", where=page("Observation"), seconds=0.2),
    "a long Retry-After": Fault("status", where=page("Observation"), status=503, headers={"Retry-After": "100"}),
    "backing off": Fault("status", path="Observation", status=503, times=999),
}


@pytest.mark.parametrize("number", SIGNALS, ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("slow", SLOW)
def test_promise_76_an_interrupt_ends_what_waits(rerun, number, slow):
    server, study = rerun.server, rerun.study
    fault = SLOW[slow]
    server.faults = [Fault(fault.kind, fault.path, fault.times, 0, fault.status, fault.headers, where=fault.where)]
    server.faults[0].seconds = fault.seconds
    before = len(server.requests)
    process = start("extract", server.base, "--retry-budget", 1000, "-o", study)
    until(lambda: server.faults[0].times < fault.times)
    time.sleep(0.3)
    interrupted(process, number, study)
    server.faults.clear()
    rerun.clean(before)


ENDLESS = """
import sys
from crmo_fhir import cli, engine
def run(self, *_):
    print("querying", flush=True)
    return self.connection.execute("SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b").fetchall()
engine.DuckDB.run = run
sys.argv[0] = "crmo-fhir"
cli.main()
"""


@pytest.mark.parametrize("number", SIGNALS, ids=["SIGINT", "SIGTERM"])
def test_promise_76_an_interrupt_ends_a_query(rerun, number):
    before = len(rerun.server.requests)
    process = start("extract", rerun.server.base, "-q", "-o", rerun.study, code=("-c", ENDLESS))
    assert process.stdout.readline() == "querying\n"
    time.sleep(0.3)
    interrupted(process, number, rerun.study)
    assert raw(rerun.study) == WHOLE
    rerun.clean(before)


def test_promise_76_an_interrupt_while_writing_leaves_nothing_half_written(strace, rerun, tmp_path):
    study, server = rerun.study, rerun.server
    found = places(strace, tmp_path, study, "run", server.base, "-o", study)
    named = {place.name: place for place in found}
    names = (
        "write .journal/page.new",
        "rename .journal/page.new",
        "fsync .raw-new/Patient.ndjson",
        "rename .raw-new",
        "write .cohort-new/patients.parquet",
        "rename .cohort-new",
        "fsync .measure.json.new",
        "rename .table1.csv.new",
    )
    for name, number in zip(names, SIGNALS * len(names), strict=False):
        shutil.rmtree(study)
        before = len(server.requests)
        strike = striking(strace, named[name], f"signal={signal.Signals(number).name}")
        ran = program("run", server.base, "-o", study, tracer=strike)
        assert ran.code == 128 + number, (name, ran)
        assert "interrupted" in said(ran)
        assert half_written(study) == [], name
        assert_sound(study)
        rerun.clean(before)


def test_promise_76_an_interrupt_at_any_moment(rerun):
    study, server = rerun.study, rerun.server
    begun = time.monotonic()
    assert program("extract", server.base, "-o", study).code == 0
    whole = time.monotonic() - begun
    moments = 100 if EVERYWHERE else 10
    for moment in range(moments):
        shutil.rmtree(study, ignore_errors=True)
        before = len(server.requests)
        process = start("extract", server.base, "-o", study)
        time.sleep(whole * moment / moments)
        process.send_signal(signal.SIGTERM)
        ran = end(process, 5)
        # Before the program has begun and after it has done all, the signal alone ends it, in silence.
        assert ran.code in (143, -signal.SIGTERM, 0), ran
        assert "interrupted" in said(ran) if ran.code == 143 else ran.err == ""
        if study.exists():
            assert half_written(study) == []
            assert_sound(study)
        rerun.clean(before)


def test_promise_76_who_asks_twice_does_not_stop_the_clearing(rerun):
    server, study = rerun.server, rerun.study
    with held(server, study) as process:
        for _ in range(5):
            process.send_signal(signal.SIGINT)
            time.sleep(0.001)
        interrupted(process, signal.SIGINT, study)
    server.faults.clear()
    rerun.clean(0)


DEAF = """
import sys, time, weakref
from crmo_fhir import cli, pipeline
class Gone: pass
def deaf(*_, **__):
    print("deaf", flush=True)
    gone = Gone()
    reference = weakref.ref(gone, lambda _: time.sleep(1))  # what is raised in a callback is lost
    del gone
    time.sleep(60)
pipeline._fetch = deaf
sys.argv[0] = "crmo-fhir"
cli.main()
"""


def test_promise_76_an_interrupt_that_is_lost_is_raised_again(tmp_path):
    arguments = ("extract", "http://127.0.0.1:9/fhir", "-q", "-o", tmp_path / "study")
    process = start(*arguments, code=("-c", DEAF))
    assert process.stdout.readline() == "deaf\n"
    time.sleep(0.2)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    ran = end(process)
    assert time.monotonic() - begun < 5
    assert ran.code == 143, ran
    assert "interrupted" in said(ran)
