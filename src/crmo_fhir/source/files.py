"""The candidates' records out of a folder or file: NDJSON, Bundles and single resources in any mix, nested, gzipped.

A source larger than memory is read in passes, and only what belongs to a candidate is kept: (1) everything is checked,
and qualifying Conditions name the candidates; (2) their Patient records and those of the same persons; (3) whatever is
about them; (4) what those records refer to. Nothing follows the order of files, lines or entries. What a file is and how it
is taken apart, `source.pieces` says.

The lines of a large source are surveyed by the engine first (`source.survey`): then (1) reads strictly those that are not
plain or may be a diagnosis, and every later pass only those that may be what it looks for; the rest is counted.
"""

import hashlib
import io
import os
import re
import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import msgspec

from crmo_fhir.engine import open_duckdb
from crmo_fhir.errors import IncompleteError
from crmo_fhir.fhir import references, strict
from crmo_fhir.fhir.codings import CodeSet, is_subsetted
from crmo_fhir.fhir.outcomes import issue_codes
from crmo_fhir.fhir.references import Identifier, Key
from crmo_fhir.model.records import READ_TYPES, Broken, LedgerRow, Pull, Record
from crmo_fhir.source import selection
from crmo_fhir.source.pieces import (
    MAX_DOCUMENT,
    R4_MEMBERS,
    R5_MEMBERS,
    File,
    Piece,
    Source,
    base_of,
    digest_of,
    first_type,
    guarded,
    identify,
    look_over,
    read_lines,
    read_piece,
    readable,
    refuse_changed,
    refuse_other_files,
    take_apart,
)
from crmo_fhir.source.selection import HYDRATED, Person
from crmo_fhir.source.survey import Lines, Survey, is_large, is_simple, is_simple_id

MOST_KEPT = 256 * 1024 * 1024
"""So many bytes of lines picked by the survey are kept; where there are more, it is of no use."""
MOST_READERS = 8
"""So many cores survey the files; each takes some 100 MB."""
TOGETHER = 64 * 1024 * 1024
"""Bytes of files that are surveyed together, if they are so small: a statement takes as long to prepare as some MB to read."""
MOST_TOGETHER = 200
"""Nor more files than this: where the engine cannot read one of them, the others are read again."""
_BLOCK = 1024 * 1024
_LINE_FEED = 10


@dataclass(slots=True)
class _Content:
    """What reading a file to its end tells: its SHA-256, its lines, and how many of them ended before each block of it."""

    sha256: str = ""
    lines: int = 0
    marks: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Found:
    """What the first pass leaves for the others."""

    source: Source
    types: dict[str, Counter[str]] = field(default_factory=dict)
    met: set[str] = field(default_factory=set)
    skipped: set[tuple[str, str]] = field(default_factory=set)
    broken: list[Broken] = field(default_factory=list)
    aliases: dict[str, Key] = field(default_factory=dict)
    qualifying: list[tuple[Key, Any, str]] = field(default_factory=list)
    deleted: dict[Key, Any] = field(default_factory=dict)
    versions: set[str] = field(default_factory=set)
    has_base: bool = False
    relative: bool = False
    absolute: set[str] = field(default_factory=set)
    pages: set[str] = field(default_factory=set)
    next_pages: set[str] = field(default_factory=set)
    failures: int = 0
    subsetted: int = 0
    patients: set[int] = field(default_factory=set)
    own_base: str | None = None
    assigned: dict[Key, tuple[str, str]] = field(default_factory=dict)
    survey: Survey | None = None
    picked: dict[str, dict[int, bytes]] = field(default_factory=dict)
    contents: dict[str, _Content] = field(default_factory=dict)
    persons: set[tuple[str | None, str]] = field(default_factory=set)

    @property
    def counts(self) -> Counter[str]:
        """How many resources of each type there are, without those in quarantine."""
        return sum(self.types.values(), Counter())

    def base_of(self, file: File) -> str | None:
        """The service base of what in a file does not name its own."""
        return self.source.base_of(file) or self.own_base


