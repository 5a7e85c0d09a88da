"""Opens the engine that reads NDJSON and runs table expressions: DuckDB, embedded, or Spark. The only module that knows which.

Both run the same Ibis expression. Where the two differ in what JSON, an array or a number is, their compilers below say so.
"""

import functools
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol, TypeVar, cast

import duckdb

from crmo_fhir.errors import IncompleteError, NetworkError, UsageError

if TYPE_CHECKING:
    import ibis
    import ibis.expr.datatypes as dt
    import pyarrow as pa
    from pyspark.sql import SparkSession

_Part = TypeVar("_Part")
_MEGABYTE = 1024 * 1024
_RECORDS = "ndjson_records"
_LONGEST_LINES = (16 * _MEGABYTE, 256 * _MEGABYTE)
"""Bytes a line may have; the second is tried where the first does not do. A longer line is an error, never cut."""
_ROWS_AT_A_TIME = 50_000
_UNREAD = (duckdb.InvalidInputException, duckdb.IOException)
_TOO_LITTLE = "the engine has not the memory it needs; give it more with --memory"
_PLACE = re.compile(r'in file "([^"]+)"(?:[^"]*?in line (\d+))?')
_STOP = re.compile(r"\[crmo-fhir: ([^\]]*)\]")
_NO_RECORD = "[crmo-fhir] no record"
_FILES_AT_A_TIME = 100
"""Spark plans each file by itself, and a plan of thousands takes longer than reading them."""
_END = '{"resourceType":"$"}'
"""Stands after each line while Spark reads it: whoever does not meet it has not read the line to its end."""
_MISFITS = ("MALFORMED_RECORD_IN_PARSING", "INVALID_UTF8_STRING", _NO_RECORD)
_NOT_INSTALLED = "Spark is not installed; install it with: pip install 'crmo-fhir[spark]'"
_NO_JAVA = "Spark does not start; it needs Java 17 or newer, on the path or in JAVA_HOME"
_MASTER = re.compile(r"(?:spark:)?(local|local\[(?:\*|[1-9]\d*)\]|spark://\S+)")
_ODD_NAME = re.compile(r"^[_.]|[\\:]")
_SHORTEST_DECIMAL = r"""
    get(transform(array(:arg), number -> CASE
        WHEN NOT number RLIKE '^-?[0-9][.][0-9]+E-?[0-9]+$' THEN number
        WHEN abs(CAST(number AS DOUBLE)) BETWEEN 1E-4D AND 9.999999999999998E15D
        THEN regexp_replace(CAST(CAST(number AS DECIMAL(38, 20)) AS STRING), '([.][0-9]+?)0+$', '$1')
        ELSE concat(
            regexp_replace(substring_index(number, 'E', 1), '[.]0$', ''),
            IF(number RLIKE 'E-', 'e-', 'e+'),
            regexp_replace(regexp_extract(number, '([0-9]+)$', 1), '^([0-9])$', '0$1'))
        END), 0)
"""
"""Spark shows the number 0.0001 as 1.0E-4, DuckDB as 0.0001, and 0.00001 as 1e-05."""
_CONDITION = re.compile(r"\[([A-Z][A-Z0-9_.]+)\]")


class Engine(Protocol):
    """One open engine; made by `open_engine`."""

    @property
    def dialect(self) -> str:
        """The SQL it speaks: "duckdb" or "spark"."""

    def table(self, columns: Mapping[str, str]) -> "ibis.Table":
        """A table of records with these columns ({name: type in DuckDB's words}), to build expressions on."""

    def compile(self, expression: "ibis.Table") -> str:
        """The query of an expression over `table`, to be run over any files."""

    def run(self, query: str, paths: Sequence[Path], columns: Mapping[str, str]) -> Iterator[list[tuple[object, ...]]]:
        """The rows of a compiled query over NDJSON files (.gz too), so many at a time, in the order of files and lines.

        Missing values are None; what a record holds beyond `columns` is not read. Raises IncompleteError where a record
        does not fit, naming file and line at most.
        """

    def tables(self, query: str, paths: Sequence[Path], columns: Mapping[str, str]) -> "Iterator[pa.Table]":
        """The same rows in Arrow tables, for where they are many: nothing of them passes through Python."""


