"""A folder or file as a source: its files, the pieces they are taken apart into, and what one piece is.

What a file is, its content says, not its name: NDJSON, Bundles and single resources in any mix, nested, gzipped. A piece is
the text of one resource. It is read as strictly wherever it is read; what cannot be says where it stood and why. The limit
of one line or document is 128 MiB.
"""

import gzip
import hashlib
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from crmo_fhir.errors import IncompleteError, UsageError
from crmo_fhir.fhir import references, strict
from crmo_fhir.model.records import READ_TYPES, Broken, SourceFile
from crmo_fhir.source import selection

MAX_DOCUMENT = 128 * 1024 * 1024
"""So many bytes one line or document may have."""
_MAX_NESTING = 4
_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
_GZIP = b"\x1f\x8b"
_PACKED = (b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf")
_SNIFFED = 65536
_BLOCK = 1024 * 1024
_JSON_NAME = re.compile(r"\.(json|ndjson|jsonl)(\.gz)?$", re.IGNORECASE)
_LINES_NAME = re.compile(r"\.(ndjson|jsonl)(\.gz)?$", re.IGNORECASE)
_XML = re.compile(rb"""xmlns(:\w+)?\s*=\s*["']http://hl7\.org/fhir["']""")
_FIRST_TYPE = re.compile(rb'\A\s*\{\s*"resourceType"\s*:\s*"([A-Za-z]{1,64})"')
_EXPORT = re.compile(r"(https?://\S+?)(?:/(?:Patient|Group/[^/?]+))?/\$export(?:\?|$)")
OLD_TYPES = {
    "MedicationOrder": "DSTU2",
    "DiagnosticOrder": "DSTU2",
    "DeviceUseRequest": "DSTU2",
    "ImagingObjectSelection": "DSTU2",
    "ImagingManifest": "STU3",
    "ProcedureRequest": "DSTU2 or STU3",
    "ReferralRequest": "DSTU2 or STU3",
}
"""Types of FHIR versions that are not read."""
OLD_MEMBERS = {
    "Condition": {"dateRecorded": "DSTU2", "patient": "DSTU2", "assertedDate": "STU3", "context": "STU3"},
    "MedicationStatement": {"taken": "STU3", "wasNotTaken": "DSTU2", "notTaken": "STU3", "reasonNotTaken": "STU3"},
    "MedicationAdministration": {"wasNotGiven": "DSTU2", "notGiven": "STU3", "prescription": "DSTU2 or STU3"},
    "MedicationDispense": {"notDone": "STU3", "notDoneReasonReference": "STU3"},
    "Procedure": {"notPerformed": "DSTU2", "notDone": "STU3"},
    "Observation": {"related": "DSTU2 or STU3", "comments": "DSTU2", "context": "STU3"},
    "ImagingStudy": {"uid": "DSTU2 or STU3"},
    "AdverseEvent": {"reaction": "STU3", "adverseEventParticipant": "STU3"},
}
"""Per type, the members that only those versions have."""
R5_MEMBERS = {
    "MedicationStatement": ("medication", "adherence"),
    "MedicationRequest": ("medication",),
    "MedicationDispense": ("medication", "statusChanged"),
    "MedicationAdministration": ("medication",),
    "Procedure": ("occurrencePeriod", "occurrenceDateTime"),
    "AdverseEvent": ("code", "occurrenceDateTime"),
    "Encounter": ("actualPeriod",),
    "DiagnosticReport": ("study",),
}
"""Per type, members that R5 has and R4 has not, by which a source is known."""
R4_MEMBERS = {
    "MedicationStatement": ("medicationCodeableConcept", "medicationReference"),
    "MedicationRequest": ("medicationCodeableConcept", "medicationReference"),
    "MedicationDispense": ("medicationCodeableConcept", "medicationReference"),
    "MedicationAdministration": ("medicationCodeableConcept", "medicationReference"),
    "Procedure": ("performedPeriod", "performedDateTime"),
    "AdverseEvent": ("event", "actuality"),
    "Encounter": ("period",),
    "DiagnosticReport": ("imagingStudy",),
}
"""Per type, members that R4 has and R5 has not."""


@dataclass(frozen=True, slots=True)
class File:
    """A file worth reading: where it is, its name in the source, its age when it was first looked at.

    `lines`: it is NDJSON; `packed`: gzip; `marked`: it begins with a byte order mark; `kind`: the type of its first lines,
    if it is one.
    """

    path: Path
    name: str
    stamp: tuple[int, int]
    lines: bool
    packed: bool = False
    marked: bool = False
    kind: str = ""


@dataclass(slots=True)
class Source:
    """What a first look at every file of a source gives; `bases` are those of the bulk exports, by the folder of a manifest.

    `listed` are all files, by where they are and their names in the source; `files` those worth reading; `seen` their account,
    without hashes.
    """

    listed: list[tuple[Path, str]]
    files: list[File] = field(default_factory=list)
    seen: list[SourceFile] = field(default_factory=list)
    bases: dict[str, str] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def base_of(self, file: File) -> str | None:
        """The service base of the bulk export that a file belongs to."""
        folder = file.name
        while self.bases and folder:
            folder = folder.rpartition("/")[0]
            if folder in self.bases:
                return self.bases[folder]
        return None


@dataclass(frozen=True, slots=True)
class Piece:
    """The text of one resource and where it stood (`raw` is None for a deletion, then `deleted` is its URL).

    `raw` is None too for a page of a search: then `page` is its URL, and `next_page` that of the one after it.
    `marked`: its line begins with a byte order mark, as where files were put together.
    """

    raw: bytes | None
    place: str
    origin: str
    document: str
    full_url: str | None = None
    deleted: str = ""
    deleted_at: str = ""
    page: str = ""
    next_page: str = ""
    marked: bool = False


# ---------------------------------------------------------------------------------------------- the files of a source


def look_over(path: Path, apart: Path | None = None) -> Source:
    """Find the regular files below a path (hidden ones and links are left out), and look at each.

    `apart` is a folder below it that is no part of the source, such as the study that is made of it.
    Raises UsageError for a path that is not there; IncompleteError where there is no file, one cannot be read, a gzip file
    is cut or damaged, or the data are XML or a pull that is not complete.
    """
    if not path.exists():
        raise UsageError(f"there is no file or folder {path}")
    listed, links = _list(path, apart)
    source = Source(listed)
    if links:
        source.warnings.append(f"{links} symbolic links in the source were not followed")
    if not listed and links:
        raise IncompleteError(f"the folder {path} holds symbolic links alone, which are not followed; give the files")
    if not listed:
        raise IncompleteError(f"the folder {path} is empty: nothing to read")
    for file_path, name in listed:
        _look_at(file_path, name, source)
    return source


def _list(path: Path, apart: Path | None) -> tuple[list[tuple[Path, str]], int]:
    """The files with their names in the source, and how many links there are."""
    if not path.is_dir():
        if not path.is_file():
            raise UsageError(f"{path} is neither a file nor a folder")
        return [(path, _shown(path.name))], 0
    listed, links = [], 0
    own = apart.resolve() if apart is not None else None

    def refuse(error: OSError) -> None:
        raise IncompleteError(f"{_shown(str(error.filename))} cannot be read; check its permissions") from error

    for folder, folders, names in os.walk(path, onerror=refuse, followlinks=False):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in ("__MACOSX", "lost+found")
            and not (own is not None and name == own.name and Path(folder, name).resolve() == own)
        )
        links += sum(Path(folder, name).is_symlink() for name in folders)
        for name in sorted(names):
            file = Path(folder, name)
            if name.startswith("."):
                continue
            if file.is_symlink():
                links += 1
            elif stat.S_ISREG(file.stat().st_mode):
                listed.append((file, _shown(file.relative_to(path).as_posix())))
    return listed, links