@dataclass(slots=True)
class _Kept:
    """The newest copy of a resource so far."""

    record: Record
    age: Any
    owners: set[Key]
    about: bool
    document: str


class _UnsurveyedError(Exception):
    """The survey of a source cannot say which lines matter; all of them have to be read."""


def select_candidates(
    path: Path,
    crmo: CodeSet,
    text: CodeSet,
    *,
    base: str | None = None,
    memory: str | None = None,
    spill: Path | None = None,
    apart: Path | None = None,
) -> Pull:
    """Read a folder or file and keep the candidates' records; `base` is the service base they come from, where it is known.

    `memory` bounds the engine, `spill` is a folder that it may make and use meanwhile; `apart` is one that is not read.
    Raises UsageError for a path that is not there; IncompleteError where nothing is FHIR, Patient or Condition is absent
    altogether, a gzip file is cut or damaged, a line is over the limit, or the data are XML, DSTU2 or STU3. What cannot
    be read as a resource is in `Pull.broken`, with file and place.
    """
    source = look_over(path, apart)
    with ExitStack() as ends:
        lines = [file for file in source.files if file.lines]
        survey = None
        if is_large(lines):
            engine = ends.enter_context(open_duckdb(threads=_cores(), memory=memory, temp=spill))
            survey = Survey(engine)
        surveyed, contents = _read_through(source, lines, survey, ends)
        try:
            found = _Found(source, own_base=base)
            if survey is not None:
                _take_over(found, survey, surveyed, contents)
            pull = _select(path, found, crmo, text)
        except _UnsurveyedError:
            found = _Found(source, own_base=base)
            pull = _select(path, found, crmo, text)
        pull.files = [replace(file, sha256=contents[file.name].result().sha256) for file in source.seen]
        pull.files.sort(key=lambda file: file.name)
        for file in source.files:
            refuse_changed(file)
        refuse_other_files(path, source, apart)
    return pull


def _select(path: Path, found: _Found, crmo: CodeSet, text: CodeSet) -> Pull:
    """The passes over the files, or over those of their lines that may matter."""
    pull = Pull(source=str(path), broken=[*found.source.broken], warnings=[*found.source.warnings])
    for file in found.source.files:
        _check(file, found, crmo, text, found.picked.get(file.name))
    if found.survey is not None:
        _pick(found, crmo, text, found.survey.conditions(lambda code: _may_count(code, crmo, text)))
        if not (found.has_base or found.relative) or any(map(is_simple, found.aliases)):
            raise _UnsurveyedError
        if found.qualifying:
            bases = _bases(found)
            found.patients.update(hash((bases[name], one)) for name, one in found.survey.patients())
    _require(path, found)
    _settle_base(found, pull)
    people, candidates = _people(found, crmo, text)
    kept = _keep(found, pull, people, candidates, crmo, text)
    _hydrate(found, pull, kept, crmo, text)
    _report(found, pull, people, candidates, kept)
    return pull


# ------------------------------------------------------------------------------------------------- what an engine can do


def _cores() -> int:
    return min(os.cpu_count() or 1, MOST_READERS)