@contextmanager
def open_engine(name: str = "duckdb", memory: str | None = None, temp: Path | None = None) -> Iterator[Engine]:
    """Open an engine for the length of a `with`; it needs no network and depends on no time zone or locale.

    `name` is "duckdb", "spark" (all cores of this machine), "spark:local[2]" (so many) or "spark://HOST:PORT" (a
    cluster, whose workers see the files under the same paths). `memory` (such as "4GB", by default half of the machine's)
    and `temp` bound it: a folder to spill to, which is made where it is needed and gone at the end. Raises UsageError for
    another name, and where Spark is not installed or does not start.
    """
    master = _master_of(name)
    if master is None:
        with open_duckdb(memory=memory, temp=temp) as duck:
            yield duck
    else:
        with _spilling(temp), _open_spark(master, memory, temp) as spark:
            yield spark


@contextmanager
def _spilling(temp: Path | None) -> Iterator[None]:
    """A folder to spill to, there for the length of a `with`."""
    if temp is not None:
        temp.mkdir(mode=0o700, exist_ok=True)
    try:
        yield
    finally:
        if temp is not None:
            shutil.rmtree(temp, ignore_errors=True)


def check_engine(name: str) -> None:
    """Raise what `open_engine` would for an engine that is not there, at no cost: before anything is read or fetched."""
    if _master_of(name) is None:
        return
    if find_spec("pyspark") is None:
        raise UsageError(_NOT_INSTALLED)
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        raise UsageError(_NO_JAVA)


def _master_of(name: str) -> str | None:
    """The master of Spark that a name means; None for DuckDB."""
    if name == "duckdb":
        return None
    if name == "spark":
        return "local[*]"
    if (match := _MASTER.fullmatch(name)) is None:
        raise UsageError(f"the engine {name} is not there; use duckdb, spark, spark:local[2] or spark://HOST:PORT")
    return match[1]


# --- DuckDB --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DuckDB:
    """DuckDB in this process."""

    connection: duckdb.DuckDBPyConnection
    dialect: str = "duckdb"

    def table(self, columns: Mapping[str, str]) -> "ibis.Table":
        """Give `Engine.table`."""
        return _table(columns)

    def compile(self, expression: "ibis.Table") -> str:
        """Give `Engine.compile`."""
        return str(_duckdb_compiler().to_sqlglot(expression).sql(dialect="duckdb"))

    def ask(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of a statement in DuckDB's own words, `?` in it standing for the values."""
        try:
            return self.connection.execute(statement, list(values)).fetchall()
        except duckdb.OutOfMemoryException as error:
            raise UsageError(_TOO_LITTLE) from error

    def take_in(
        self, statement: str, paths: Sequence[Path], columns: Mapping[str, str], *, packed: bool
    ) -> list[tuple[Any, ...]] | None:
        """Run a statement over `ndjson_records`, the records of NDJSON files (`packed`: gzip); from any thread.

        Their `file_index` is the place of their file among the paths. None where the engine cannot read them all with these
        columns: then nothing was done.
        """
        records = _read_json(paths, columns, _LONGEST_LINES[0], compression="gzip" if packed else "none")
        whole = statement.replace(_RECORDS, f"(SELECT *, file_index FROM {records})")  # noqa: S608
        try:
            with self.connection.cursor() as own:
                return own.execute(whole).fetchall()
        except _UNREAD:
            return None
        except duckdb.OutOfMemoryException as error:
            raise UsageError(_TOO_LITTLE) from error

    def run(self, query: str, paths: Sequence[Path], columns: Mapping[str, str]) -> Iterator[list[tuple[object, ...]]]:
        """Give `Engine.run`."""

        def parts(whole: str) -> Iterator[list[tuple[object, ...]]]:
            found = self.connection.execute(whole)
            while rows := found.fetchmany(_ROWS_AT_A_TIME):
                yield rows

        return self.read(query, paths, columns, parts)

    def tables(self, query: str, paths: Sequence[Path], columns: Mapping[str, str]) -> "Iterator[pa.Table]":
        """Give `Engine.tables`."""

        def parts(whole: str) -> "Iterator[pa.Table]":
            yield self.connection.sql(whole).to_arrow_table()

        return self.read(query, paths, columns, parts)

    def read(
        self, query: str, paths: Sequence[Path], columns: Mapping[str, str], parts: Callable[[str], Iterator[_Part]]
    ) -> Iterator[_Part]:
        """What `parts` gives of a statement; where a line needs more room, those that follow the ones given already."""
        message, given = "", 0
        for size in _LONGEST_LINES:
            whole = f"WITH {_RECORDS} AS (FROM {_read_json(paths, columns, size)}) SELECT * FROM ({query})"  # noqa: S608
            try:
                for part in islice(parts(whole), given, None):
                    given += 1
                    yield part
                return  # noqa: TRY300
            except duckdb.OutOfMemoryException as error:
                raise UsageError(_TOO_LITTLE) from error
            except duckdb.Error as error:
                message = str(error)
            if "maximum_object_size" not in message:
                break
        if several := _STOP.search(message):
            raise IncompleteError(several.group(1))
        place = _PLACE.search(message)
        if place and "Malformed JSON" in message:
            raise IncompleteError(f"a line of {place.group(1)} is no JSON; get the file from its source again")
        where = f" in {place.group(1)}" + (f", line {place.group(2)}" if place.group(2) else "") if place else ""
        raise IncompleteError(f"a record{where} does not have the shape FHIR gives it; correct it at its source")


@contextmanager
def open_duckdb(threads: int | None = None, memory: str | None = None, temp: Path | None = None) -> Iterator[DuckDB]:
    """Open the embedded engine, as `open_engine` does; `threads` bounds it further."""
    settings: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "preserve_insertion_order": "true",
    }
    if threads is not None:
        settings["threads"] = str(threads)
    if temp is not None:
        settings["temp_directory"] = str(temp)
    with _spilling(temp), closing(duckdb.connect(config=settings)) as connection:
        limit = literal(memory or "50%")  # of what the engine finds, a container's too
        connection.execute(f"SET memory_limit = {limit}")
        yield DuckDB(connection)


