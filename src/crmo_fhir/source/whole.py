"""All records of one type out of a folder or file, whoever they are about, as NDJSON that an engine reads.

They are read as strictly as those of a study (`pieces`), and each is either in a file for the engine or named as broken. A
large source is looked at by the engine first (`survey.count_sure`), which then can be sure of what is asked for alone.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import msgspec

from crmo_fhir.engine import open_duckdb
from crmo_fhir.errors import IncompleteError
from crmo_fhir.fhir import strict
from crmo_fhir.model.records import Broken
from crmo_fhir.source.pieces import (
    File,
    Piece,
    Source,
    base_of,
    first_type,
    identify,
    is_utf8,
    look_over,
    read_piece,
    read_to_end,
    readable,
    refuse_changed,
    take_apart,
)
from crmo_fhir.source.survey import count_sure, is_large


@dataclass(frozen=True, slots=True)
class Narrow:
    """What of a record will be read: `columns`, by their types in the engine's words, and the condition under which they fit."""

    columns: Mapping[str, str]
    fits: str


@dataclass(slots=True)
class Gathered:
    """NDJSON files, each with the service base of its records (None: unknown), that hold `count` records of one type."""

    files: list[tuple[Path, str | None]] = field(default_factory=list)
    count: int = 0
    broken: list[Broken] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def gather(
    path: Path,
    kind: str,
    folder: Path,
    misfit: Callable[[dict[str, Any]], str | None],
    narrow: Narrow,
    memory: str | None = None,
) -> Gathered:
    """Gather the records of a type below a path, in the order of files, lines and entries.

    `misfit` names the element of a record that has a shape no reader expects. A file that holds nothing but such records,
    a line each, is read where it stands; out of any other they are written to `folder`. In a large source, where the
    engine (`memory` bounds it) finds what is `narrow` of every line without fault, nothing else of them is judged. Raises
    UsageError and IncompleteError as `select_candidates` does, for what is no FHIR of a version that is read.
    """
    source = look_over(path)
    if not source.files and not source.broken:
        raise IncompleteError(f"{path} holds no FHIR resource; give NDJSON, Bundles or single resources in JSON")
    gathered = Gathered(broken=source.broken, warnings=source.warnings)
    wanted = _Wanted(kind, misfit)
    sure = _count_sure(source, kind, narrow, memory, folder / "spill") if is_large(source.files) else {}
    with closing(_Spool(folder, gathered.files)) as spool:
        for file in source.files:
            base = source.base_of(file)
            if file.name not in sure:
                _gather_from(file, base, wanted, gathered, spool)
            elif count := sure[file.name]:
                gathered.files.append((file.path, base))
                gathered.count += count
    return gathered


def _count_sure(source: Source, kind: str, narrow: Narrow, memory: str | None, spill: Path) -> dict[str, int]:
    """How many records the files hold of whose every line the engine is sure."""
    sure = {}
    with open_duckdb(memory=memory, temp=spill) as engine:
        for file in source.files:
            if not _is_plain(file):
                continue
            its = file.kind or kind
            asked = narrow if its == kind else Narrow({}, "true")
            count = count_sure(engine, file.path, its, asked.columns, asked.fits, packed=file.packed)
            if count is not None:
                sure[file.name] = count if its == kind else 0
                if file.packed:
                    read_to_end(file.path, file.name)  # the engine looks at no checksum
            refuse_changed(file)
    return sure


@dataclass(slots=True)
class _Spool:
    """Files in a folder that records are written to, each on to the last one as long as it is ours and of the same base."""

    folder: Path
    files: list[tuple[Path, str | None]]
    last: tuple[Path, str | None] | None = None
    stream: IO[str] | None = None

    def write(self, base: str | None, record: bytes) -> None:
        if self.stream is None or self.files[-1] is not self.last or base != self.last[1]:
            self.close()
            self.last = (self.folder / f"{len(self.files):06}.ndjson", base)
            self.files.append(self.last)
            self.stream = self.last[0].open("x", encoding="utf-8")
        self.stream.write(f"{strict.compact(record)}\n")

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The records that are wanted: their type, and what names the element of one that has not its shape."""

    kind: str
    misfit: Callable[[dict[str, Any]], str | None]

    def read(self, piece: Piece, file: File, broken: list[Broken]) -> bytes | None:
        """The JSON of a record; None where a piece is of another type, or has a fault, which goes to `broken`."""
        if piece.raw is None or first_type(piece.raw) not in (None, self.kind):
            return None
        try:
            return self._judge(piece, piece.raw, file.name)
        except ValueError as error:
            broken.append(Broken(file.name, piece.place, str(error), readable(piece.raw)))
            return None

    def _judge(self, piece: Piece, raw: bytes, name: str) -> bytes | None:
        kind, resource = read_piece(piece, name)
        if kind != self.kind:
            return None
        identity, assigned = identify(kind, resource, piece)
        if place := self.misfit(resource):
            raise ValueError(f"{place} has not the shape FHIR gives it")
        if assigned and piece.full_url:  # an entry of a Bundle goes by its fullUrl
            return b'{"id":' + msgspec.json.encode(identity) + b"," + raw[1:]
        return raw


def _is_plain(file: File) -> bool:
    """Whether an engine can read a file where it stands: it takes it for what its name says, and nothing before the JSON."""
    return file.lines and not file.marked and file.packed == (file.path.suffix == ".gz") and is_utf8(file.path)


def _gather_from(file: File, base: str | None, wanted: _Wanted, gathered: Gathered, spool: _Spool) -> None:
    """Judge each piece of a file once; its records are written from the first line on that is not plainly one of them."""
    plain = _is_plain(file)
    broken: list[Broken] = []
    count = 0

    def write_those_before() -> None:
        for piece in islice(take_apart(file), count):
            assert piece.raw is not None
            spool.write(base, piece.raw)

    for piece in take_apart(file, broken):
        record = wanted.read(piece, file, broken)
        if plain and (record is None or broken or piece.marked or "entry" in piece.place):
            plain = False
            write_those_before()
        if record is not None:
            if not plain:
                spool.write(base_of(piece, base), record)
            count += 1
    if plain and broken:
        write_those_before()
    elif plain and count:
        gathered.files.append((file.path, base))
    gathered.count += count
    gathered.broken += broken
