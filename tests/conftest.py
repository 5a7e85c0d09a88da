"""What every test may use: the program in process, the demonstration as a folder, one finished study."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from crmo_fhir import cli

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


@pytest.fixture
def crmo(capsys, monkeypatch):
    """Run `crmo-fhir ARGS` in process, as the console script would."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["crmo-fhir", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return Ran(int(stopped.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def demo_study(tmp_path_factory) -> Path:
    """The demonstration, extracted and measured once."""
    from crmo_fhir import pipeline

    study = tmp_path_factory.mktemp("demo") / "study"
    pipeline.demo(study)
    return study


def required(what: str) -> bool:
    """Whether this run must not skip `what` (CRMO_FHIR_REQUIRE=hapi,validator; .ci/run sets it)."""
    return what in os.environ.get("CRMO_FHIR_REQUIRE", "").split(",")