def _shown(name: str) -> str:
    """A file's name fit for messages, read as UTF-8 in every locale: control characters and other bytes are escaped."""
    name = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in name)


def is_utf8(path: Path) -> bool:
    """Whether an engine can be told a path: the names of files are bytes, which need not be text."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _open(path: Path) -> IO[bytes]:
    """Open a file for reading, unpacked where it is gzip by its first bytes."""
    with path.open("rb") as stream:
        packed = stream.read(2) == _GZIP
    return cast("IO[bytes]", gzip.open(path)) if packed else path.open("rb")


def _look_at(path: Path, name: str, source: Source) -> None:
    """Decide whether a file is FHIR, and whether a line or the whole is a document; its hash comes later."""
    try:
        status = path.stat()
        with _open(path) as stream:
            packed = isinstance(stream, gzip.GzipFile)
            head = stream.read(_SNIFFED)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise IncompleteError(f"{name}: the gzip file is cut off or damaged; fetch it again") from error
    except OSError as error:
        raise _unopened(name, error) from error
    start = head.removeprefix(_BOM).lstrip()
    read = _is_json(name, start)
    if start.startswith(b"<") and _XML.search(start):
        raise IncompleteError(f"{name}: FHIR XML is not read; export FHIR JSON or NDJSON")
    stamp, marked = (status.st_size, status.st_mtime_ns), head.startswith(_BOM)
    file = File(path, name, stamp, lines=False, packed=packed, marked=marked)
    if _is_wide_json(name, head):
        source.broken.append(Broken(name, "line 1", "it is UTF-16; FHIR JSON is UTF-8", ""))
        read = False
    elif read and start:
        kind = _document_kind(path, name, start)
        if kind == "manifest":
            _read_manifest(path, name, source)
            read = False
        elif kind == "":
            read = False
        else:
            types = {first_type(line) for line in start.split(b"\n")[:-1]}
            file = replace(file, lines=kind == "lines", kind=(types.pop() or "") if len(types) == 1 else "")
    elif head.startswith(_PACKED):
        source.warnings.append(f"{name} is packed in a way that is not read; unpack it if it holds FHIR data")
    source.seen.append(SourceFile(name, status.st_size, "", read))
    if read:
        source.files.append(file)


def _is_json(name: str, start: bytes) -> bool:
    if _JSON_NAME.search(name):
        return True
    return start[:1] in (b"{", b"[") and b'"resourceType"' in start


def _is_wide_json(name: str, head: bytes) -> bool:
    """Whether a file is JSON in UTF-16; a text file of Windows beside the data is none."""
    encoding = _WIDE_BOMS.get(head[:2])
    return encoding is not None and _is_json(
        name, head[2:].decode(encoding, "replace").lstrip().encode("utf-8", "replace")
    )


def _document_kind(path: Path, name: str, start: bytes) -> str:
    """Say how a JSON file is divided: `lines`, `whole`, a `manifest` (not FHIR data), or empty for a study's own files."""
    first = start.split(b"\n", 1)[0].strip()
    try:
        value = msgspec.json.decode(first)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        value = None
    if isinstance(value, dict) and set(value) == {"file", "place", "reason", "text"}:
        return ""  # a study's own quarantine
    if isinstance(value, dict) and "resourceType" in value:
        return "lines"
    if _LINES_NAME.search(name) and not (first in (b"{", b"[") or first[:2] == b"[{"):
        return "lines"
    if path.name.lower() in ("manifest.json", "manifest.json.gz") or b'"transactionTime"' in start:
        whole = _whole(path, name)
        try:
            manifest = msgspec.json.decode(whole.removeprefix(_BOM))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return "whole"
        if isinstance(manifest, dict) and "resourceType" not in manifest:
            bulk = "transactionTime" in manifest and "output" in manifest
            return "manifest" if bulk or {"files", "complete"} & set(manifest) else "whole"
    return "lines" if not _is_one_document(path, name) and _has_resource_lines(path, name) else "whole"