def _read_through(
    source: Source, lines: Iterable[File], survey: Survey | None, ends: ExitStack
) -> tuple[list[Future[list[str]]], dict[str, Future[_Content]]]:
    """Begin to survey the files of lines, and beside that to read every file to its end."""
    ended = threading.Event()
    surveyor, readers = ThreadPoolExecutor(1), ThreadPoolExecutor(_cores() if survey else 1)
    for threads in (surveyor, readers):
        ends.callback(threads.shutdown, wait=True, cancel_futures=True)
    ends.callback(ended.set)
    # All cores survey a long file; while one core surveys a short one, the others hash. So what is surveyed goes from short to
    # long, what is hashed from long to short, and no core is idle before the end.
    sizes = {file.name: file.size for file in source.seen}
    listed = sorted(source.listed, key=lambda one: sizes[one[1]], reverse=True)
    surveyed, of_lines = [], {}
    if survey is not None:
        of_lines = {file.name: file for file in lines}
        for some in _together(of_lines[name] for _, name in reversed(listed) if name in of_lines):
            paths = {file.name: file.path for file in some}
            surveyed.append(surveyor.submit(survey.read, paths, kind=some[0].kind, packed=some[0].packed))
    contents = {name: readers.submit(_content, path, name, of_lines.get(name), ended) for path, name in listed}
    return surveyed, contents


def _together(files: Iterable[File]) -> Iterator[list[File]]:
    """Part files into such as are surveyed together: of one type, packed or not, and not too much at a time."""
    open_ones: dict[tuple[str, bool], list[File]] = defaultdict(list)
    for file in files:
        some = open_ones[file.kind, file.packed]
        if some and (len(some) == MOST_TOGETHER or sum(one.stamp[0] for one in some) + file.stamp[0] > TOGETHER):
            yield some
            some = open_ones[file.kind, file.packed] = []
        some.append(file)
    yield from open_ones.values()


def _content(path: Path, name: str, surveyed: File | None, ended: threading.Event) -> _Content:
    """Hash a file, and count its lines where it is surveyed; a gzip file is read once more for that, to its checksum."""
    content, digest = _Content(), hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK))
    for unpacked in (False, True) if surveyed and surveyed.packed else (False,):
        content.lines, last = 0, _LINE_FEED
        with guarded(path, name, packed=unpacked) as stream:
            while (size := cast("io.BufferedIOBase", stream).readinto(buffer)) and not ended.is_set():
                if not unpacked:
                    digest.update(buffer[:size])
                if surveyed:
                    content.marks.append(content.lines)
                    content.lines += _line_feeds(buffer[:size])
                    last = buffer[size - 1]
        content.lines += last != _LINE_FEED
    content.sha256 = digest.hexdigest()
    return content


def _line_feeds(block: memoryview) -> int:
    """Count them; four times as fast as bytes do, which matters where a population is read."""
    import numpy as np

    return int(np.count_nonzero(np.frombuffer(block, dtype=np.uint8) == _LINE_FEED))


def _take_over(
    found: _Found, survey: Survey, surveyed: Iterable[Future[list[str]]], contents: Mapping[str, Future[_Content]]
) -> None:
    """Take down what a survey counted, and which lines to read in any case.

    A file is left to be read line by line where the engine cannot read one of its lines, or where not every line is one
    of its records (blank ones are not).
    """
    read = {name: contents[name].result() for some in surveyed for name in some.result()}
    lines = survey.lines_of()
    found.contents = {name: content for name, content in read.items() if content.lines == lines.get(name, 0)}
    if not found.contents:
        return
    survey.settle(found.contents)
    found.survey = survey
    found.types = survey.counts()
    found.met.update(kind for types in found.types.values() for kind in types)
    found.picked = {name: {} for name in found.contents}
    found.versions |= survey.versions()
    _fetch(found, survey.pick(survey.unsure()))


def _may_count(code: str, crmo: CodeSet, text: CodeSet) -> bool:
    """Whether a Condition of this code may be a diagnosis that counts, or is none that the strict reader takes."""
    try:
        condition = {"code": strict.parse(code.encode())}
    except ValueError:
        return True
    return selection.malformed("Condition", condition) is not None or selection.qualifies(condition, crmo, text)


def _pick(found: _Found, crmo: CodeSet, text: CodeSet, rows: Iterable[int]) -> None:
    """Read rows of the survey strictly, those that were not read before."""
    assert found.survey is not None
    fetched = _fetch(found, found.survey.pick(rows))
    for file in found.source.files:
        if file.name in fetched:
            _check(file, found, crmo, text, fetched[file.name])


