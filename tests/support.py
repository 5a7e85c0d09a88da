"""Where the tests find things, and what they share."""

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMONSTRATION = ROOT / "fixtures" / "demonstration"
PRINTED = ROOT / "fixtures" / "published" / "printed.csv"
OUTPUTS = ("results.csv", "table1.csv", "measure.json", "measure-report.json")


@dataclass(frozen=True)
class Ran:
    """How a command ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


def required(what: str) -> bool:
    """Whether this run must not skip `what` (CRMO_FHIR_REQUIRE=hapi,validator; .ci/run sets it)."""
    return what in os.environ.get("CRMO_FHIR_REQUIRE", "").split(",")
