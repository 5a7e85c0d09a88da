"""Opens the engine that reads NDJSON and runs table expressions: DuckDB, embedded. The only module that knows which."""

import functools
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from crmo_fhir.errors import IncompleteError, UsageError

if TYPE_CHECKING:
    import ibis
    import ibis.expr.datatypes as dt

_MEGABYTE = 1024 * 1024
_RECORDS = "ndjson_records"
_LONGEST_LINES = (16 * _MEGABYTE, 256 * _MEGABYTE)
"""Bytes a line may have; the second is tried where the first does not do. A longer line is an error, never cut."""
_UNREAD = (duckdb.InvalidInputException, duckdb.IOException)
_TOO_LITTLE = "the engine has not the memory it needs; give it more with --memory"
_PLACE = re.compile(r'in file "([^"]+)"(?:[^"]*?in line (\d+))?')


@dataclass(slots=True)
class Engine:
    """One open engine; made by `open_engine`."""

    connection: duckdb.DuckDBPyConnection

    def table(self, columns: Mapping[str, str]) -> "ibis.Table":
        """A table of records with these columns ({name: type in DuckDB's words}), to build expressions on."""
        import ibis

        return ibis.table({column: _data_type(kind) for column, kind in columns.items()}, name=_RECORDS)

    def compile(self, expression: "ibis.Table") -> str:
        """The query of an expression over `table`, to be run over any files."""
        from ibis.backends.sql.compilers import DuckDBCompiler

        return str(DuckDBCompiler().to_sqlglot(expression).sql(dialect="duckdb"))

    def ask(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of a statement in DuckDB's own words, `?` in it standing for the values."""
        try:
            return self.connection.execute(statement, list(values)).fetchall()
        except duckdb.OutOfMemoryException as error:
            raise UsageError(_TOO_LITTLE) from error

    def take_in(self, statement: str, path: Path, columns: Mapping[str, str], *, packed: bool) -> bool:
        """Run a statement over `ndjson_records`, the records of an NDJSON file (`packed`: gzip); from any thread.

        False where the engine cannot read them all with these columns: then nothing was done.
        """
        records = _records([path], columns, _LONGEST_LINES[0], compression="gzip" if packed else "none")
        try:
            with self.connection.cursor() as own:
                own.execute(statement.replace(_RECORDS, f"({records})"))
        except _UNREAD:
            return False
        except duckdb.OutOfMemoryException as error:
            raise UsageError(_TOO_LITTLE) from error
        return True

    def run(self, query: str, paths: Sequence[Path], columns: Mapping[str, str]) -> list[tuple[object, ...]]:
        """The rows of a compiled query over NDJSON files (.gz too), in file order; missing values are None.

        What a record holds beyond `columns` is not read. Raises IncompleteError where a record does not fit, naming
        file and line at most.
        """
        message = ""
        for size in _LONGEST_LINES:
            try:
                whole = f"WITH {_RECORDS} AS ({_records(paths, columns, size)}) SELECT * FROM ({query})"  # noqa: S608
                return self.connection.execute(whole).fetchall()
            except duckdb.OutOfMemoryException as error:
                raise UsageError(_TOO_LITTLE) from error
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

    `threads`, `memory` (such as "4GB", by default half of the machine's) and `temp` bound it: a folder to spill to, which
    is made where it is needed and gone at the end. Raises UsageError for another name.
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
    if temp is not None:
        settings["temp_directory"] = str(temp)
    connection = duckdb.connect(config=settings)
    try:
        connection.execute(
            f"SET memory_limit = {_quoted(memory or '50%')}"
        )  # of what the engine finds, a container's too
        yield Engine(connection)
    finally:
        connection.close()
        if temp is not None:
            shutil.rmtree(temp, ignore_errors=True)


@functools.cache
def _data_type(kind: str) -> "dt.DataType":
    from ibis.backends.sql.datatypes import DuckDBType

    return DuckDBType.from_string(kind)


def _records(paths: Sequence[Path], columns: Mapping[str, str], longest: int, **options: str) -> str:
    files = ", ".join(_quoted(_without_wildcards(str(path))) for path in paths)
    fields = ", ".join(f"{_quoted(column)}: {_quoted(kind)}" for column, kind in columns.items())
    more = "".join(f", {name} = {_quoted(value)}" for name, value in options.items())
    return (
        f"SELECT * FROM read_json([{files}], format = 'newline_delimited', columns = {{{fields}}}, "  # noqa: S608
        f"ignore_errors = false, maximum_object_size = {longest}{more})"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _without_wildcards(path: str) -> str:
    """Escape what DuckDB would read as a pattern."""
    return re.sub(r"[*?\[]", lambda match: f"[{match.group()}]", path)