def _fetch(found: _Found, lines: Lines) -> dict[str, dict[int, bytes]]:
    """Fetch lines from the files; what the survey counted of them is counted no more, since `_check` will."""
    fetched: dict[str, dict[int, bytes]] = {}
    for file in found.source.files:
        if kinds := lines.get(file.name):
            numbers = sorted(kinds)
            texts = _lines_at(file, numbers, found.contents[file.name].marks)
            fetched[file.name] = dict(zip(numbers, texts, strict=True))
            found.picked[file.name] |= fetched[file.name]
            found.types[file.name].subtract(kind for kind in kinds.values() if kind is not None)
    assert found.survey is not None
    ids = {name: {number: _id_of(line) for number, line in picked.items()} for name, picked in fetched.items()}
    # Where its order of the lines is not theirs, or too many are picked, a survey is of no use.
    kept = sum(len(line) for picked in found.picked.values() for line in picked.values())
    if kept > MOST_KEPT or not found.survey.confirm(ids):
        raise _UnsurveyedError
    return fetched


def _id_of(line: bytes) -> str:
    """The id of a line, empty where it is none that a survey can confirm."""
    try:
        own = msgspec.json.decode(line, type=dict[str, Any]).get("id")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return own if isinstance(own, str) and is_simple_id(own) else ""


def _lines_at(file: File, numbers: list[int], marks: list[int]) -> Iterator[bytes]:
    """The lines of these numbers, in order; a plain file is read only around them."""
    if file.packed:
        wanted = set(numbers)
        for number, line in enumerate(read_lines(file.path, file.name), 1):
            if number in wanted:
                yield line
            if number == numbers[-1]:
                return
    with guarded(file.path, file.name) as stream:
        block, at = b"", -1
        for number in numbers:
            index = max(bisect_left(marks, number - 1) - 1, 0)
            if index != at:
                stream.seek(index * _BLOCK)
                block, at = stream.read(_BLOCK), index  # marks stand at the beginning of each
                begin, passed = 0, marks[index]
            while passed < number - 1:
                begin = block.find(b"\n", begin) + 1
                passed += 1
                if not begin:
                    raise IncompleteError(
                        f"{file.name} changed while it was read; run again when the source is at rest"
                    )
            end = block.find(b"\n", begin) + 1
            if end:
                yield block[begin:end]
            else:
                stream.seek(index * _BLOCK + begin)
                yield stream.readline(MAX_DOCUMENT + 1)


# ------------------------------------------------------------------------------------------------------ the first pass


def _check(file: File, found: _Found, crmo: CodeSet, text: CodeSet, picked: Mapping[int, bytes] | None = None) -> None:
    """Read one file strictly: quarantine what is broken, note types, aliases and qualifying Conditions."""
    types = found.types.setdefault(file.name, Counter())
    base = found.base_of(file)
    for piece in take_apart(file, found.broken, picked):
        if piece.deleted:
            _note_deletion(piece, found, base)
        if piece.raw is None:
            found.pages.add(piece.page)
            found.next_pages.add(piece.next_page)
            continue
        try:
            kind, resource = read_piece(piece, file.name)
            found.met.add(kind)
            if kind not in READ_TYPES:
                types[kind] += 1
                found.failures += bool(issue_codes(resource))
                continue
            identity, assigned = identify(kind, resource, piece)
        except ValueError as error:
            first = first_type(piece.raw)
            matters = first is None or first in (*READ_TYPES, "Bundle", "Parameters")
            found.broken.append(Broken(file.name, piece.place, str(error), readable(piece.raw), matters))
            found.skipped.add((file.name, piece.place))
            continue
        types[kind] += 1
        key = Key(base_of(piece, base), kind, identity)
        _note(key, resource, piece, found, assigned=assigned)
        if kind == "Condition" and selection.qualifies(resource, crmo, text):
            found.qualifying.append((key, selection.subject(resource), piece.document))