@functools.cache
def _duckdb_compiler() -> Any:
    from ibis.backends.sql.compilers import DuckDBCompiler

    class Compiler(DuckDBCompiler):  # type: ignore[misc]
        def visit_DecimalText(self, op: Any, *, arg: Any) -> Any:  # noqa: N802, ARG002 - Ibis' name for it
            return arg

    return Compiler()


# --- Spark ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Spark:
    """A Spark session. Nothing of it runs in Python: its workers need Java alone."""

    session: "SparkSession"
    folder: Path
    master: str
    dialect: str = "spark"
    links: dict[Path, Path] = field(default_factory=dict)

    def table(self, columns: Mapping[str, str]) -> "ibis.Table":
        """Give `Engine.table`."""
        return _table(columns)

    def compile(self, expression: "ibis.Table") -> str:
        """Give `Engine.compile`."""
        compiler = _spark_compiler()
        return str(compiler.to_sqlglot(expression).sql(dialect=compiler.dialect))

    def run(self, query: str, paths: Sequence[Path], columns: Mapping[str, str]) -> Iterator[list[tuple[object, ...]]]:
        """Give `Engine.run`."""
        for table in self.tables(query, paths, columns):
            for batch in table.to_batches(_ROWS_AT_A_TIME):
                yield list(zip(*(column.to_pylist() for column in batch.columns), strict=True))

    def tables(self, query: str, paths: Sequence[Path], columns: Mapping[str, str]) -> "Iterator[pa.Table]":
        """Give `Engine.tables`."""
        from py4j.protocol import Py4JJavaError
        from pyspark.errors import PySparkException

        whole = f"WITH {_RECORDS} AS ({_records(columns)}) SELECT * FROM ({query})"  # noqa: S608
        for start in range(0, len(paths), _FILES_AT_A_TIME):
            some = paths[start : start + _FILES_AT_A_TIME]
            try:
                self.lines(some).createOrReplaceTempView("ndjson_lines")
                with warnings.catch_warnings(action="ignore", category=ResourceWarning):
                    table = self.session.sql(whole).toArrow()  # which leaves its socket to the garbage collector
            except (Py4JJavaError, PySparkException) as error:
                self.fail(str(error), some, columns)
            yield table

    def lines(self, paths: Sequence[Path]) -> Any:
        """The lines of the files in one column `value`, each file after the other.

        A file is a part of its own, since Spark begins with the longest of those it is given together. Its order holds as
        long as no query shuffles, and no view does.
        """
        reader = self.session.read.option("lineSep", "\n").option("__globPaths__", value=False)  # a path is no pattern
        read = [reader.text(f"file://{self.readable(path)}") for path in paths]
        return functools.reduce(lambda one, other: one.unionAll(other), read)

    def readable(self, path: Path) -> Path:
        """The path, or a link to it where Spark would leave the file out as hidden, or stumble over its name."""
        path = path.absolute()
        if not _ODD_NAME.search(path.name):
            return path
        if not self.master.startswith("local"):
            raise UsageError(f"{path}: a Spark cluster cannot read a file of this name; rename it")
        if path not in self.links:
            self.links[path] = self.folder / f"link-{len(self.links)}{'.gz' if path.suffix == '.gz' else ''}"
            self.links[path].symlink_to(path)
        return self.links[path]

    def fail(self, message: str, paths: Sequence[Path], columns: Mapping[str, str]) -> NoReturn:
        """Raise what an error of Spark means; DuckDB, which names file and line, says where a record does not fit."""
        if several := _STOP.search(message):
            raise IncompleteError(several.group(1))
        if not any(misfit in message for misfit in _MISFITS):
            condition = match[1] if (match := _CONDITION.search(message)) else "no condition named"
            raise IncompleteError(f"Spark could not read the records ({condition}); see the log of its workers")
        with open_duckdb(threads=1, temp=self.folder / "duckdb") as duck:
            for path in paths:
                list(duck.run(f"SELECT count(COLUMNS(*)) FROM {_RECORDS}", [path], columns))  # noqa: S608
        raise IncompleteError("a record does not have the shape FHIR gives it; correct it at its source")


