"""All records of one type out of a folder or file, whoever they are about, as NDJSON that an engine reads.

They are read as strictly as those of a study (`files`), and each is either in a file for the engine or named as broken.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec

from crmo_fhir.errors import IncompleteError, UsageError
from crmo_fhir.fhir import strict
from crmo_fhir.model.records import Broken, Pull
from crmo_fhir.source import selection
from crmo_fhir.source.files import (
    _BOM,
    _FIRST_TYPE,
    _GZIP,
    _base,
    _File,
    _Found,
    _identity,
    _listed,
    _look_at,
    _Piece,
    _pieces,
    _readable,
    _refuse_old,
    _type_of,
)


@dataclass(slots=True)
class Gathered:
    """NDJSON files, each with the service base of its records (None: unknown), that hold `count` records of one type."""

    files: list[tuple[Path, str | None]] = field(default_factory=list)
    count: int = 0
    broken: list[Broken] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def gather(path: Path, kind: str, folder: Path, misfit: Callable[[dict[str, Any]], str | None]) -> Gathered:
    """Gather the records of a type below a path, in the order of files, lines and entries.

    `misfit` names the element of a record that has a shape no reader expects. A file that holds nothing but such records,
    a line each, is read where it stands; out of any other they are written to `folder`. Raises UsageError and
    IncompleteError as `select_candidates` does, for what is no FHIR of a version that is read.
    """
    if not path.exists():
        raise UsageError(f"there is no file or folder {path}")
    pull, found, gathered = Pull(source=str(path)), _Found(), Gathered()
    for file_path, name in _listed(path, pull):
        _look_at(file_path, name, found, pull)
    if not found.files and not pull.broken:
        raise IncompleteError(f"{path} holds no FHIR resource; give NDJSON, Bundles or single resources in JSON")
    gathered.broken += pull.broken
    gathered.warnings += pull.warnings
    for file in found.files:
        looked = _Looked(file, found, kind, misfit)
        count = sum(1 for _ in looked.records())
        gathered.count += count
        gathered.broken += looked.broken
        if count and looked.plain and not looked.broken:
            gathered.files.append((file.path, looked.base))
        elif count:
            _write(looked.records(), folder, gathered.files)
    return gathered


def _write(records: Iterator[tuple[str | None, bytes]], folder: Path, files: list[tuple[Path, str | None]]) -> None:
    """Write records to files in a folder, on to the last one as long as it is ours and of the same base."""
    written: IO[str] | None = None
    try:
        for base, record in records:
            if written is None or base != files[-1][1]:
                if written is not None:
                    written.close()
                if not files or files[-1][0].parent != folder or files[-1][1] != base:
                    files.append((folder / f"{len(files):06}.ndjson", base))
                written = files[-1][0].open("a", encoding="utf-8")
            written.write(f"{strict.compact(record)}\n")
    finally:
        if written is not None:
            written.close()


@dataclass(slots=True)
class _Looked:
    """One file, and what was seen of it: `plain` while every line is a record of the type, all of them of one base."""

    file: _File
    found: _Found
    kind: str
    misfit: Callable[[dict[str, Any]], str | None]
    broken: list[Broken] = field(default_factory=list)
    plain: bool = True
    base: str | None = None

    def records(self) -> Iterator[tuple[str | None, bytes]]:
        """The base and the JSON of each record of the type that has no fault; the faults are in `broken` afterwards."""
        self.broken = []
        self.plain = self.file.lines and _is_plain(self.file.path)
        for number, piece in enumerate(_pieces(self.file, self.broken, None)):
            if piece.raw is None or ((first := _FIRST_TYPE.match(piece.raw)) and first[1].decode() != self.kind):
                self.plain = False
                continue
            try:
                record = self.read(piece)
            except ValueError as error:
                self.broken.append(Broken(self.file.name, piece.place, str(error), _readable(piece.raw)))
                continue
            base = _base(piece, self.found, self.file)
            if record is None or "entry" in piece.place or (number and base != self.base):
                self.plain = False
            self.base = base
            if record is not None:
                yield base, record

    def read(self, piece: _Piece) -> bytes | None:
        """The JSON of a record, None where it is of another type. Raises ValueError with the reason why it cannot be read."""
        assert piece.raw is not None
        resource = strict.parse(piece.raw)
        kind = _type_of(resource)
        _refuse_old(kind, resource, self.file.name, piece.place)
        if kind != self.kind:
            return None
        identity, assigned = _identity(resource, piece)
        if identity is None:
            raise ValueError("its id is no text")
        if fault := selection.malformed(kind, resource):
            raise ValueError(fault)
        if place := self.misfit(resource):
            raise ValueError(f"{place} has not the shape FHIR gives it")
        if assigned and piece.full_url:  # an entry of a Bundle goes by its fullUrl
            return b'{"id":' + msgspec.json.encode(identity) + b"," + piece.raw[1:]
        return piece.raw


def _is_plain(path: Path) -> bool:
    """Whether an engine takes the file for what it is: packed if its name says so, and no byte order mark before the JSON."""
    with path.open("rb") as stream:
        head = stream.read(3)
    return head.startswith(_GZIP) == (path.suffix == ".gz") and head != _BOM
