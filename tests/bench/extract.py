"""How long `crmo-fhir extract` takes beside a raw loop and beside smart-fetch, on one real HAPI server.

    .venv/bin/python tests/bench/extract.py                 starts HAPI (Java, Maven), loads 11,000 resources, compares
    .venv/bin/python tests/bench/extract.py --base URL      a server that holds these records already
    .venv/bin/python tests/bench/extract.py --profile       also says where the time of ours goes

The tools take turns in every round, each as a process of its own into a clean folder; the first round only warms the
server up. `raw` knows the patients and checks nothing (raw.py); smart-fetch is given the patients too, for it cannot
find them by a code. All three must bring the same resources. Ours should take at most 1.5 times the raw loop, plus its
start-up: an extract of one child out of a folder.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import pstats
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BENCH = ROOT / ".bench"
sys.path[:0] = [str(HERE.parent), str(HERE)]

from records import EACH, PATIENTS, identity, records  # noqa: E402
from servers import hapi  # noqa: E402
from servers.records import load  # noqa: E402

from crmo_fhir.model.records import READ_TYPES  # noqa: E402
from crmo_fhir.source import plan  # noqa: E402

SMART_FETCH = "1.0.3"
WANTED = ("Patient", *EACH)
ALLOWED = 1.5


def say(line: str = "") -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def seconds(command: Sequence[object], *, environment: dict[str, str] | None = None) -> tuple[float, str]:
    """Run a command to its end: seconds of wall clock, and what it printed."""
    begun = time.perf_counter()
    words = [str(word) for word in command]
    ran = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **(environment or {})}, check=False)
    took = time.perf_counter() - begun
    if ran.returncode:
        raise SystemExit(f"{' '.join(words)}\nended with {ran.returncode}: {ran.stderr[-2000:]}{ran.stdout[-2000:]}")
    return took, ran.stdout


def smart_fetch(given: Path | None) -> Path:
    """The program smart-fetch: the one given, else one installed into .bench (which git ignores)."""
    if given:
        return given
    folder = BENCH / f"smart-fetch-{SMART_FETCH}"
    program = folder / "bin" / "smart-fetch"
    if not program.is_file():
        BENCH.mkdir(exist_ok=True)
        (BENCH / ".gitignore").write_text("*\n")
        venv.create(folder, with_pip=True, clear=True)
        seconds((folder / "bin" / "pip", "install", "--quiet", f"smart-fetch=={SMART_FETCH}"))
    return program


@contextmanager
def server(base: str | None, folder: Path) -> Iterator[str]:
    """The base of a server that holds the records: the one given, else a fresh HAPI."""
    if base:
        yield base.rstrip("/")
        return
    with hapi.running(folder / "hapi.log") as fresh:
        begun = time.perf_counter()
        load(fresh, records())
        say(f"loaded in {time.perf_counter() - begun:.0f} s")
        yield fresh


def brought(folder: Path) -> set[tuple[str, str]]:
    """Type and id of every resource in the NDJSON files of a folder; of the wanted types only."""
    found = []
    for path in sorted(folder.glob("*.ndjson")):
        kind = path.name.removesuffix(".ndjson")
        if kind in WANTED:
            found += [(kind, json.loads(line)["id"]) for line in path.read_bytes().splitlines()]
    assert len(found) == len(set(found)), "a resource was written twice"
    return set(found)


def commands(base: str, ids: Path, program: Path) -> dict[str, list[object]]:
    """The command of each tool, without the folder it writes to."""
    every = [str(number) for number in range(1000)]
    batch = plan.plan_ids("Patient", every)[0]
    like_ours = ("--batch", len(batch.patients), "--page", dict(batch.params)["_count"])
    types = ",".join(kind for kind in READ_TYPES if kind != "Medication")
    return {
        "raw": [sys.executable, HERE / "raw.py", base, ids, "--types", types, *like_ours],
        "ours": [sys.executable, "-m", "crmo_fhir", "extract", base, "--mode", "search", "-q", "-o"],
        "smart-fetch": [
            *(program, "crawl", "--fhir-url", base, "--id-file", ids, "--type", ",".join(WANTED)),
            *("--no-default-filters", "--no-compression"),
        ],
    }


def start_up(folder: Path) -> float:
    """Median seconds of an extract that has next to nothing to do: one child out of a folder."""
    source = folder / "one"
    source.mkdir()
    child = identity(0)
    with (source / "one.ndjson").open("w") as out:
        for one in records():
            if child in (one["id"], one.get("subject", {}).get("reference", "").removeprefix("Patient/")):
                out.write(json.dumps(one) + "\n")
    command = [sys.executable, "-m", "crmo_fhir", "extract", source, "-q", "-o"]
    return statistics.median(seconds((*command, folder / f"start-{n}"))[0] for n in range(5))


def profile(command: Sequence[object], folder: Path) -> None:
    """Where the time goes, by function: the dearest in all, and the dearest by themselves."""
    stats = folder / "profile"
    seconds((sys.executable, "-m", "cProfile", "-o", stats, *command[1:], folder / "profiled"))
    for key, words in (("cumulative", "with what they call"), ("tottime", "by themselves")):
        say(f"\nof ours, {words} (under cProfile, which slows it):")
        pstats.Stats(str(stats), stream=sys.stdout).sort_stats(key).print_stats(40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=os.environ.get("BENCH_BASE"), help="a server that holds the records")
    parser.add_argument("--smart-fetch", type=Path, default=os.environ.get("BENCH_SMART_FETCH"), help="its program")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    program = smart_fetch(given.smart_fetch)
    folder = Path(tempfile.mkdtemp(prefix="crmo-bench-"))
    try:
        with server(given.base, folder) as base:
            compare(base, folder, program, given.rounds, profiled=given.profile)
    finally:
        shutil.rmtree(folder)


def compare(base: str, folder: Path, program: Path, rounds: int, *, profiled: bool) -> None:
    ids = folder / "ids.txt"
    ids.write_text("".join(f"{identity(child)}\n" for child in range(PATIENTS)))
    tools = commands(base, ids, program)
    describe(base, program, tools)
    took: dict[str, list[float]] = {name: [] for name in (*tools, "raw-process", "build")}
    for number in range(rounds + 1):
        results = {}
        for name in list(tools)[number % 3 :] + list(tools)[: number % 3]:
            target = folder / f"{name}-{number}"
            command = [*tools[name], target]
            if name == "raw":
                command = [*tools[name][:4], target, *tools[name][4:]]
            whole, printed = seconds(command)
            took[name].append(float(printed) if name == "raw" else whole)
            if name == "raw":
                took["raw-process"].append(whole)
            if name == "ours":
                took["build"].append(seconds((sys.executable, "-m", "crmo_fhir", "build", target, "-q"))[0])
            results[name] = brought(target / "raw" if name == "ours" else target)
            shutil.rmtree(target)
        if number == 0:
            say_counts(results)
        if len(set(map(frozenset, results.values()))) != 1:
            raise SystemExit("the tools did not bring the same resources")
    report(took, start_up(folder))
    if profiled:
        profile(tools["ours"], folder)


def describe(base: str, program: Path, tools: dict[str, list[object]]) -> None:
    with urlopen(f"{base}/metadata") as answer:
        software = json.load(answer)["software"]
    fetched = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    ours = subprocess.run([sys.executable, "-m", "crmo_fhir", "--version"], capture_output=True, text=True, check=True)
    requests = importlib.metadata.version("requests")
    say(f"{software['name']} {software['version']}; {os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}")
    say(f"Python {platform.python_version()}, requests {requests}, crmo-fhir {ours.stdout.strip()}, {fetched}")
    for name, command in tools.items():
        say(f"{name}: {' '.join(map(str, command))} FOLDER")


def say_counts(results: dict[str, set[tuple[str, str]]]) -> None:
    counts = {name: Counter(kind for kind, _ in found) for name, found in results.items()}
    say(f"\n{'resources':<20}" + "".join(f"{name:>14}" for name in counts))
    for kind in WANTED:
        say(f"{kind:<20}" + "".join(f"{count[kind]:>14}" for count in counts.values()))
    say(f"{'all':<20}" + "".join(f"{count.total():>14}" for count in counts.values()) + "\n")


def report(took: dict[str, list[float]], idle: float) -> None:
    median = {}
    for name, runs in took.items():
        median[name] = statistics.median(runs[1:])
        say(f"{name:<14}" + "".join(f"{run:8.2f}" for run in runs[1:]) + f"   median {median[name]:.2f} s")
    allowed = ALLOWED * median["raw"] + idle
    say(f"\nstart-up of ours (extract of one child from a folder, median of 5): {idle:.2f} s")
    say(f"network and landing of ours (extract - build): {median['ours'] - median['build']:.2f} s")
    say(
        f"ours / raw: {median['ours'] / median['raw']:.2f}; (ours - start-up) / raw: {(median['ours'] - idle) / median['raw']:.2f}"
    )
    say(f"smart-fetch / ours: {median['smart-fetch'] / median['ours']:.2f}")
    say(
        f"allowed: {ALLOWED} x raw + start-up = {allowed:.2f} s: {'kept' if median['ours'] <= allowed else 'NOT kept'} ({median['ours']:.2f} s)"
    )


if __name__ == "__main__":
    main()
