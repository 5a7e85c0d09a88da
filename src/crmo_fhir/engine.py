"""Opens the engine that reads NDJSON and runs table expressions: DuckDB, embedded. The only module that knows which."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import ibis
import ibis.expr.datatypes as dt
import ibis.expr.operations as ops
import pandas as pd
from ibis.backends.sql.compilers import DuckDBCompiler
from ibis.backends.sql.datatypes import DuckDBType

from crmo_fhir.errors import IncompleteError, UsageError

_MEGABYTE = 1024 * 1024
_LONGEST_LINES = (16 * _MEGABYTE, 256 * _MEGABYTE)
"""Bytes a line may have; the second is tried where the first does not do. A longer line is an error, never cut."""
_PLACE = re.compile(r'in file "([^"]+)"(?:[^"]*?in line (\d+))?')


@dataclass(slots=True)
class Engine:
    """One open engine; made by `open_engine`."""

    connection: duckdb.DuckDBPyConnection
    compiler: DuckDBCompiler = field(default_factory=DuckDBCompiler)
    sources: dict[str, str] = field(default_factory=dict)

    def read_ndjson(self, paths: Sequence[Path], columns: Mapping[str, str]) -> ibis.Table:
        """Give NDJSON files (.gz too) as one table of `columns` ({name: type in DuckDB's words}), in file order.

        What a record holds beyond the columns is not read; a value that does not fit its type is an error when read.
        """
        name = f"ndjson_{len(self.sources) + 1}"
        files = ", ".join(_quoted(_without_wildcards(str(path))) for path in paths)
        fields = ", ".join(f"{_quoted(column)}: {_quoted(kind)}" for column, kind in columns.items())
        self.sources[name] = (
            f"SELECT * FROM read_json([{files}], format = 'newline_delimited', columns = {{{fields}}}, "  # noqa: S608
            "ignore_errors = false"
        )
        schema = {column: _data_type(kind) for column, kind in columns.items()}
        return ibis.table(schema, name=name)

    def to_pandas(self, expression: ibis.Table) -> pd.DataFrame:
        """Run a table expression; every column has dtype object, missing values are None.

        Raises IncompleteError where a record does not fit, naming file and line at most.
        """
        used = sorted({node.name for node in expression.op().find(ops.UnboundTable)})
        query = self.compiler.to_sqlglot(expression).sql(dialect="duckdb")
        rows = self._rows(used, query)
        names = list(expression.columns)
        values = zip(*rows, strict=True) if rows else ([] for _ in names)
        series = {index: pd.Series(list(column), dtype=object) for index, column in enumerate(values)}
        frame = pd.DataFrame(series)
        frame.columns = pd.Index(names, dtype=object)
        return frame

    def _rows(self, used: list[str], query: str) -> list[tuple[object, ...]]:
        message = ""
        for size in _LONGEST_LINES:
            limit = f", maximum_object_size = {size})"
            sources = ", ".join(f'"{name}" AS ({self.sources[name]}{limit})' for name in used)
            try:
                return self.connection.execute(f"WITH {sources} SELECT * FROM ({query})").fetchall()  # noqa: S608
            except duckdb.Error as error:
                message = str(error)
            if "maximum_object_size" not in message:
                break
        if several := re.search(r"\[crmo-fhir: ([^\]]*)\]", message):
            raise IncompleteError(several.group(1))
        place = _PLACE.search(message)
        if place and "Malformed JSON" in message:
            raise IncompleteError(f"a line of {place.group(1)} is no JSON; get the file from its source again")
        where = f" in {place.group(1)}" + (f", line {place.group(2)}" if place.group(2) else "") if place else ""
        raise IncompleteError(f"a record{where} does not have the shape FHIR gives it; correct it at its source")


@contextmanager
def open_engine(
    name: str = "duckdb", threads: int | None = None, memory: str | None = None, temp: Path | None = None
) -> Iterator[Engine]:
    """Open an engine for the length of a `with`; it needs no network and depends on no time zone or locale.

    `threads`, `memory` (such as "4GB") and `temp` (a folder to spill to) bound it. Raises UsageError for another name.
    """
    if name != "duckdb":
        raise UsageError(f"the engine {name} is not there; use duckdb")
    settings: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "preserve_insertion_order": "true",
    }
    if threads is not None:
        settings["threads"] = str(threads)
    if memory is not None:
        settings["memory_limit"] = memory
    if temp is not None:
        settings["temp_directory"] = str(temp)
    connection = duckdb.connect(config=settings)
    try:
        yield Engine(connection)
    finally:
        connection.close()


@functools.cache
def _data_type(kind: str) -> dt.DataType:
    return DuckDBType.from_string(kind)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _without_wildcards(path: str) -> str:
    """Escape what DuckDB would read as a pattern."""
    return re.sub(r"[*?\[]", lambda match: f"[{match.group()}]", path)
