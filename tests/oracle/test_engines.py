"""DuckDB = Spark = plain Python: our own views, and some with every construct, over random records.

`CRMO_FHIR_ORACLE_SEEDS=20` tries that many draws of each.
"""

import itertools
import json
import os
import random
from collections import Counter
from pathlib import Path

import plain_views
import pytest
from random_records import draw_record, read_names, spoiled

from crmo_fhir.artifacts import Artifacts
from crmo_fhir.engine import Engine
from crmo_fhir.mapping.schema import find_misfit
from crmo_fhir.mapping.view import compile_view, run_view
from crmo_fhir.source import survey
from crmo_fhir.source.selection import malformed
from crmo_fhir.source.whole import Gathered, Narrow, gather

SEEDS = range(int(os.environ.get("CRMO_FHIR_ORACLE_SEEDS", "1")))
RECORDS = 150
SHIPPED = Artifacts.load().views()
NAMES = [
    {"name": "family", "path": "family"},
    {"name": "given", "path": "given", "collection": True},
    {"name": "joined", "path": "given.join('+')"},
]
CONSTRUCTS: dict[str, dict] = {
    "iterations": {
        "resource": "Patient",
        "where": [{"path": "active or name.exists()"}],
        "select": [
            {"column": [{"name": "key", "path": "getResourceKey()"}, {"name": "born", "path": "birthDate"}]},
            {"forEachOrNull": "name", "column": [*NAMES, {"name": "row", "path": "%rowIndex"}]},
            {
                "forEach": "contact",
                "column": [{"name": "contact_row", "path": "%rowIndex"}, {"name": "sex", "path": "gender"}],
                "select": [
                    {"forEachOrNull": "telecom.where(system.exists())", "column": [{"name": "t", "path": "value"}]}
                ],
            },
        ],
    },
    "union": {
        "resource": "Patient",
        "select": [
            {"column": [{"name": "id", "path": "id"}]},
            {
                "unionAll": [
                    {
                        "forEach": "name",
                        "column": [{"name": "what", "path": "use"}, {"name": "n", "path": "%rowIndex"}],
                    },
                    {
                        "forEachOrNull": "telecom[1]",
                        "column": [{"name": "what", "path": "system"}, {"name": "n", "path": "%rowIndex"}],
                    },
                    {"column": [{"name": "what", "path": "gender"}, {"name": "n", "path": "%rowIndex"}]},
                ]
            },
        ],
    },
    "logic": {
        "resource": "Patient",
        "select": [
            {
                "column": [
                    {"name": "a", "path": "active and deceased.ofType(boolean)"},
                    {"name": "b", "path": "active or deceased.ofType(boolean).not()"},
                    {"name": "c", "path": "gender = 'final'"},
                    {"name": "d", "path": "gender != 'final' and name.empty()"},
                    {"name": "e", "path": "multipleBirth.ofType(integer) + 2 * 3"},
                    {"name": "f", "path": "multipleBirth.ofType(integer) > 2"},
                    {"name": "g", "path": "name.where(use = 'usual' and given.exists()).first().given[1]"},
                    {"name": "h", "path": "gender & '-' & name.first().family"},
                    {"name": "i", "path": "name.exists(family = '')"},
                    {"name": "j", "path": "name.period.start", "collection": True},
                    {"name": "k", "path": "{}"},
                ]
            }
        ],
    },
    "extensions": {
        "resource": "Patient",
        "select": [
            {
                "column": [
                    {"name": "own", "path": "extension('http://loinc.org').value.ofType(code).first()"},
                    {"name": "hour", "path": "birthDate.extension('http://loinc.org').value.ofType(dateTime).first()"},
                    {"name": "any", "path": "birthDate.extension('official').exists()"},
                ]
            }
        ],
    },
    "references": {
        "resource": "Observation",
        "select": [
            {
                "column": [
                    {"name": "key", "path": "subject.getReferenceKey()"},
                    {"name": "patient", "path": "subject.getReferenceKey(Patient)"},
                    {"name": "from", "path": "derivedFrom.getReferenceKey()", "collection": True},
                    {"name": "value", "path": "value.ofType(Quantity).value"},
                    {"name": "more", "path": "value.ofType(Quantity).value > 1"},
                    {"name": "sum", "path": "value.ofType(integer) * 2 - 1"},
                    {"name": "components", "path": "component.value.ofType(Quantity).value", "collection": True},
                ]
            },
            {"forEachOrNull": "contained.ofType(Patient)", "column": [{"name": "inside", "path": "id"}]},
        ],
    },
    "repeat": {
        "resource": "QuestionnaireResponse",
        "select": [
            {"column": [{"name": "key", "path": "getResourceKey()"}]},
            {"repeat": ["item", "answer.item"], "column": [{"name": "text", "path": "text"}]},
        ],
    },
}
VIEWS = {**SHIPPED, **CONSTRUCTS}


