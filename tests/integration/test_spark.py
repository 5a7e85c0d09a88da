"""Spark makes of a study the cohort that DuckDB makes: the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import cohorts
import pytest
from support import missing_tools, skip_unless

from crmo_fhir import engine, pipeline
from crmo_fhir.model.parameters import Parameters

pytestmark = pytest.mark.spark


def cohort_of(study: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((study / "cohort").iterdir())}


def test_the_demonstration_built_on_spark(demo_study: Path, tmp_path: Path) -> None:
    skip_unless("spark", "Spark", missing_tools("java"))
    study, elsewhere = tmp_path / "study [1]", tmp_path / "elsewhere"
    shutil.copytree(demo_study, study)
    shutil.rmtree(study / "cohort")
    elsewhere.mkdir()
    command = [sys.executable, "-m", "crmo_fhir", "build", str(study), "--engine", "spark:local[2]"]
    environment = {**os.environ, "TMPDIR": str(elsewhere), "TZ": "Asia/Kathmandu", "LC_ALL": "C"}
    ran = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"cohort built in {study}; next: crmo-fhir measure {study}\n"
    assert cohort_of(study) == cohort_of(demo_study)
    assert [*elsewhere.iterdir()] == []  # no warehouse, no metastore, no log
    assert not (study / ".spill").exists()


def test_an_interrupt_ends_a_build_on_spark_without_a_trace(demo_study: Path, tmp_path: Path) -> None:
    skip_unless("spark", "Spark", missing_tools("java"))
    study = tmp_path / "study"
    shutil.copytree(demo_study, study)
    command = [sys.executable, "-m", "crmo_fhir", "build", str(study), "--engine", "spark:local[2]"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not [*study.glob(".spill/spark-*/blockmgr-*")]:  # Spark has started
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (143, "")
    assert err.strip() == "crmo-fhir: interrupted; run the same command again, it goes on where it was"
    assert cohort_of(study) == cohort_of(demo_study)
    pipeline.verify(study)
    assert not (study / ".spill").exists()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_generated_cohort_built_on_spark(seed: int, spark: engine.Engine, tmp_path: Path, monkeypatch) -> None:
    cohort = cohorts.make(seed)
    cohorts.write(cohort, tmp_path / "records")
    study = tmp_path / "study"
    pipeline.extract(str(tmp_path / "records"), study, Parameters(since=cohort.since, until=cohort.until))
    on_duckdb = cohort_of(study)
    shutil.rmtree(study / "cohort")

    @contextmanager
    def opened(name: str, **_: object):
        assert name == "spark"
        yield spark

    monkeypatch.setattr(engine, "open_engine", opened)  # the one session of this run
    pipeline.build(study, engine="spark")
    assert cohort_of(study) == on_duckdb
