"""The rows of a view as a file to read elsewhere: CSV, or Parquet with a type for each column.

Both come piece by piece, for a table may be of a whole population; the same rows give the same bytes.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crmo_fhir.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = (".csv", ".parquet")
_ROWS_OF_A_GROUP = 100_000


def check_ending(name: str) -> None:
    """Raise UsageError unless the name of a file says which of the formats it is to have."""
    if not name.lower().endswith(ENDINGS):
        raise UsageError(f"{name}: a table is written as .csv or .parquet; name it so")


def is_parquet(name: str) -> bool:
    """Whether the name of a file says that it is to be Parquet."""
    return name.lower().endswith(".parquet")


def write_csv(
    kinds: Mapping[str, str], collections: frozenset[int], parts: Iterable[Sequence[Sequence[Any]]]
) -> Iterator[bytes]:
    """UTF-8 with a header; nothing and the empty text are both empty, true and false as in JSON, a list is a JSON array.

    `kinds` says of each column, in order, whether it is "boolean", "integer", "number" or "text"; `collections` are the
    places of the columns whose values are lists; `parts` are so many rows each.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(kinds)
    as_json = collections | {place for place, kind in enumerate(kinds.values()) if kind == "boolean"}
    for part in parts:
        columns = zip(*part, strict=True)
        writer.writerows(
            zip(*(map(_json, each) if i in as_json else each for i, each in enumerate(columns)), strict=True)
        )
        yield text.getvalue().encode("utf-8")
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode("utf-8")


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def write_parquet(
    kinds: Mapping[str, str], collections: frozenset[int], tables: "Iterable[pa.Table]"
) -> Iterator[bytes]:
    """The rows of tables whose columns are those of `kinds`, in order; a missing list is an empty one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"boolean": pa.bool_(), "integer": pa.int64(), "number": pa.float64(), "text": pa.string()}
    schema = pa.schema(
        pa.field(name, pa.list_(types[kind]) if place in collections else types[kind])
        for place, (name, kind) in enumerate(kinds.items())
    )
    sink, rest = _Sink(), schema.empty_table()
    with pq.ParquetWriter(sink, schema) as writer:
        for table in tables:
            rest = pa.concat_tables([rest, _typed(table, schema)])
            while len(rest) >= _ROWS_OF_A_GROUP:
                writer.write_table(rest.slice(0, _ROWS_OF_A_GROUP).combine_chunks())
                rest = rest.slice(_ROWS_OF_A_GROUP)
                yield sink.taken()
        writer.write_table(rest.combine_chunks())
    yield sink.taken()


def _typed(table: "pa.Table", schema: "pa.Schema") -> "pa.Table":
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = [column.cast(field.type) for column, field in zip(table.columns, schema, strict=True)]
    return pa.table(
        [
            pc.coalesce(column, pa.scalar([], field.type)) if pa.types.is_list(field.type) else column
            for column, field in zip(columns, schema, strict=True)
        ],
        schema=schema,
    )


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
