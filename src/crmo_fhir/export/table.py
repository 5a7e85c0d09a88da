"""The rows of a view as a file to read elsewhere: CSV, or Parquet with a type for each column."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from crmo_fhir.errors import UsageError

ENDINGS = (".csv", ".parquet")


def check_ending(name: str) -> None:
    """Raise UsageError unless the name of a file says which of the formats it is to have."""
    if not name.lower().endswith(ENDINGS):
        raise UsageError(f"{name}: a table is written as .csv or .parquet; name it so")


def table_file(
    name: str, kinds: Mapping[str, str], collections: frozenset[int], rows: Sequence[Sequence[Any]]
) -> bytes:
    """The file of this name; `kinds` says of each column, in order, whether it is "boolean", "integer", "number" or "text".

    `collections` are the places of the columns whose values are lists.
    """
    return (_parquet if name.lower().endswith(".parquet") else _csv)(kinds, collections, rows)


def _csv(kinds: Mapping[str, str], collections: frozenset[int], rows: Sequence[Sequence[Any]]) -> bytes:
    """UTF-8 with a header; nothing and the empty text are both empty, true and false as in JSON, a list is a JSON array."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(kinds)
    for row in rows:
        writer.writerow([_cell(value, collection=place in collections) for place, value in enumerate(row)])
    return text.getvalue().encode("utf-8")


def _cell(value: Any, *, collection: bool) -> Any:
    if collection or isinstance(value, bool):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else value


def _typed(value: Any, kind: str) -> Any:
    if kind != "number" or value is None:
        return value
    return [float(each) for each in value] if isinstance(value, list) else float(value)


def _parquet(kinds: Mapping[str, str], collections: frozenset[int], rows: Sequence[Sequence[Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"boolean": pa.bool_(), "integer": pa.int64(), "number": pa.float64(), "text": pa.string()}
    fields = [
        pa.field(name, pa.list_(types[kind]) if place in collections else types[kind])
        for place, (name, kind) in enumerate(kinds.items())
    ]
    arrays = [
        pa.array([_typed(row[place], kind) for row in rows], type=fields[place].type)
        for place, kind in enumerate(kinds.values())
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), sink)
    return bytes(sink.getvalue())