def _broken(found: _Found) -> Iterator[Broken]:
    """What was broken, and whether it matters, which the rest of its file may tell."""
    names = {file.name for file in found.source.files if file.lines}
    for item in found.broken:
        # A line that does not say its type is of the type of its file, where that is one a study does not read.
        types = set(+found.types[item.file])
        only_others = item.file in names and bool(types) and not types & set(READ_TYPES)
        matters = item.matters and not (only_others and first_type(item.text.encode()) is None)
        yield replace(item, matters=matters)


def _note(key: Key, resource: dict[str, Any], piece: Piece, found: _Found, *, assigned: bool) -> None:
    """Take down what the later passes need of a resource of a read type."""
    found.has_base = found.has_base or key.base is not None
    for member in R5_MEMBERS.get(key.type, ()):
        if member in resource:
            found.versions.add("5.0")
    for member in R4_MEMBERS.get(key.type, ()):
        if member in resource:
            found.versions.add("4.0")
    found.subsetted += is_subsetted(resource)
    if key.type == "Patient":
        found.patients.add(hash((key.base, key.id)))  # a number each: there may be millions
        if found.survey is not None:
            found.persons.add((key.base, key.id))
    if key.base is None and not found.relative:
        for reference in references.references_in(resource):
            said = references.parse(reference, None)
            if said.kind == "own":
                found.relative = True
            elif said.kind == "foreign" and said.base is not None:
                found.absolute.add(said.base)
    if piece.full_url and (key.type == "Patient" or key.type in HYDRATED):
        found.aliases[piece.full_url] = key
        found.aliases[f"{piece.document} {piece.full_url}"] = key
    if assigned and piece.full_url:
        # Two different resources under one fullUrl would pass for one: `urn:uuid:patient` in every Bundle of a folder.
        digest = digest_of(resource)
        first = found.assigned.setdefault(key, (digest, piece.origin))
        if first[0] != digest:
            raise IncompleteError(
                f"{piece.origin}: a resource without id has the fullUrl of another one ({first[1]}); give them ids"
            )


def _note_deletion(piece: Piece, found: _Found, base: str | None) -> None:
    key = references.split_url(piece.deleted)
    if key is None:
        said = references.parse(piece.deleted, base_of(piece, base))
        if said.kind != "own":
            return
        key = Key(said.base, said.type, said.id)
    when = selection.instant(piece.deleted_at) if piece.deleted_at else selection.instant("9999-12-31T00:00:00+00:00")
    found.deleted[key] = max(when, found.deleted.get(key, when))


def _require(path: Path, found: _Found) -> None:
    if not found.met:
        raise IncompleteError(f"{path} holds no FHIR resource; give NDJSON, Bundles or single resources in JSON")
    missing = [kind for kind in ("Patient", "Condition") if kind not in found.met]
    if missing:
        raise IncompleteError(f"{path} holds no {' and no '.join(missing)}; the export is not complete")


def _settle_base(found: _Found, pull: Pull) -> None:
    """Give a source without bases the one all its references name, if they are all absolute and on one base."""
    pull.fhir_versions = sorted(found.versions)
    if found.subsetted:
        pull.warnings.append(f"{found.subsetted} resources say that they are only a part of themselves (SUBSETTED)")
    if found.failures:
        pull.warnings.append(f"{found.failures} OperationOutcomes in the source tell of errors; it may be incomplete")
    if missing := len(found.next_pages - found.pages - {""}):
        pull.warnings.append(f"the next page of {missing} searches is not in the source; it may be incomplete")
    if not found.has_base and not found.relative and len(found.absolute) == 1:
        found.own_base = next(iter(found.absolute))
        pull.warnings.append(f"no resource names its base; every reference is on {found.own_base}, which was taken")
        found.aliases = {url: key._replace(base=found.own_base) for url, key in found.aliases.items()}
        found.qualifying = [(key._replace(base=found.own_base), s, d) for key, s, d in found.qualifying]
        found.deleted = {key._replace(base=found.own_base): when for key, when in found.deleted.items()}
    pull.base = found.own_base