def _is_one_document(path: Path, name: str) -> bool:
    with guarded(path, name) as stream:
        data = stream.read(MAX_DOCUMENT + 1)
    try:
        msgspec.json.decode(data.removeprefix(_BOM), type=msgspec.Raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return len(data) <= MAX_DOCUMENT


def _has_resource_lines(path: Path, name: str) -> bool:
    """Whether a file whose first line is no JSON has later lines that are resources: NDJSON with a broken beginning."""
    for number, line in enumerate(read_lines(path, name), 1):
        if b'"resourceType"' in line and line.lstrip()[:1] == b"{":
            try:
                value = msgspec.json.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            if isinstance(value, dict) and "resourceType" in value:
                return True
        if number >= 10_000:
            break
    return False


def _read_manifest(path: Path, name: str, source: Source) -> None:
    """Take the service base of a bulk export's files from the `request` of its manifest, and warn of its errors."""
    manifest = msgspec.json.decode(_whole(path, name).removeprefix(_BOM))
    request = manifest.get("request")
    match = _EXPORT.match(request) if isinstance(request, str) else None
    if match:
        source.bases[name.rpartition("/")[0]] = references.same_base(match[1])
    if manifest.get("error"):
        source.warnings.append(f"{name} lists files with errors of the export; the source may be incomplete")
    if manifest.get("complete") is False:
        raise IncompleteError(f"{name} says that this pull is not complete; finish it first")


def _whole(path: Path, name: str) -> bytes:
    with guarded(path, name) as stream:
        data = stream.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise IncompleteError(f"{name}: one document of more than {MAX_DOCUMENT // 2**20} MiB; export NDJSON instead")
    return data


class guarded:  # noqa: N801
    """A file open for reading (`packed`: unpacked, if it is gzip) whose faults become IncompleteErrors that name it."""

    def __init__(self, path: Path, name: str, *, packed: bool = True) -> None:
        self._path, self._name, self._packed = path, name, packed
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> IO[bytes]:
        try:
            self._stream = _open(self._path) if self._packed else self._path.open("rb")
        except OSError as error:
            raise _unopened(self._name, error) from error
        return self._stream

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._stream is not None:
            self._stream.close()
        if isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile)):
            raise IncompleteError(f"{self._name}: the gzip file is cut off or damaged; fetch it again") from error
        if isinstance(error, OSError):
            raise IncompleteError(f"{self._name} cannot be read to its end") from error


