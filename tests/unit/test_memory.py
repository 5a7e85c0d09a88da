"""What the engine may take of the machine, and that what it spills does not outlive it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from crmo_fhir import engine, pipeline
from crmo_fhir.cli import cli
from crmo_fhir.engine import open_duckdb
from crmo_fhir.errors import UsageError
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.source import survey

LARGE = "CREATE TABLE large AS SELECT hash(range) AS a, hash(range + 1) AS b FROM range(6_000_000)"


def limit(memory: str | None = None) -> str:
    with open_duckdb(memory=memory) as engine:
        ((found,),) = engine.ask("SELECT current_setting('memory_limit')")
    return str(found)


def test_half_of_the_machine_is_the_limit_unless_another_is_given() -> None:
    assert limit() == limit("50%")
    assert limit("2GiB") == "2.0 GiB"


def test_what_memory_does_not_hold_is_spilled_and_gone_at_the_end(tmp_path: Path) -> None:
    spill = tmp_path / "spill"
    with open_duckdb(memory="60MB", temp=spill) as engine:
        engine.ask(LARGE)
        assert sum(path.stat().st_size for path in spill.rglob("*") if path.is_file()) > 10_000_000
        assert engine.ask("SELECT count(DISTINCT a) FROM large WHERE b % 1000 = 0")[0][0] > 0
    assert not spill.exists()


def fail_with(spill: Path) -> None:
    with open_duckdb(memory="60MB", temp=spill) as engine:
        engine.ask(LARGE)
        assert spill.exists()
        raise RuntimeError("in the middle")


def test_nothing_spilled_stays_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="in the middle"):
        fail_with(tmp_path / "spill")
    assert not (tmp_path / "spill").exists()


def test_too_little_memory_is_said(tmp_path: Path) -> None:
    with open_duckdb(memory="5MB", temp=tmp_path / "spill") as engine, pytest.raises(UsageError, match="--memory"):
        engine.ask("SELECT list(a ORDER BY b) FROM (SELECT range AS a, hash(range) AS b FROM range(3_000_000))")


def folder_of(path: Path) -> Path:
    path.mkdir()
    made = [
        {"resourceType": "Patient", "id": "p", "birthDate": "2000-01-01"},
        {
            "resourceType": "Condition",
            "id": "c",
            "subject": {"reference": "Patient/p"},
            "code": {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10", "code": "M86.3"}]},
            "recordedDate": "2010-01-01",
        },
    ]
    (path / "all.ndjson").write_text("\n".join(map(json.dumps, made)))
    return path


def test_a_study_holds_nothing_of_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SURVEYED_FROM", 0)
    study = tmp_path / "study"
    pipeline.extract(str(folder_of(tmp_path / "in")), study, Parameters(), how=pipeline.How(memory="300MB"))
    (study / ".spill").mkdir()  # what a run that was killed left
    (study / ".spill" / "left").write_bytes(b"x")
    pipeline.build(study, memory="300MB")
    assert sorted(entry.name for entry in study.iterdir()) == [".lock", "cohort", "raw"]


@pytest.mark.parametrize("given", ["4", "4 bytes", "-1GB", "GB", "1GB'; --", "٤GB"])
def test_an_amount_that_is_none_is_one_line(tmp_path: Path, given: str) -> None:
    result = CliRunner().invoke(cli, ["build", str(tmp_path), "--memory", given])
    assert isinstance(result.exception, UsageError)
    assert "--memory" in str(result.exception)


def test_a_line_that_needs_more_room_gives_no_row_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine has answered with the first rows by the time it meets the line, and is asked anew."""
    monkeypatch.setattr(engine, "_ROWS_AT_A_TIME", 1000)
    ids = [f"p{number:06}" for number in range(400_000)]
    lines = [json.dumps({"id": one, "more": "x" * 100}) for one in ids]
    lines[-1000] = json.dumps({"id": ids[-1000], "more": "x" * (33 << 20)})
    (tmp_path / "a.ndjson").write_text("\n".join(lines), encoding="utf-8")
    tries = []
    read_json = engine._read_json
    monkeypatch.setattr(engine, "_read_json", lambda *given, **more: tries.append(given) or read_json(*given, **more))
    with open_duckdb(threads=1) as duckdb:
        parts = [*duckdb.run("SELECT id FROM ndjson_records", [tmp_path / "a.ndjson"], {"id": "VARCHAR"})]
        assert [one for part in parts for (one,) in part] == ids
        assert len(tries) == 2
        tables = duckdb.tables("SELECT id FROM ndjson_records", [tmp_path / "a.ndjson"], {"id": "VARCHAR"})
        assert [one for table in tables for one in table["id"].to_pylist()] == ids