def drawn(name: str, seed: int) -> tuple[list[dict], list[dict]]:
    """Records that the view reads, and how each is written in the source: some are spoiled there."""
    view, rng = VIEWS[name], random.Random(f"{name} {seed}")
    names = read_names(dict(compile_view(view).schema))
    if name == "repeat":
        names["item"] = {"text": {}, "item": {"text": {}, "answer": {"item": {"text": {}}}, "item": {"text": {}}}}
    endless = (draw_record(rng, view["resource"], names, number) for number in itertools.count())
    records = [*itertools.islice((each for each in endless if not malformed(view["resource"], each)), RECORDS)]
    return records, [(spoiled(rng, record) if rng.random() < 0.1 else None) or record for record in records]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_gives_the_rows_that_plain_python_gives(
    name: str, seed: int, any_engine: Engine, tmp_path: Path
) -> None:
    view = VIEWS[name]
    records, written = drawn(name, seed)
    source = tmp_path / "source.ndjson"
    source.write_text("".join(f"{json.dumps(record)}\n" for record in written), encoding="utf-8")
    kept = [record for record, shown in zip(records, written, strict=True) if record is shown]
    gathered = gathered_for(view, source, tmp_path / "temp")
    assert gathered.count == len(kept)
    assert gathered.count + len(gathered.broken) == RECORDS
    expected = plain_views.rows(view, kept)
    compiled = compile_view(view)
    found = run_view(any_engine, compiled, gathered.files).to_dict("records")
    assert found == [{key: as_shown(value, compiled.kinds[key]) for key, value in row.items()} for row in expected]


def gathered_for(view: dict, source: Path, folder: Path, judged: list[str] | None = None) -> Gathered:
    kind, compiled = view["resource"], compile_view(view)

    def misfit(record: dict) -> str | None:
        if judged is not None:
            judged.append(record["id"])
        return find_misfit(record, kind)

    folder.mkdir()
    return gather(source, kind, folder, misfit, Narrow(compiled.told, compiled.fits))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_engine_is_sure_of_a_record_only_where_it_has_no_fault(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each record in a file of its own, of which the engine is sure or not; then in the strict way alone."""
    faults, judged = 0, Counter[int]()
    for name, view in VIEWS.items():
        source = tmp_path / name
        source.mkdir()
        for number, record in enumerate(drawn(name, seed)[1][:60]):
            (source / f"{number:03}.ndjson").write_text(f"{json.dumps(record)}\n", encoding="utf-8")
        found = []
        for least in (0, 1 << 60):
            monkeypatch.setattr(survey, "SURVEYED_FROM", least)
            one_by_one: list[str] = []
            found.append(gathered_for(view, source, tmp_path / f"{name}-{least}", one_by_one))
            judged[least] += len(one_by_one)
        assert (found[0].count, found[0].broken) == (found[1].count, found[1].broken), name
        assert [path.name for path, _ in found[0].files] == [path.name for path, _ in found[1].files]
        faults += len(found[0].broken)
    assert faults > 100
    assert judged[0] < judged[1 << 60] / 2


def as_shown(value: object, kind: str) -> object:
    """A decimal that is read from a record comes as text."""
    if isinstance(value, list):
        return [as_shown(each, kind) for each in value]
    return repr(value) if kind == "text" and type(value) in (int, float) else value


def test_the_records_reach_what_they_are_drawn_for() -> None:
    filled, empty, broken = 0, 0, 0
    for name, view in VIEWS.items():
        records, written = drawn(name, 0)
        rows = plain_views.rows(view, records)
        cells = [value for row in rows for value in row.values()]
        filled += sum(value not in (None, []) for value in cells)
        empty += sum(value in (None, []) for value in cells)
        broken += sum(record is not shown for record, shown in zip(records, written, strict=True))
        unseen = [key for key in (rows[0] if rows else ()) if all(row[key] in (None, []) for row in rows)]
        assert len(unseen) <= len(rows[0]) // 4, (name, unseen)
    assert filled > 5000
    assert empty > 5000
    assert broken > 100