def _records(columns: Mapping[str, str]) -> str:
    """The query that reads records of these columns out of `ndjson_lines`.

    Spark by itself gives null for what does not fit, and takes no notice of what follows a record on its line. So each line
    is read as an array of the record and an end: a line that is not one whole record leaves something else.
    """
    shape = _spark_type({"resourceType": "VARCHAR", **columns})
    options = "map('mode', 'FAILFAST', 'allowSingleQuotes', 'false', 'allowNonNumericNumbers', 'false')"
    text = f"concat('[', validate_utf8(value), ',{_END}]')"
    whole = "size(found) = 2 AND found[1].resourceType = '$'"
    record = f"IF({whole}, found[0], CAST(raise_error('{_NO_RECORD}') AS {shape}))"
    names = ", ".join(f"record.`{column}`" for column in columns)
    return (
        f"SELECT {names} FROM (SELECT explode(transform(array(from_json({text}, 'ARRAY<{shape}>', {options})), "  # noqa: S608
        rf"found -> {record})) AS record FROM ndjson_lines WHERE trim(LEADING ' \\t\\r' FROM value) != '')"
    )


def _spark_type(columns: Mapping[str, str]) -> str:
    from ibis.expr.datatypes import Struct

    return str(_spark_compiler().type_mapper.to_string(Struct({n: _data_type(kind) for n, kind in columns.items()})))