# ----------------------------------------------------------------------------------------------------- the later passes


def _resources(found: _Found, kinds: set[str]) -> Iterator[tuple[Key, dict[str, Any], Piece, bool]]:
    """The checked resources of these types, file by file; only files that hold one of them are opened again."""
    for file in found.source.files:
        if not found.types[file.name].keys() & kinds:
            continue
        base = found.base_of(file)
        for piece in take_apart(file, picked=found.picked.get(file.name)):
            if piece.raw is None or (file.name, piece.place) in found.skipped:
                continue
            if (first := first_type(piece.raw)) is not None and first not in kinds:
                continue
            resource = msgspec.json.decode(piece.raw)
            kind = resource["resourceType"]
            if kind not in kinds:
                continue
            identity, assigned = identify(kind, resource, piece)
            yield Key(base_of(piece, base), kind, identity), resource, piece, assigned


def _target(reference: object, base: str | None, found: _Found, document: str) -> Key | Identifier | None:
    """What a reference means: a key, by fullUrl where one says so, or an identifier; None for nothing that can be found.

    The key may be of a record that is not there. A urn means the entry of the own Bundle before any other.
    """
    said = references.parse(reference, base)
    text = reference.get("reference") if isinstance(reference, dict) else reference
    if isinstance(text, str) and said.kind != "contained":
        alias = found.aliases.get(f"{document} {text.strip()}") or found.aliases.get(text.strip())
        if alias is not None:
            return alias
    if said.kind in ("own", "foreign"):
        return Key(said.base, said.type, said.id)
    if said.kind == "urn":
        return Key(None, "", said.id)
    if said.kind == "identifier":
        return (said.base or "", said.id)
    return None


def _people(found: _Found, crmo: CodeSet, text: CodeSet) -> tuple[dict[Key, Person], set[Key]]:
    """The candidates: the subjects of qualifying Conditions, and every Patient record of the same persons."""
    candidates: set[Key] = set()
    by_identifier: set[Identifier] = set()
    for key, reference, document in found.qualifying:
        target = _target(reference, key.base, found, document)
        if isinstance(target, Key):
            candidates.add(target)
        elif target is not None:
            by_identifier.add(target)
    people: dict[Key, Person] = {}
    if not candidates and not by_identifier:
        return people, candidates
    shared: dict[Identifier, set[Key]] = defaultdict(set)
    grown = True
    while grown:
        grown = False
        if found.survey is not None:
            known = {*by_identifier, *(one for person in people.values() for one in person.identifiers)}
            rows = found.survey.persons({key.id for key in candidates}, {value for _, value in known})
            _pick(found, crmo, text, rows)
        for key, resource, piece, _ in _resources(found, {"Patient"}):
            if key in people:
                continue
            one = selection.person(key, resource)
            linked = [_target(other, key.base, found, piece.document) for other in one.links]
            if not (
                key in candidates
                or one.identifiers & by_identifier
                or any(other in people or other in candidates for other in linked if isinstance(other, Key))
                or any(
                    selection.same_person(one, people[other])
                    for identifier in one.identifiers
                    for other in shared.get(identifier, ())
                )
            ):
                continue
            grown = True
            people[key] = one
            candidates.add(key)
            candidates.update(other for other in linked if isinstance(other, Key))
            for identifier in one.identifiers:
                shared[identifier].add(key)
    return people, candidates


def _owner(
    key: Key,
    resource: dict[str, Any],
    piece: Piece,
    found: _Found,
    candidates: set[Key],
    identifiers: dict[Identifier, Key],
) -> Key | None:
    """The candidate a resource is about, if it is about one."""
    if key.type == "Patient":
        return key if key in candidates else None
    target = _target(selection.subject(resource), key.base, found, piece.document)
    if isinstance(target, Key):
        return target if target in candidates else None
    return identifiers.get(target) if target is not None else None