def read_to_end(path: Path, name: str) -> None:
    """Read a file for what only its end tells, the checksum of a gzip file. Raises as `take_apart` does."""
    with guarded(path, name) as stream:
        while stream.read(_BLOCK):
            pass


def read_lines(path: Path, name: str) -> Iterator[bytes]:
    """Divide a file at line feeds only: U+2028, U+2029 and U+0085 stand inside a line. Raises as `take_apart` does."""
    with guarded(path, name) as stream:
        number = 0
        while line := stream.readline(min(_BLOCK, MAX_DOCUMENT + 1)):
            number += 1
            yield line if line.endswith(b"\n") else _long_line(line, stream, f"{name}, line {number}")


def _long_line(begun: bytes, stream: IO[bytes], where: str) -> bytes:
    """The whole of a line, put together block by block, so that one over the limit is in memory once at most."""
    line, block = bytearray(), begun
    while block:
        line += block
        if len(line) > MAX_DOCUMENT:
            raise IncompleteError(f"{where}: a line of more than {MAX_DOCUMENT // 2**20} MiB")
        block = b"" if block.endswith(b"\n") else stream.readline(_BLOCK)
    return bytes(line)


# ------------------------------------------------------------------------------------------- from a file to resources


def refuse_changed(file: File) -> None:
    """Raise IncompleteError if a file is no longer what it was at the first look."""
    try:
        status = file.path.stat()
        now = (status.st_size, status.st_mtime_ns)
    except OSError:
        now = None
    if now != file.stamp:
        raise _changed(file.name)


def _changed(name: str) -> IncompleteError:
    return IncompleteError(f"{name} changed while it was read; run again when the source is at rest")


def _unopened(name: str, error: OSError) -> IncompleteError:
    """What it means that a listed file cannot be opened."""
    if isinstance(error, FileNotFoundError):
        return _changed(name)
    return IncompleteError(f"{name} cannot be read; check its permissions")