@contextmanager
def _open_spark(master: str, memory: str | None, temp: Path | None) -> Iterator[Spark]:
    try:
        from py4j.clientserver import FinalizerWorker
        from py4j.protocol import Py4JJavaError
        from pyspark import SparkConf, SparkContext
        from pyspark.errors import PySparkException, PySparkRuntimeError
        from pyspark.java_gateway import launch_gateway
        from pyspark.logger import PySparkLogger
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise UsageError(_NOT_INSTALLED) from error

    with tempfile.TemporaryDirectory(prefix="spark-", dir=temp) as name:
        folder = Path(name)
        settings = {
            "spark.master": master,
            "spark.app.name": "crmo-fhir",
            "spark.driver.memory": f"{_megabytes(memory or '50%')}m",
            "spark.driver.maxResultSize": "0",  # what was found is bounded by that memory alone
            "spark.driver.extraJavaOptions": "-XX:-UsePerfData -Djava.io.tmpdir=.",
            "spark.local.dir": ".",
            "spark.log.level": "OFF",  # its logs quote records, those of its workers too
            "spark.executor.syncLogLevel.enabled": "true",
            "spark.sql.analyzer.maxIterations": "1000",  # a `repeat` is as many lambdas in each other as it goes levels down
            "spark.sql.ansi.enabled": "true",  # a cast that fails must stop the run
            "spark.sql.caseSensitive": "true",
            "spark.sql.catalogImplementation": "in-memory",
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.variable.substitute": "false",  # ${x} in a text is that text
            "spark.sql.warehouse.dir": "warehouse",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
        }
        if master.startswith("local"):
            settings |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
        for logger in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
            PySparkLogger.getLogger(logger).disabled = True  # what a query stops at is in their lines
        logging.getLogger("py4j").setLevel(logging.CRITICAL + 1)  # an interrupt is told of by those who end the program
        logging.getLogger().addFilter(_not_of_py4j)
        conf = SparkConf(loadDefaults=False).setAll(list(settings.items()))
        try:
            # a Java process of its own, at work in that folder; it says nothing on the terminal and ends with this one
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": str(folder)}
            gateway = launch_gateway(conf, quiet)  # type: ignore[no-untyped-call]
        except PySparkRuntimeError as error:
            raise UsageError(_NO_JAVA) from error
        try:
            try:
                with _own_interrupt():
                    session = SparkSession(SparkContext(conf=conf, gateway=gateway))
            except (Py4JJavaError, PySparkException) as error:
                raise NetworkError(f"{master}: no Spark master answers there; start it, or name another") from error
            try:
                yield Spark(session, folder, master)
            finally:
                session.stop()
        finally:
            SparkContext._gateway = SparkContext._jvm = None  # noqa: SLF001 - else the next session would speak to this one
            gateway.shutdown()
            gateway.proc.stdin.close()
            gateway.proc.wait()
            # It wakes once a second; a program that ends before makes libraries in C tell of what it left to them.
            for thread in threading.enumerate():
                if isinstance(thread, FinalizerWorker):
                    thread.join(5)


def _not_of_py4j(record: logging.LogRecord) -> bool:
    return Path(record.pathname).parent.name != "py4j"