def _bases(found: _Found) -> dict[str, str | None]:
    """The base of the plain lines of each surveyed file."""
    return {file.name: found.base_of(file) for file in found.source.files if file.name in found.picked}


def _keep(
    found: _Found, pull: Pull, people: dict[Key, Person], candidates: set[Key], crmo: CodeSet, text: CodeSet
) -> dict[Key, _Kept]:
    """Everything about the candidates, the newest copy of each, and qualifying Conditions whose subject is not there."""
    kept: dict[Key, _Kept] = {}
    qualifying = {key for key, _, _ in found.qualifying}
    if not qualifying:
        return kept
    identifiers: dict[Identifier, Key] = {}
    for key in sorted(people, key=str):
        for identifier in people[key].identifiers:
            identifiers.setdefault(identifier, key)
    kinds = set(READ_TYPES) - {"Medication"}
    nobodys: Counter[str] = Counter()
    if (survey := found.survey) is not None:
        bases = _bases(found)

        def is_ours(name: str, reference: object) -> bool:
            target = _target(reference, bases[name], found, "")
            return target in candidates if isinstance(target, Key) else target in identifiers

        _pick(found, crmo, text, survey.about({key.id for key in candidates}, is_ours))
        nobodys += survey.count_nobodys(
            bases, found.persons, lambda name, reference: _is_nobodys(_target(reference, bases[name], found, ""), found)
        )
    for key, resource, piece, assigned in _resources(found, kinds):
        owner = _owner(key, resource, piece, found, candidates, identifiers)
        if owner is None and key.type != "Patient":
            target = _target(selection.subject(resource), key.base, found, piece.document)
            nobodys[key.type] += _is_nobodys(target, found)
        if owner is not None or key in qualifying:
            _take(kept, key, resource, piece, owner, assigned=assigned)
    # A newer copy may be about somebody else, or be older than a deletion: then the older copies do not count.
    if survey is not None:
        _pick(found, crmo, text, survey.copies((key.type, key.id) for key in kept))
    for key, resource, piece, assigned in _resources(found, kinds):
        if key in kept:
            owner = _owner(key, resource, piece, found, candidates, identifiers)
            _take(kept, key, resource, piece, owner, assigned=assigned)
    for key in [key for key, one in kept.items() if not one.about and key not in qualifying]:
        del kept[key]
    _drop_deleted(kept, found)
    unresolved = sum(not one.owners or next(iter(one.owners)) not in people for one in kept.values() if one.about)
    lost = sum(not one.about for one in kept.values())
    for kind in sorted(nobodys):
        if nobodys[kind]:
            pull.warnings.append(f"{nobodys[kind]} {kind} resources refer to no Patient of the source")
    if unresolved or lost:
        pull.warnings.append(f"{unresolved + lost} kept resources refer to a patient whose record is not in the source")
    return kept


def _is_nobodys(target: Key | Identifier | None, found: _Found) -> bool:
    """Whether this is no Patient of the source; of a resource about a Group or a Device nobody expects one."""
    if not isinstance(target, Key):
        return target is None
    if target.type not in ("", "Patient"):
        return False
    # In the first pass nobody knew yet that the references name the base of the whole source.
    base = None if target.base == found.own_base and not found.has_base else target.base
    return hash((base, target.id)) not in found.patients


