"""Where the tests find things, and what they share."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMONSTRATION = ROOT / "fixtures" / "demonstration"
PRINTED = ROOT / "fixtures" / "published" / "printed.csv"
OUTPUTS = ("results.csv", "statistics.csv", "table1.csv", "measure.json", "measure-report.json")


DRAWN: dict[str, str] = {}
"""Charts that this run of the tests has drawn (`conftest`): most tests look at pages of the same few cohorts."""


@dataclass(frozen=True)
class Ran:
    """How a command ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


def required(what: str) -> bool:
    """Whether this run must not skip `what` (CRMO_FHIR_REQUIRE=hapi,validator; .ci/run sets it)."""
    return what in os.environ.get("CRMO_FHIR_REQUIRE", "").split(",")


def missing_tools(*tools: str) -> list[str]:
    """Those of the tools that this machine has not."""
    return [tool for tool in tools if shutil.which(tool) is None]


def skip_unless(what: str, needs: str, missing: list[str]) -> None:
    """Skip where something is missing, unless this run must not skip `what`."""
    if missing and not required(what):
        pytest.skip(f"{needs} needs {' and '.join(missing)}")