def refuse_other_files(path: Path, source: Source, apart: Path | None = None) -> None:
    """Raise IncompleteError if other files stand below a path than at the first look: it may still be filled."""
    if names := {name for _, name in source.listed} ^ {name for _, name in _list(path, apart)[0]}:
        raise IncompleteError(f"{min(names)} came or went while {path} was read; run again when the source is at rest")


def take_apart(
    file: File, broken: list[Broken] | None = None, picked: Mapping[int, bytes] | None = None
) -> Iterator[Piece]:
    """The resources of one file, Bundles and arrays taken apart; what cannot be goes to `broken`, if given.

    Of a surveyed file, those of the lines that were picked. Raises IncompleteError for a file that changed since the first
    look, is damaged, or holds a line or document over the limit.
    """
    refuse_changed(file)
    if file.lines:
        lines = enumerate(read_lines(file.path, file.name), 1) if picked is None else sorted(picked.items())
        for number, line in lines:
            raw = line.removeprefix(_BOM).strip(b" \t\r\n")
            if raw:
                origin, marked = f"{file.name}:{number}", line.startswith(_BOM)
                yield from _unfold(Piece(raw, f"line {number}", origin, origin, marked=marked), broken, file)
    else:
        raw = _whole(file.path, file.name).removeprefix(_BOM).strip(b" \t\r\n")
        if raw:
            yield from _unfold(Piece(raw, "line 1", f"{file.name}:1", file.name), broken, file)


def _unfold(piece: Piece, broken: list[Broken] | None, file: File, depth: int = 0) -> Iterator[Piece]:
    """Take a Bundle or an array apart; anything else is itself."""
    assert piece.raw is not None
    raw = piece.raw
    outer = "" if piece.place == "line 1" and not file.lines else f"{piece.place} "
    prefix = f"{piece.origin}#" if file.lines or depth else f"{file.name}#"
    try:
        if raw[:1] == b"[" and depth <= _MAX_NESTING:
            for index, element in enumerate(strict.elements(raw), 1):
                place = f"{outer}entry {index}"
                yield from _unfold(Piece(element, place, f"{prefix}{index}", piece.document), broken, file, depth + 1)
            return
        if not _is_bundle(raw):
            yield piece
            return
        if depth > _MAX_NESTING:
            if broken is not None:
                broken.append(Broken(file.name, piece.place, "Bundles stand in each other too deeply", readable(raw)))
            return
        members, entries = strict.bundle(raw)
    except (ValueError, RecursionError) as error:
        if broken is not None:
            reason = str(error) if isinstance(error, ValueError) else "the JSON is nested too deeply"
            broken.append(Broken(file.name, piece.place, reason, readable(raw)))
        return
    document = f"{piece.document}#{piece.place}"
    if links := strict.links(members):
        page, next_page = links.get("self", ""), links.get("next", "")
        yield Piece(None, piece.place, piece.origin, document, page=page, next_page=next_page)
    made = _last_updated(members)  # of a bulk export's deletions only their Bundle says when they were
    for index, entry in enumerate(entries, 1):
        place, origin = f"{outer}entry {index}", f"{prefix}{index}"
        full_url = entry.head.get("fullUrl")
        full_url = full_url if isinstance(full_url, str) else None
        if entry.resource is not None and entry.resource[:1] == b"{":
            yield from _unfold(Piece(entry.resource, place, origin, document, full_url), broken, file, depth + 1)
            continue
        request, response = entry.head.get("request"), entry.head.get("response")
        if isinstance(request, dict) and request.get("method") == "DELETE":
            at = response.get("lastModified") if isinstance(response, dict) else None
            at = at if isinstance(at, str) else made
            yield Piece(None, place, origin, document, full_url, str(request.get("url") or full_url or ""), at)
        elif response is None and broken is not None:
            broken.append(Broken(file.name, place, "the entry has no resource", ""))


def _is_bundle(raw: bytes) -> bool:
    if (first := first_type(raw)) is not None:
        return first == "Bundle"
    if b"Bundle" not in raw:
        return False
    try:
        return bytes(msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).get("resourceType", b"")) == b'"Bundle"'
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return re.search(rb'"resourceType"\s*:\s*"Bundle"', raw) is not None


