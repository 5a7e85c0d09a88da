"""How long the reports of 1,000 children take, built and verified, and the memory of a ledger of a million rows.

    python tests/bench/reports.py [CHILDREN]

The time is that of building all reports from the cohort's figures and checking every relation between them, without the
start of Python, the reading of records and the writing of files.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engines import cohorts

from crmo_fhir import __version__, landing, pipeline
from crmo_fhir.artifacts import Artifacts
from crmo_fhir.model.parameters import Parameters

LEDGER = 1_000_000


def main() -> None:
    """Measure and print."""
    children = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as name:
        study, records = Path(name) / "study", Path(name) / "records"
        cohorts.write(cohorts.generated(1, 2 * children), records)
        pipeline.extract(str(records), study, Parameters())
        form = pipeline.Form(individual=True)
        account = {
            "published": None,
            "reporter": {"name": "Bench", "reference": None},
            "form": asdict(form),
            "program": __version__,
        }
        raw, artifacts = landing.open_raw(study), Artifacts.load(None)
        cohort = landing.open_cohort(study, raw)
        pipeline._figures(study, raw, cohort, artifacts, account)  # imports and compiles
        begun = time.perf_counter()
        measured, files = pipeline._figures(study, raw, cohort, artifacts, account)
        built = time.perf_counter()
        checked = pipeline._check(raw, files)
        ended = time.perf_counter()
        counted = next(r.n for r in measured.results if r.group == "cohort" and not r.stratifier)
        sys.stdout.write(
            f"{counted} children: built in {built - begun:.2f} s, {checked} relations verified in {ended - built:.2f} s; "
            f"{(ended - begun) / counted * 1000:.2f} s for 1,000\n"
        )
        before = _measured(study)
        _lengthen(study)
        after = _measured(study)
        sys.stdout.write(f"ledger of {LEDGER} rows: peak memory of `measure` {before:.0f} -> {after:.0f} MB\n")


def _measured(study: Path) -> float:
    """The peak memory of `crmo-fhir measure`, in MB."""
    peak = "next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]"
    code = f"from pathlib import Path; from crmo_fhir import pipeline; pipeline.measure(Path({str(study)!r})); print({peak})"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(ran.stdout) / 1024


def _lengthen(study: Path) -> None:
    """Put a million rows into the ledger, and the hashes right."""
    ledger, manifest = study / "raw" / "ledger.csv", study / "raw" / "manifest.json"
    with ledger.open("a", encoding="utf-8") as text:
        text.writelines(f"x{number},Observation,empty,0,\n" for number in range(LEDGER))
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["files"]["ledger.csv"] = {
        "sha256": hashlib.sha256(ledger.read_bytes()).hexdigest(),
        "bytes": ledger.stat().st_size,
    }
    manifest.write_text(landing._sealed(content), encoding="utf-8")
    pipeline.build(study)


if __name__ == "__main__":
    main()
