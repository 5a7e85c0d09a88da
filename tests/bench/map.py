"""Finding the children in a population's export: ours beside what reading the same bytes costs in other ways.

    .venv/bin/python tests/bench/map.py [--resources 1000000] [--rounds 5] [--packed] [--view-of PYTHON] [--most 2.0]

Each is a process of its own, one after the other in each round, so that the machine's mood is everybody's; medians, and the
peak of its resident memory (VmHWM). The population (`population.py`) is made in a temporary folder.

    bytes           the files read to their end
    duckdb          a bare typed read by DuckDB of the very columns that ours reads: each counted, nothing else
    orjson          a loop over the lines: parsed, one member looked at
    fhir.resources  a validating model of each line, on a sample, scaled to all (said so)
    reading         ours: hashes, survey and strict reading, to the records of the children (`select_candidates`)
    tables          ours: the same, landed, and the cohort's tables built of them (`pipeline.extract`)
    extract         ours: `crmo-fhir extract`, the whole command, the start of the program and the loading of libraries with it
    view            ours: one view over the files of Observations, compiled and run, its rows in Arrow
    view command    the same by `crmo-fhir view`, the whole command over the folder: every line judged, a Parquet file written
    fhir4ds-v2      the same view by that program, version 0.0.17, over the files of Observations, its rows fetched; in an
                    environment of its own (AGPL: run, never imported here)

Loading libraries counts in `extract` and `view command`, which are whole processes, and not in the others.

`--view-of` names the Python of an environment that has fhir4ds-v2 (and with it orjson); without it one is made with pip in the
temporary folder, and where that is not possible the two are left out, said so. It ends with 1 where `reading` takes more than
`--most` times as long as `duckdb`, a child is lost, or the peak of ours is 2 GiB or more.
"""

import argparse
import importlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import population

GIB = 1024 * 1024  # kilobytes
SAMPLE = 2000
FHIR4DS = "fhir4ds-v2==0.0.17"
VIEW = {
    "resourceType": "ViewDefinition",
    "name": "laboratory",
    "status": "active",
    "resource": "Observation",
    "select": [
        {"column": [{"name": "id", "path": "id"}, {"name": "status", "path": "status"}]},
        {
            "column": [
                {"name": "subject", "path": "subject.reference"},
                {"name": "on", "path": "effective.ofType(dateTime)"},
            ]
        },
        {
            "forEach": "code.coding",
            "column": [{"name": "system", "path": "system"}, {"name": "code", "path": "code"}],
        },
    ],
}


def files_of(folder: Path, kind: str = "") -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.startswith(kind))


def opened(path: Path) -> Any:
    import gzip

    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


# ------------------------------------------------------------------------------------- what is measured, each in a process


def read_bytes(folder: Path) -> int:
    read = 0
    for path in files_of(folder):
        with path.open("rb") as stream:
            while piece := stream.read(1 << 20):
                read += len(piece)
    return read


def read_duckdb(folder: Path) -> int:
    import duckdb

    from crmo_fhir.source.survey import columns_of

    columns = columns_of()
    counted = ", ".join(f'count("{name}")' for name in columns)
    fields = ", ".join(f"'{name}': '{kind}'" for name, kind in columns.items())
    paths = [str(path) for path in files_of(folder)]
    query = (
        f"SELECT count(*), {counted} FROM read_json({paths!r}, format = 'newline_delimited', columns = {{{fields}}})"
    )
    found = duckdb.connect().execute(query).fetchone()
    assert found is not None
    return int(found[0])


def read_orjson(folder: Path) -> int:
    import orjson

    return sum(orjson.loads(line)["resourceType"] != "" for path in files_of(folder) for line in opened(path))