def _take(
    kept: dict[Key, _Kept], key: Key, resource: dict[str, Any], piece: Piece, owner: Key | None, *, assigned: bool
) -> None:
    assert piece.raw is not None
    text = strict.compact(piece.raw)
    if assigned:
        text = '{"id":' + msgspec.json.encode(key.id).decode() + ("," if text != "{}" else "") + text[1:]
    age = selection.age(resource)
    before = kept.get(key)
    if before is None or selection.newer((age, text), (before.age, before.record.text)):
        record = Record(key.type, key.id, text, piece.origin, key.base, piece.full_url, assigned)
        kept[key] = _Kept(record, age, {owner} if owner else set(), owner is not None, piece.document)
    elif before.record.text == text:
        # The same copy twice: where it stood must not depend on the order of the files.
        if owner is not None:
            before.owners.add(owner)
            before.about = True
        if (piece.full_url or "", piece.origin) < (before.record.full_url or "", before.record.origin):
            before.record = Record(key.type, key.id, text, piece.origin, key.base, piece.full_url, assigned)
            before.document = piece.document


def _drop_deleted(kept: dict[Key, _Kept], found: _Found) -> None:
    for key, when in found.deleted.items():
        if key in kept and kept[key].age[0] <= when:
            del kept[key]


def _hydrate(found: _Found, pull: Pull, kept: dict[Key, _Kept], crmo: CodeSet, text: CodeSet) -> None:
    """Add the Medications, Encounters, ImagingStudies and MedicationRequests that kept records refer to, to the end."""
    asked: dict[Key, set[Key]] = defaultdict(set)
    done: set[Key] = set()
    foreign: set[Key] = set()
    while fresh := [key for key in kept if key not in done]:
        for key in fresh:
            one = kept[key]
            done.add(key)
            for reference in selection.wanted(msgspec.json.decode(one.record.text)):
                target = _target(reference, key.base, found, one.document)
                if isinstance(target, Key) and target.type in HYDRATED:
                    if target in kept:
                        kept[target].owners |= one.owners if not kept[target].about else set()
                    asked[target] |= one.owners
        missing = set(asked) - set(kept) - foreign
        if not missing:
            break
        if found.survey is not None:
            _pick(found, crmo, text, found.survey.copies((key.type, key.id) for key in missing))
        for key, resource, piece, assigned in _resources(found, {key.type for key in missing}):
            if key not in missing:
                continue
            about = selection.subject(resource)
            if about is not None and isinstance(_target(about, key.base, found, piece.document), Key):
                foreign.add(key)  # about a patient who is no candidate: somebody else's record
                continue
            _take(kept, key, resource, piece, None, assigned=assigned)
            kept[key].owners |= asked[key]
        _drop_deleted(kept, found)
        if not missing & set(kept):
            break
    lost = Counter(key.type for key in asked if key not in kept)
    pull.unresolved = lost.total()
    for kind in sorted(lost):
        pull.warnings.append(
            f"{lost[kind]} {kind} resources are referred to and not in the source (or somebody else's)"
        )


def _report(found: _Found, pull: Pull, people: dict[Key, Person], candidates: set[Key], kept: dict[Key, _Kept]) -> None:
    """Fill in the account: records in order, counts, and the ledger of candidates and types."""
    pull.records = [kept[key].record for key in sorted(kept, key=lambda key: (key.type, key.id, key.base or ""))]
    pull.broken += _broken(found)
    pull.broken.sort(key=lambda item: (item.file, _natural(item.place)))
    pull.type_counts = dict(sorted(found.counts.items()))
    owned: Counter[tuple[Key, str]] = Counter()
    for key, one in kept.items():
        for owner in one.owners:
            owned[owner, key.type] += 1
    rows = set(people) | {key for key in candidates if any(owned[key, kind] for kind in READ_TYPES)}
    ids = Counter(key.id for key in rows)
    for key in sorted(rows, key=lambda key: (key.id, key.base or "")):
        name = key.id if ids[key.id] == 1 else f"{key.base or ''}/Patient/{key.id}"
        for kind in READ_TYPES:
            count = owned[key, kind]
            pull.ledger.append(LedgerRow(name, kind, "complete" if count else "empty", count))


def _natural(place: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", place)]
