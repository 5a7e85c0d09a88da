"""The queries compiled ahead are those of the shipped views, always.

`python tests/unit/test_queries.py` writes them anew (after a change of a view, of the compiler, or of Ibis).
"""

import json
from pathlib import Path
from unittest.mock import Mock

from crmo_fhir.artifacts import Artifacts
from crmo_fhir.engine import open_engine
from crmo_fhir.mapping.query import Shipped, digest_of, open_view
from crmo_fhir.mapping.view import CompiledView, compile_view

QUERIES = Path(__file__).resolve().parents[2] / "src" / "crmo_fhir" / "mapping" / "queries.json"


def compiled_anew() -> str:
    queries = {}
    with open_engine() as engine:
        for view in Artifacts.load().views().values():
            compiled = compile_view(view)
            assert not compiled.uses_base
            queries[digest_of(view)] = {
                "name": view["name"],
                "columns": compiled.columns,
                "collections": sorted(compiled.collections),
                "schema": compiled.schema,
                "query": compiled.query(engine, None),
            }
    ordered = dict(sorted(queries.items(), key=lambda item: item[1]["name"]))
    return json.dumps(ordered, indent=1) + "\n"


def test_the_queries_compiled_ahead_have_not_drifted():
    assert QUERIES.read_text(encoding="utf-8") == compiled_anew(), "run: python tests/unit/test_queries.py"


def test_a_changed_view_is_compiled(duck):
    view = Artifacts.load().view("patient")
    assert isinstance(open_view(view, duck), Shipped)
    assert isinstance(open_view({**view, "description": "another"}, duck), CompiledView)


def test_the_queries_compiled_ahead_are_for_duckdb_alone():
    view, spark = Artifacts.load().view("patient"), Mock(dialect="spark")
    assert isinstance(open_view(view, spark), CompiledView)


if __name__ == "__main__":
    QUERIES.write_text(compiled_anew(), encoding="utf-8")