def read_models(folder: Path) -> int:
    from fhir.resources.R4B import get_fhir_model_class

    lines = []
    for kind, each in population.EACH.items():
        with opened(files_of(folder, f"{kind}.")[0]) as stream:
            lines += [next(stream) for _ in range(SAMPLE * each // population.PER_PATIENT)]
    models = {kind: get_fhir_model_class(kind) for kind in population.EACH}
    begun = time.perf_counter()
    for line in lines:
        models[json.loads(line)["resourceType"]].model_validate_json(line)
    return round((time.perf_counter() - begun) / len(lines) * 1e9)  # nanoseconds each


def read_ours(folder: Path) -> int:
    from crmo_fhir.artifacts import Artifacts
    from crmo_fhir.source.files import select_candidates

    artifacts = Artifacts.load()
    pull = select_candidates(folder, artifacts.value_set("crmo"), artifacts.value_set("crmo-text"))
    assert not pull.broken
    return len(pull.records)


def extract(folder: Path) -> int:
    from crmo_fhir import pipeline
    from crmo_fhir.model.parameters import Parameters

    with tempfile.TemporaryDirectory() as into:
        pipeline.extract(str(folder), Path(into) / "study", Parameters())
        raw = json.loads((Path(into) / "study" / "raw" / "manifest.json").read_text())
        assert raw["complete"]
        return sum(path.read_bytes().count(b"\n") for path in (Path(into) / "study" / "raw").glob("[A-Z]*.ndjson"))


def view_ours(folder: Path) -> int:
    from crmo_fhir.engine import open_duckdb
    from crmo_fhir.mapping.query import run_to_tables
    from crmo_fhir.mapping.view import compile_view

    with open_duckdb() as engine:
        files = [(path, None) for path in files_of(folder, "Observation.")]
        return sum(len(table) for table in run_to_tables(engine, compile_view(VIEW), files))


def view_command(folder: Path) -> int:
    from crmo_fhir import pipeline

    with tempfile.TemporaryDirectory() as into:
        view = Path(into) / "view.json"
        view.write_text(json.dumps(VIEW), encoding="utf-8")
        return pipeline.view(str(view), str(folder), Path(into) / "table.parquet").rows


def view_fhir4ds(folder: Path) -> int:
    import fhir4ds  # of its own environment: this process is one of that, not of ours

    connection = fhir4ds.create_connection()
    paths = [str(path) for path in files_of(folder, "Observation.")]
    connection.execute(
        f"CREATE VIEW resources AS SELECT json AS resource, 'Observation' AS resourceType FROM read_ndjson_objects({paths!r})"
    )
    view = {name: value for name, value in VIEW.items() if name != "resourceType"}  # it takes no such member
    return len(connection.execute(fhir4ds.generate_view_sql(json.dumps(view))).fetchall())


MEASURED = {
    "bytes": read_bytes,
    "duckdb": read_duckdb,
    "orjson": read_orjson,
    "fhir.resources": read_models,
    "reading": read_ours,
    "tables": extract,
    "extract": extract,
    "view": view_ours,
    "view command": view_command,
    "fhir4ds-v2": view_fhir4ds,
}
APART = ("orjson", "fhir4ds-v2")
"""What runs in the environment of fhir4ds-v2."""
LIBRARIES = {
    "duckdb": ("duckdb", "crmo_fhir.source.survey"),
    "orjson": ("orjson",),
    "reading": ("duckdb", "numpy", "crmo_fhir.artifacts", "crmo_fhir.source.files"),
    "tables": (
        "numpy",
        "pandas",
        "pyarrow.parquet",
        "crmo_fhir.landing",
        "crmo_fhir.source.files",
        "crmo_fhir.metrics",
    ),
    "view": ("duckdb", "pyarrow", "crmo_fhir.mapping.view"),
    "fhir4ds-v2": ("fhir4ds",),
}
"""What is loaded before the time begins."""
TIMED_AS_A_COMMAND = ("extract", "view command")


def measure(name: str, folder: Path, python: str) -> tuple[float, float, float, int]:
    """Seconds, seconds of the processors, peak gigabytes and what it found; for our commands of the whole process."""
    begun = time.perf_counter()
    command = [python, __file__, "--only", name, "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    took = time.perf_counter() - begun
    if process.returncode:
        raise SystemExit(f"{name} failed")
    seconds, spent, peak, found = json.loads(said)
    whole = name in TIMED_AS_A_COMMAND
    busy = used.ru_utime + used.ru_stime if whole else spent
    return took if whole else seconds, busy, peak / GIB, found


def only(name: str, folder: Path) -> None:
    for library in LIBRARIES.get(name, ()):
        importlib.import_module(library)
    begun, spent = time.perf_counter(), time.process_time()
    found = MEASURED[name](folder)
    took = [time.perf_counter() - begun, time.process_time() - spent]
    # What wait4 says of a child counts the memory of the process that it was forked from.
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    sys.stdout.write(json.dumps([*took, int(peak), found]))


def environment(folder: Path) -> str | None:
    """The Python of an environment with fhir4ds-v2, made for the occasion; None where it cannot be."""
    made = subprocess.run([sys.executable, "-m", "venv", folder], check=False)
    python = str(folder / "bin" / "python")
    if made.returncode or subprocess.run([python, "-m", "pip", "install", "-q", FHIR4DS], check=False).returncode:
        return None
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resources", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packed", action="store_true", help="gzip files")
    parser.add_argument("--view-of", metavar="PYTHON")
    parser.add_argument("--without", default="", help="what to leave out, with commas")
    parser.add_argument("--most", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, help="a population made before, or to be kept")
    parser.add_argument("--only", choices=MEASURED, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        only(given.only, given.folder)
        return
    with tempfile.TemporaryDirectory(prefix="crmo-map-") as temporary:
        folder = given.folder or Path(temporary) / "population"
        if not folder.is_dir():
            population.write(folder, given.resources, packed=given.packed)
        size = sum(path.stat().st_size for path in folder.iterdir())
        apart = given.view_of or environment(Path(temporary) / "fhir4ds")
        pythons = {name: apart if name in APART else sys.executable for name in MEASURED}
        names = [name for name in MEASURED if pythons[name] and name not in given.without.split(",")]
        took, busy, peaks, found = defaultdict(list), defaultdict(list), defaultdict(list), {}
        for _ in range(given.rounds):
            for name in names:
                seconds, spent, peak, found[name] = measure(name, folder, str(pythons[name]))
                took[name].append(seconds)
                busy[name].append(spent)
                peaks[name].append(peak)
    medians = {name: statistics.median(took[name]) for name in names}
    if "fhir.resources" in medians:
        each = found["fhir.resources"] / 1e9
        medians["fhir.resources"] = each * given.resources
    expected = population.children(given.resources) * population.PER_PATIENT
    sys.stdout.write(
        f"{given.resources} resources, {size / 1e6:.0f} MB{' of gzip' if given.packed else ''}, "
        f"{population.children(given.resources)} children; {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}, median of {given.rounds}\n"
    )
    for name in names:
        scaled = f"  (scaled from {SAMPLE} resources)" if name == "fhir.resources" else ""
        sys.stdout.write(
            f"{name:<15}{medians[name]:>9.2f} s {medians[name] / medians['duckdb']:>8.2f} x duckdb"
            f"{statistics.median(busy[name]):>9.2f} s of processors{max(peaks[name]):>8.2f} GiB at most{scaled}\n"
        )
    if apart is None:
        sys.stdout.write(f"{FHIR4DS} cannot be installed here: left out, and orjson with it\n")
    elif "fhir4ds-v2" in names:
        assert found["fhir4ds-v2"] == found["view"]
        for name in ("view", "view command"):
            sys.stdout.write(f"{name}: {medians['fhir4ds-v2'] / medians[name]:.1f} times as fast as {FHIR4DS}\n")
    lost = any(found[name] != expected for name in ("reading", "tables", "extract"))
    raise SystemExit(
        lost
        or medians["reading"] > given.most * medians["duckdb"]
        or max(peaks["reading"] + peaks["tables"] + peaks["extract"] + peaks["view command"]) >= 2
    )


if __name__ == "__main__":
    main()