def _last_updated(members: Mapping[str, Any]) -> str:
    meta = members.get("meta")
    when = meta.get("lastUpdated") if isinstance(meta, dict) else None
    return when if isinstance(when, str) else ""


def readable(raw: bytes) -> str:
    """Text of broken input for the quarantine, which is UTF-8; bytes that are not show as their hexadecimal numbers."""
    return raw[:1_000_000].decode("utf-8", "backslashreplace")


# ----------------------------------------------------------------------------------------------------- what a piece is


def first_type(raw: bytes) -> str | None:
    """The type that stands first in a text, as in most; where it does not, the text has to be parsed."""
    first = _FIRST_TYPE.match(raw)
    return first[1].decode() if first else None


def read_piece(piece: Piece, name: str) -> tuple[str, dict[str, Any]]:
    """Read a piece of the file `name` strictly: its type and what it holds.

    Raises ValueError with the reason why it cannot be read; IncompleteError for DSTU2 and STU3.
    """
    assert piece.raw is not None
    resource = strict.parse(piece.raw)
    kind = _type_of(resource)
    if kind == "Parameters" and _holds_records(resource):
        raise ValueError("the records in Parameters are not read; give them as a Bundle or as NDJSON")
    _refuse_old(kind, resource, name, piece.place)
    return kind, resource


def _type_of(resource: object) -> str:
    if not isinstance(resource, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004
    kind = resource.get("resourceType")
    if not isinstance(kind, str) or not re.fullmatch(r"[A-Za-z]{1,64}", kind):
        raise ValueError("it has no resourceType, so it is no FHIR resource")
    return kind


def _holds_records(parameters: Mapping[str, Any]) -> bool:
    """Whether Parameters hold what a study reads, as those of a measure's data do."""
    listed = parameters.get("parameter")
    held = [one.get("resource") for one in (listed if isinstance(listed, list) else ()) if isinstance(one, dict)]
    return any(isinstance(one, dict) and one.get("resourceType") in (*READ_TYPES, "Bundle") for one in held)


def _refuse_old(kind: str, resource: dict[str, Any], name: str, place: str) -> None:
    """Stop at DSTU2 and STU3, whose elements mean other things under the same names."""
    version = OLD_TYPES.get(kind, "")
    if not version and kind == "Condition":
        status = (resource.get("verificationStatus"), resource.get("clinicalStatus"))
        version = "DSTU2 or STU3" if any(isinstance(value, str) for value in status) else ""
    members = OLD_MEMBERS.get(kind, {})
    version = next((family for member, family in members.items() if member in resource), version)
    if version:
        raise IncompleteError(f"{name}, {place}: this is FHIR {version}; R4, R4B and R5 are read")


def identify(kind: str, resource: dict[str, Any], piece: Piece) -> tuple[str, bool]:
    """The id of a resource: its own, else (True: assigned) that of its fullUrl, else a hash of its content.

    Raises ValueError with the reason where it is unusable, or nobody can tell whom or what the resource is about.
    """
    own = resource.get("id")
    if own is not None and not references.is_id(own):
        raise ValueError("its id is no text")
    if fault := selection.malformed(kind, resource):
        raise ValueError(fault)
    if own is not None:
        return own, False
    if piece.full_url:
        last = re.split(r"[/:]", piece.full_url.rstrip("/"))[-1]
        if re.fullmatch(r"[A-Za-z0-9.-]{1,64}", last):
            return last, True
    return f"sha-{digest_of(resource)[:16]}", True


def digest_of(resource: dict[str, Any]) -> str:
    """The hash of what a resource says, however it is written."""
    return hashlib.sha256(json.dumps(resource, sort_keys=True).encode()).hexdigest()


def base_of(piece: Piece, base: str | None) -> str | None:
    """The service base of a resource: that of its fullUrl, else that of its file."""
    key = references.split_url(piece.full_url) if piece.full_url else None
    return key.base if key else base