def _megabytes(memory: str) -> int:
    """An amount such as 4GB, 1.5 GiB or 50% (of the machine's) in megabytes, at least one."""
    number = re.match(r"[\d.]+", memory)
    assert number is not None  # checked where it was given
    amount, unit = float(number[0]), memory[number.end() :].strip()
    if unit == "%":
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 100
    else:
        whole = (1024 if "i" in unit else 1000) ** " KMGT".index(unit[0])
    return max(int(amount * whole) // _MEGABYTE, 1)


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Keep what this program does on SIGINT; Spark sets a handler of its own."""
    before = signal.getsignal(signal.SIGINT)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, before)


@functools.cache
def _spark_compiler() -> Any:
    import ibis.expr.datatypes as dt
    import sqlglot as sg
    import sqlglot.expressions as sge
    from ibis.backends.sql.compilers.base import NULL, SQLGlotCompiler
    from ibis.backends.sql.compilers.pyspark import PySparkCompiler
    from ibis.backends.sql.datatypes import PySparkType

    class Types(PySparkType):  # type: ignore[misc]
        """JSON is a VARIANT, which knows a text from an object."""

        @classmethod
        def from_ibis(cls, dtype: dt.DataType) -> sge.DataType:
            if dtype.is_json():
                return sge.DataType(this=sge.DataType.Type.VARIANT)
            return cast("sge.DataType", super().from_ibis(dtype))

    class Compiler(PySparkCompiler):  # type: ignore[misc]
        """What Spark 4 says otherwise than Ibis takes it to: no item beyond an array's end, JSON as VARIANT."""

        type_mapper = Types
        SIMPLE_OPS: ClassVar[dict[Any, str]] = {}  # Ibis would write those of its own compiler over the methods here

        def visit_Field(self, op: Any, *, rel: Any, name: str) -> Any:  # noqa: N802
            return SQLGlotCompiler.visit_Field(self, op, rel=rel, name=name)  # Ibis asks an option of an open backend

        def visit_NonNullLiteral(self, op: Any, *, value: Any, dtype: dt.DataType) -> Any:  # noqa: N802
            if dtype.is_floating():
                return self.visit_DefaultLiteral(op, value=value, dtype=dtype)
            return super().visit_NonNullLiteral(op, value=value, dtype=dtype)

        def of_kind(self, arg: Any, kind: str) -> Any:
            return self.f.anon.startswith(self.f.anon.schema_of_variant(arg), sge.convert(kind))

        def visit_ArrayFlatten(self, op: Any, *, arg: Any) -> Any:  # noqa: N802, ARG002
            one = sg.to_identifier("one", quoted=self.quoted)
            there = sge.Lambda(this=one.is_(sge.Not(this=NULL)), expressions=[one])
            return self.f.flatten(self.f.filter(arg, there))

        def visit_ArrayIndex(self, op: Any, *, arg: Any, index: Any) -> Any:  # noqa: N802, ARG002
            return self.f.anon.get(arg, index)

        def visit_Cast(self, op: Any, *, arg: Any, to: Any) -> Any:  # noqa: N802
            if to.is_json():
                return self.f.anon.parse_json(arg) if op.arg.dtype.is_string() else self.cast(arg, to)
            if op.arg.dtype.is_string() and to.is_integer():
                return self.cast(self.f.regexp_replace(arg, sge.convert("[.]0+$"), sge.convert("")), to)
            if op.arg.dtype.is_json() and to.is_string():
                number = self.cast(self.cast(arg, dt.float64), dt.string)
                return self.if_(self.of_kind(arg, "DECIMAL"), number, self.cast(arg, to))
            return super().visit_Cast(op, arg=arg, to=to)

        def visit_JSONGetItem(self, op: Any, *, arg: Any, index: Any) -> Any:  # noqa: N802, ARG002
            path = sge.convert(f"$[{op.index.value}]" if op.index.dtype.is_integer() else f"$.{op.index.value}")
            return self.f.anon.try_variant_get(arg, path, sge.convert("variant"))

        def visit_ToJSONArray(self, op: Any, *, arg: Any) -> Any:  # noqa: N802, ARG002
            return self.f.anon.try_variant_get(arg, sge.convert("$"), sge.convert("array<variant>"))

        def visit_UnwrapJSONString(self, op: Any, *, arg: Any) -> Any:  # noqa: N802
            return self.if_(self.of_kind(arg, "STRING"), self.cast(arg, op.dtype), NULL)

        def visit_UnwrapJSONBoolean(self, op: Any, *, arg: Any) -> Any:  # noqa: N802
            return self.if_(self.of_kind(arg, "BOOLEAN"), self.cast(arg, op.dtype), NULL)

        def visit_DecimalText(self, op: Any, *, arg: Any) -> Any:  # noqa: N802, ARG002
            return sge.replace_placeholders(shortest, arg=arg)

    shortest = sg.parse_one(_SHORTEST_DECIMAL, dialect=Compiler.dialect)
    return Compiler()


# --- both ----------------------------------------------------------------------------------------------------------


def _table(columns: Mapping[str, str]) -> "ibis.Table":
    import ibis

    return ibis.table({column: _data_type(kind) for column, kind in columns.items()}, name=_RECORDS)


@functools.cache
def _data_type(kind: str) -> "dt.DataType":
    from ibis.backends.sql.datatypes import DuckDBType

    return DuckDBType.from_string(kind)


def _read_json(paths: Sequence[Path], columns: Mapping[str, str], longest: int, **options: str) -> str:
    """The table of the records in NDJSON files. That they are records is said, else DuckDB tries to find out of each file."""
    files = ", ".join(literal(_without_wildcards(str(path))) for path in paths)
    fields = ", ".join(f"{literal(column)}: {literal(kind)}" for column, kind in columns.items())
    more = "".join(f", {name} = {literal(value)}" for name, value in options.items())
    return (
        f"read_json([{files}], format = 'newline_delimited', records = true, columns = {{{fields}}}, "
        f"ignore_errors = false, maximum_object_size = {longest}{more})"
    )


def literal(text: str) -> str:
    """A string in the words of DuckDB."""
    return "'" + text.replace("'", "''") + "'"


def _without_wildcards(path: str) -> str:
    """Escape what DuckDB would read as a pattern."""
    return re.sub(r"[*?\[]", lambda match: f"[{match.group()}]", path)
