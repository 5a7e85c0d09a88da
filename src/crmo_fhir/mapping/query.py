"""Views ready to run: the shipped ones as queries compiled ahead, any other compiled when it is met.

Compiling all shipped views takes longer than running them over a hospital's candidates, so `queries.json` holds their
queries for DuckDB, each under the SHA-256 of its view; `tests/unit/test_queries.py` compiles them anew and compares. A view a site
changed has another hash and is compiled.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from crmo_fhir.engine import Engine

if TYPE_CHECKING:
    import pyarrow as pa


class Runnable(Protocol):
    """A view that can be run: its columns in order, which of them are collections, and what is read of each record."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names in the order of the result."""

    @property
    def collections(self) -> frozenset[int]:
        """Places of the columns whose values are lists."""

    @property
    def schema(self) -> Mapping[str, str]:
        """Column and type of what is read of each record."""

    @property
    def uses_base(self) -> bool:
        """Whether the query depends on the service base of the records."""

    def query(self, engine: Engine, base: str | None) -> str:
        """The query for records under `base`."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """A shipped view with its query."""

    columns: tuple[str, ...]
    collections: frozenset[int]
    schema: Mapping[str, str]
    text: str
    uses_base: bool = False

    def query(self, engine: Engine, base: str | None) -> str:
        """The query; shipped views ask for no reference key, so it is the same for every base."""
        del engine, base
        return self.text


def open_view(view: Mapping[str, Any], engine: Engine) -> Runnable:
    """Give a ViewDefinition ready to run on the engine. Raises UsageError where it cannot be compiled."""
    shipped = _shipped().get(digest_of(view)) if engine.dialect == "duckdb" else None
    if shipped is not None:
        columns, collections = tuple(shipped["columns"]), frozenset(shipped["collections"])
        return Shipped(columns, collections, shipped["schema"], shipped["query"])
    from crmo_fhir.mapping.view import compile_view

    return compile_view(view)


def run_by_base(
    engine: Engine, view: Runnable, files: Sequence[tuple[Path, str | None]]
) -> Iterator[tuple[str | None, list[tuple[object, ...]]]]:
    """The rows of a view over NDJSON files, as tuples, so many at a time, the files of one base after the other.

    Missing values are None, missing collections empty. Raises IncompleteError for a record that does not fit FHIR.
    """
    for base, paths, query in _queries(engine, view, files):
        for rows in engine.run(query, paths, view.schema):
            yield base, [_with_lists(row, view.collections) for row in rows] if view.collections else rows


def run_to_tables(engine: Engine, view: Runnable, files: Sequence[tuple[Path, str | None]]) -> "Iterator[pa.Table]":
    """The same rows in Arrow tables, whose columns are in the order of the view's; missing collections are null."""
    for _, paths, query in _queries(engine, view, files):
        yield from engine.tables(query, paths, view.schema)


def _queries(
    engine: Engine, view: Runnable, files: Sequence[tuple[Path, str | None]]
) -> Iterator[tuple[str | None, list[Path], str]]:
    """Each run of files of one base, with the query for it."""
    queries: dict[str | None, str] = {}
    for base, paths in _by_base(files):
        known = base if view.uses_base else None
        if known not in queries:
            queries[known] = view.query(engine, known)
        yield base, paths, queries[known]


def _with_lists(row: tuple[object, ...], collections: frozenset[int]) -> tuple[object, ...]:
    return tuple([] if value is None and place in collections else value for place, value in enumerate(row))


def digest_of(view: Mapping[str, Any]) -> str:
    """The SHA-256 of a view in canonical JSON."""
    return hashlib.sha256(json.dumps(view, sort_keys=True).encode()).hexdigest()


@functools.cache
def _shipped() -> dict[str, Any]:
    text = package_files("crmo_fhir.mapping").joinpath("queries.json").read_text(encoding="utf-8")
    shipped: dict[str, Any] = json.loads(text)
    return shipped


def _by_base(files: Sequence[tuple[Path, str | None]]) -> list[tuple[str | None, list[Path]]]:
    """Group the files in runs of one base, in their order."""
    runs: list[tuple[str | None, list[Path]]] = []
    for path, base in files:
        if runs and runs[-1][0] == base:
            runs[-1][1].append(path)
        else:
            runs.append((base, [path]))
    return runs
