"""Run Validate.java of this folder over FHIR files; its libraries are fetched by Maven on first use."""

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARIES = HERE / "lib"
FETCHED = LIBRARIES / ".complete"
_SUMMARY = re.compile(r"^(?P<file>\S+): (?P<errors>\d+) errors \(\d+ findings need a terminology server\)$")


@dataclass(slots=True)
class Findings:
    """What the validator says of one file: the number of its errors, and errors and warnings as it prints them."""

    errors: int = 0
    lines: list[str] = field(default_factory=list)


def build() -> None:
    """Fetch the libraries unless that was done; about a minute with an empty Maven cache."""
    if not FETCHED.is_file():
        goal = ("dependency:copy-dependencies", f"-DoutputDirectory={LIBRARIES}")
        subprocess.run(["mvn", "-B", "-q", *goal], cwd=HERE, check=True, timeout=1800)
        FETCHED.touch()


def validate(files: Iterable[Path], folders: Iterable[Path], *, r5: bool = False) -> dict[str, Findings]:
    """The findings of each file, by its name. `folders` hold the Measure and Library.

    R4 files are held against the profiles too, R5 files against R5 itself. One run for all files, because the start is what costs. Raises RuntimeError where the run ends before the last file.
    """
    build()
    paths = list(files)
    known = folders if r5 else (HERE / "profiles", *folders)
    options = [*(["-r5"] if r5 else []), *(part for folder in known for part in ("-d", str(folder)))]
    java = ("java", "-Xmx1500m", "-XX:+UseSerialGC", "-Duser.timezone=UTC", "-cp", f"{LIBRARIES}/*")
    ran = subprocess.run(
        [*java, str(HERE / "Validate.java"), *options, *map(str, paths)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=600,
    )
    found: dict[str, Findings] = {}
    current = Findings()
    for line in ran.stdout.splitlines():
        summary = _SUMMARY.match(line)
        if summary is None:
            current.lines.append(line)
        else:
            current.errors = int(summary["errors"])
            found[summary["file"]] = current
            current = Findings()
    expected = 1 if any(findings.errors for findings in found.values()) else 0
    if set(found) != {path.name for path in paths} or ran.returncode != expected:
        raise RuntimeError(f"the validator stopped with exit code {ran.returncode}: {ran.stderr[-2000:]}")
    return found
