"""The option --engine: what it takes, and what it says where Spark is not there."""

import sys

import pytest
from support import DEMONSTRATION


@pytest.mark.parametrize("command", ["extract", "build"])
def test_spark_that_is_not_installed_is_one_line_before_anything_is_read(command, crmo, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark", None)
    where = (DEMONSTRATION, "-o", tmp_path / "study") if command == "extract" else (tmp_path / "study",)
    ran = crmo(command, *where, "--engine", "spark")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "crmo-fhir: Spark is not installed; install it with: pip install 'crmo-fhir[spark]'\n"
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("name", ["oracle", "spark:", "spark:yarn", "local[0]", "spark://", ""])
def test_an_engine_that_is_not_there(name, crmo, tmp_path):
    ran = crmo("build", tmp_path, "--engine", name)
    assert ran.code == 2
    assert ran.err == (
        f"crmo-fhir: the engine {name} is not there; use duckdb, spark, spark:local[2] or spark://HOST:PORT\n"
    ).replace("  ", " ")


def test_java_that_is_not_there(crmo, tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = crmo("build", tmp_path, "--engine", "spark")
    assert (ran.code, ran.err) == (
        2,
        "crmo-fhir: Spark does not start; it needs Java 17 or newer, on the path or in JAVA_HOME\n",
    )
