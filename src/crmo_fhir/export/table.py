"""The rows of a view as a file to read elsewhere: CSV, or Parquet with a type for each column."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from crmo_fhir.errors import UsageError

ENDINGS = (".csv", ".parquet")
_ROWS_OF_A_PIECE = 100_000
"""So many make a row group of Parquet."""


def check_ending(name: str) -> None:
    """Raise UsageError unless the name of a file says which of the formats it is to have."""
    if not name.lower().endswith(ENDINGS):
        raise UsageError(f"{name}: a table is written as .csv or .parquet; name it so")


def table_file(
    name: str, kinds: Mapping[str, str], collections: frozenset[int], rows: Iterable[Sequence[Any]]
) -> Iterator[bytes]:
    """The file of this name, piece by piece; `kinds` says of each column, in order, whether it is "boolean", "integer", "number" or "text".

    `collections` are the places of the columns whose values are lists. The same rows give the same bytes.
    """
    return (_parquet if name.lower().endswith(".parquet") else _csv)(kinds, collections, _parted(rows))


def _parted(rows: Iterable[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    """The values of so many rows at a time, column by column: most columns are written as they come."""
    rows = iter(rows)
    while part := list(islice(rows, _ROWS_OF_A_PIECE)):
        yield list(zip(*part, strict=True))


def _csv(
    kinds: Mapping[str, str], collections: frozenset[int], parts: Iterable[list[Sequence[Any]]]
) -> Iterator[bytes]:
    """UTF-8 with a header; nothing and the empty text are both empty, true and false as in JSON, a list is a JSON array."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(kinds)
    as_json = collections | {place for place, kind in enumerate(kinds.values()) if kind == "boolean"}
    for part in parts:
        writer.writerows(zip(*(map(_json, each) if i in as_json else each for i, each in enumerate(part)), strict=True))
        yield text.getvalue().encode("utf-8")
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode("utf-8")


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _number(value: Any) -> Any:
    return [float(each) for each in value] if isinstance(value, list) else None if value is None else float(value)


def _parquet(
    kinds: Mapping[str, str], collections: frozenset[int], parts: Iterable[list[Sequence[Any]]]
) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"boolean": pa.bool_(), "integer": pa.int64(), "number": pa.float64(), "text": pa.string()}
    fields = [
        pa.field(name, pa.list_(types[kind]) if place in collections else types[kind])
        for place, (name, kind) in enumerate(kinds.items())
    ]
    sink = _Sink()
    with pq.ParquetWriter(sink, pa.schema(fields)) as writer:
        for part in parts:
            arrays = [
                pa.array([*map(_number, each)] if kind == "number" else each, type=fields[place].type)
                for place, (kind, each) in enumerate(zip(kinds.values(), part, strict=True))
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)))
            yield sink.taken()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """Holds what was written until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self._pieces.append(bytes(piece))
        return len(self._pieces[-1])

    def taken(self) -> bytes:
        content = b"".join(self._pieces)
        self._pieces.clear()
        return content
