"""The study folder: records landed as they came, with a manifest written last; everything atomic and hash-checked.

`STUDY/raw` is complete only where its manifest says so; whatever is read from it is compared with the manifest's
SHA-256 first. A folder that is not ours, or was made with other arguments, is refused and left as it is. What a pull has
fetched so far stands in `STUDY/.journal` (answers of searches) and `STUDY/.export` (files of a bulk export) until it has
landed, so that a run that was cut off goes on where it was.
"""

import csv
import fcntl
import hashlib
import io
import json
import os
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from crmo_fhir.errors import (
    DISK_FAILURES,
    IncompleteError,
    IntegrityError,
    LockError,
    SignInError,
    UsageError,
)
from crmo_fhir.fhir.references import Key
from crmo_fhir.model.records import WHOLE, Broken, Pull, RawFile, Record, State

if TYPE_CHECKING:
    from crmo_fhir.fhir.client import Answer

FORMAT = 3
JOURNAL_HOURS = 24
"""What a run that was cut off has fetched is used again for so long."""
_RECEIPTS = "receipts"
_RELEASE = "release"
_REVIEWS = "reviews"
_RESTORE = "restore it, or move it out of the study"
_SPILL = ".spill"
_STATE = (
    _RECEIPTS,
    _REVIEWS,
    _SPILL,
    ".lock",
    ".journal",
    ".export",
    ".raw-new",
    ".raw-old",
    ".cohort-new",
    ".cohort-old",
)
DRY_RUN = "publish-dry-run.json"
OUTPUTS = (
    "results.csv",
    "outputs.json",
    "statistics.csv",
    "table1.csv",
    "measure.json",
    "library.json",
    "measure-report.json",
    "report.html",
)
"""The figures of a study; `outputs.json` is the account of the others. A release has no `statistics.csv`."""
ON_REQUEST = ("individual-reports.ndjson", "subject-list-report.json")


@dataclass(frozen=True, slots=True)
class Raw:
    """What `STUDY/raw` holds: the manifest, its own SHA-256, the files to read, and the fullUrls references may use."""

    manifest: dict[str, Any]
    sha256: str
    files: tuple[RawFile, ...]
    aliases: dict[str, Key]


@contextmanager
def hold(study: Path, *, create: bool = False) -> Iterator[None]:
    """Hold the study against other runs (an flock, gone with the process). Raises LockError at once if it is held.

    What a killed run left half done is mended first, and nothing half-written stays when this one ends, however it ends.
    A study that this call made and into which nothing came is gone again afterwards.
    """
    check_text(study)
    made = False
    if create:
        try:
            made = not study.exists()
            study.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            kind = IntegrityError if error.errno in DISK_FAILURES else UsageError
            raise kind(f"{study}: cannot make the study folder ({error.strerror}); choose another with -o") from error
    if not study.is_dir() or not (create or (study / ".lock").exists() or (study / "raw").exists()):
        raise UsageError(f"{study}: no such study folder; make one with 'crmo-fhir extract'")
    try:
        handle = os.open(study / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        kind = IntegrityError if error.errno in DISK_FAILURES else UsageError
        raise kind(f"{study}: cannot write there ({error.strerror}); choose another folder with -o") from error
    own = False
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            own = os.fstat(handle).st_ino == (study / ".lock").stat().st_ino
        except OSError:
            pass
        if not own:
            raise LockError(f"{study}: another run is at work in this folder; wait for it or choose another with -o")
        _mend(study)
        yield
        made = False
    finally:
        if own:
            _mend(study)
        if own and made and [entry.name for entry in study.iterdir()] == [".lock"]:
            (study / ".lock").unlink()
            study.rmdir()
        os.close(handle)


def check_text(path: Path) -> None:
    """Raise UsageError for a path whose bytes are no text here: no engine can be told it, and no manifest can hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise UsageError(
            f"{shown}: the path is no UTF-8 text in this locale; rename it, or set a UTF-8 locale"
        ) from error


def refuse_foreign(study: Path, request: Mapping[str, Any]) -> None:
    """Raise UsageError unless `study` is new, empty, or was made by this very request (or was begun by it)."""
    for manifest in (study / "raw" / "manifest.json", study / ".journal" / "request.json"):
        if manifest.is_file():
            made = _read_manifest(manifest)["request"]
            differ = sorted(k for k in {*made, *request} if made.get(k) != request.get(k))
            if differ:
                raise UsageError(
                    f"{study}: made with other arguments ({', '.join(differ)}); choose another folder with -o"
                )
            return
    if study.is_dir() and any(entry.name not in _STATE for entry in study.iterdir()):
        raise UsageError(f"{study}: holds files that are no study of ours; choose an empty folder with -o")


class Journal:
    """The answers of the searches of a pull so far, one file each (a `PageStore` of the client); safe from many threads.

    Whoever is killed between two answers loses none of them. Each file begins with the SHA-256 of its key and of all else
    in it, so one that a failing machine left half-written, or changed, is not taken. The names are hashes of the requests.
    `used` says whether an answer of an earlier run was given.
    """

    def __init__(self, study: Path, request: Mapping[str, Any]) -> None:
        """Go on with the journal of this request, or begin one with the first answer; an old one is dropped."""
        self.folder = study / ".journal"
        self._head = self.folder / "request.json"
        self._request = dict(request)
        self._lock = threading.Lock()
        self._closed = False
        self.used = False
        # A clock that was set back must not make an old journal young. One without a head was being dropped.
        if not self._head.is_file() or abs(time.time() - self._head.stat().st_mtime) > JOURNAL_HOURS * 3600:
            self.clear()

    def recall(self, key: str) -> "Answer | None":
        """The answer kept under a key, or None."""
        from crmo_fhir.fhir.client import Answer

        try:
            digest, _, content = (self.folder / f"{key}.answer").read_bytes().partition(b"\n")
        except OSError:
            return None
        if digest != _journal_digest(key, content):
            return None
        head, _, body = content.partition(b"\n")
        said = json.loads(head)
        self.used = True
        return Answer(said["status"], said["headers"], body, said["url"], said["framed"], recalled=True)

    def keep(self, key: str, answer: "Answer") -> None:
        """Keep an answer; IntegrityError where the disk does not take it."""
        said = {
            "status": answer.status,
            "headers": {name: answer.headers[name] for name in ("date", "content-type") if name in answer.headers},
            "url": answer.url,
            "framed": answer.framed,
        }
        content = json.dumps(said).encode() + b"\n" + answer.body
        staged = self.folder / f"{key}.new"
        with self._lock:
            if self._closed:
                return
            if not self._head.is_file():
                self._begin()
            # Not synced: a power cut may lose answers, which are then asked for again, and the hash finds a torn one.
            _write_bytes(staged, _journal_digest(key, content) + b"\n" + content, sync=False)
            staged.replace(self.folder / f"{key}.answer")

    def _begin(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        _write(self.folder / "request.json.new", _sealed({"format": FORMAT, "request": self._request}))
        (self.folder / "request.json.new").replace(self._head)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop answers that turned out not to be whole."""
        for key in keys:
            (self.folder / f"{key}.answer").unlink(missing_ok=True)

    def close(self) -> None:
        """Take no more, from whatever thread, and leave nothing half-written."""
        with self._lock:
            self._closed = True
            for left in self.folder.glob("*.new"):
                left.unlink(missing_ok=True)

    def clear(self) -> None:
        """Drop everything; the head first, without which the rest is worth nothing."""
        with self._lock:
            self._head.unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)


def _journal_digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(f"{key}\n".encode() + content).hexdigest().encode()


@contextmanager
def keep_journal(study: Path, request: Mapping[str, Any]) -> Iterator[Journal]:
    """The journal of a run, which goes on with that of a run that was cut off.

    It stays where the run is cut off in its turn: by a signal, the network, the disk. A run that comes to its end drops it,
    and so does one that finds the data incomplete: once they are mended, what they were must not be taken again.
    """
    journal = Journal(study, request)
    try:
        yield journal
    except IncompleteError:
        journal.clear()
        raise
    else:
        journal.clear()
    finally:
        journal.close()


def export_folder(study: Path) -> Path:
    """Where the files of a bulk export stand until they have landed; what a run left there long ago is dropped."""
    folder = study / ".export"
    if folder.is_dir() and abs(time.time() - folder.stat().st_mtime) > JOURNAL_HOURS * 3600:
        drop_export(study)
    return folder


def spill_folder(study: Path) -> Path:
    """Where the engine puts what its memory does not hold; it makes the folder, and nothing of it outlives the run."""
    return study / _SPILL


def drop_export(study: Path) -> None:
    """Remove the files of a bulk export."""
    shutil.rmtree(study / ".export", ignore_errors=True)


def land(
    study: Path,
    pull: Pull,
    request: Mapping[str, Any],
    day: str,
    misfit: Callable[[Record], str | None],
    *,
    accept_partial: bool = False,
) -> None:
    """Write `STUDY/raw` from a pull, the manifest last, in place of an earlier one of the same request.

    `misfit` says which element of a record has a shape no reader of its type expects (it goes to quarantine), `day` is
    the day of the extraction. A pull is partial where something that could matter is in quarantine, where a cell of the
    ledger is neither complete nor empty, or where `Pull.failures` says so: then the manifest says `"complete": false` and
    the error is raised, unless `accept_partial`; and an earlier complete pull stays as it was, unless `accept_partial`.
    """
    records, broken = [], list(pull.broken)
    for record in pull.records:
        if reason := misfit(record):
            place = record.origin.rpartition(":")
            broken.append(Broken(place[0] or record.origin, place[2], reason, record.text))
        else:
            records.append(record)
    blocking = [b for b in broken if b.matters]
    missing = Counter((row.type, row.state) for row in pull.ledger if row.state not in WHOLE)
    complete = not (blocking or pull.failures or missing)
    if not complete and not accept_partial and is_complete(study):
        _refuse(blocking, pull, missing, study, kept=True)
    staging = study / ".raw-new"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    main = _main_base(records, pull.base)
    others = sorted({str(r.base) for r in records if r.base != main})
    files: dict[str, dict[str, Any]] = {}
    for (resource_type, base), own in sorted(_split(records).items(), key=lambda item: (item[0][0], str(item[0][1]))):
        name = f"{resource_type}.ndjson" if base == main else f"{resource_type}@{others.index(str(base)) + 1}.ndjson"
        own.sort(key=lambda r: (r.id, r.text))
        files[name] = {**_write_lines(staging / name, (r.text for r in own)), "count": len(own)}
        files[name] |= {"type": resource_type, "base": base}
    broken.sort(key=lambda b: (b.file, b.place, b.reason))
    files["quarantine.ndjson"] = _write_lines(staging / "quarantine.ndjson", map(_quarantined, broken))
    records.sort(key=lambda r: (r.type, r.id, str(r.base)))
    files["origins.ndjson"] = _write_lines(staging / "origins.ndjson", map(_origin, records))
    ledger = sorted((row.patient, row.type, row.state, row.count, row.reason) for row in pull.ledger)
    files["ledger.csv"] = _write(staging / "ledger.csv", _csv(["patient", "type", "state", "count", "reason"], ledger))
    manifest = {
        "format": FORMAT,
        "complete": complete,
        "extracted": day,
        "request": dict(request),
        "source": {
            "name": pull.source,
            "base": main,
            "server": pull.server,
            "serverTime": pull.server_time,
            "way": pull.way,
            "fhirVersions": pull.fhir_versions,
            "records": dict(sorted(pull.type_counts.items())),
            "files": [
                {"name": f.name, "size": f.size, "sha256": f.sha256, "read": f.read}
                for f in sorted(pull.files, key=lambda f: f.name)
            ],
            "searches": pull.searches,
            "exports": pull.exports,
        },
        "files": files,
        "missing": [{"type": kind, "state": state, "patients": n} for (kind, state), n in sorted(missing.items())],
        "failures": [str(failure) for failure in pull.failures],
        "quarantined": {"blocking": len(blocking), "harmless": len(broken) - len(blocking)},
        "warnings": pull.warnings,
    }
    _write(staging / "manifest.json", _sealed(manifest))
    _swap(staging, study / "raw")
    (study / "cohort" / "build.json").unlink(missing_ok=True)  # without which the rest of it is none
    shutil.rmtree(study / "cohort", ignore_errors=True)
    if not complete and not accept_partial:
        _refuse(blocking, pull, missing, study, kept=False)


def _refuse(
    blocking: Sequence[Broken], pull: Pull, missing: Mapping[tuple[str, State], int], study: Path, *, kept: bool
) -> None:
    """Raise what makes a pull partial: the first failure, a cell of the ledger, or what cannot be read."""
    if pull.failures:
        first, more = pull.failures[0], len(pull.failures) - 1
        others = f", and {more} more" if more else ""
        others += (
            "; the earlier complete pull is kept" if kept else f"; {study / 'raw' / 'ledger.csv'} says what is missing"
        )
        raise (SignInError if isinstance(first, SignInError) else IncompleteError)(f"{first}{others}") from first
    if missing:
        (kind, state), patients = min(missing.items())
        raise IncompleteError(
            f"{kind}: {state} for {patients} patients; see {study / 'raw' / 'ledger.csv'}, or take the pull as it is with "
            "--accept-partial"
        )
    broken = min(blocking, key=lambda b: (b.file, b.place))
    others = f" and {len(blocking) - 1} more" if len(blocking) > 1 else ""
    where = "the earlier complete pull is kept" if kept else f"see {study / 'raw' / 'quarantine.ndjson'}"
    raise IncompleteError(
        f"{broken.file}:{broken.place.removeprefix('line ')}: cannot be read ({broken.reason}){others}; {where}; correct the "
        "source and extract again"
    )


def _split(records: Sequence[Record]) -> dict[tuple[str, str | None], list[Record]]:
    found: dict[tuple[str, str | None], list[Record]] = defaultdict(list)
    for record in records:
        found[record.type, record.base].append(record)
    return found


def _main_base(records: Sequence[Record], declared: str | None) -> str | None:
    """The base most records stand under (the server's own for a server)."""
    if declared is not None:
        return declared
    counts = Counter(r.base for r in records)
    return max(counts, key=lambda base: (counts[base], base is None, str(base)), default=None)


def _quarantined(broken: Broken) -> str:
    row = {
        "file": broken.file,
        "place": broken.place,
        "reason": broken.reason,
        "matters": broken.matters,
        "text": broken.text,
    }
    return json.dumps(row, ensure_ascii=True)


def _origin(record: Record) -> str:
    row = {
        "type": record.type,
        "id": record.id,
        "base": record.base,
        "fullUrl": record.full_url,
        "origin": record.origin,
        "idAssigned": record.id_assigned,
    }
    return json.dumps(row, ensure_ascii=False)


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def open_raw(study: Path, *, accept_partial: bool = False) -> Raw:
    """Read the manifest of `STUDY/raw` and check every file against it.

    Raises UsageError where there is no study, IncompleteError for an incomplete pull (unless `accept_partial`),
    IntegrityError where a file is missing, was added or changed.
    """
    path = study / "raw" / "manifest.json"
    if not path.is_file():
        raise UsageError(
            f"{study}: no complete pull here (raw/manifest.json is missing); run 'crmo-fhir extract' first"
        )
    manifest = _read_manifest(path)
    if manifest.get("complete") is not True and not accept_partial:
        raise IncompleteError(
            f"{path}: this pull is incomplete{_why(manifest)}; run 'crmo-fhir extract' again, or take it as it is with "
            "--accept-partial"
        )
    folder = study / "raw"
    _check_files(folder, {name: entry["sha256"] for name, entry in manifest["files"].items()}, {"manifest.json"})
    main = manifest["source"]["base"]
    files = tuple(
        RawFile(
            entry["type"],
            folder / name,
            entry["base"],
            "" if entry["base"] == main else f"{entry['base'] or 'folder'}/",
        )
        for name, entry in sorted(manifest["files"].items())
        if "type" in entry
    )
    aliases = {}
    with (folder / "origins.ndjson").open(encoding="utf-8") as lines:
        for line in lines:
            origin = json.loads(line)
            if origin["fullUrl"]:
                aliases[origin["fullUrl"]] = Key(origin["base"], origin["type"], origin["id"])
    return Raw(manifest, sha256_of(path), files, aliases)


def _why(manifest: Mapping[str, Any]) -> str:
    missing = [f"{cell['type']} {cell['state']} for {cell['patients']} patients" for cell in manifest["missing"]]
    blocking = manifest["quarantined"]["blocking"]
    said = [*missing, *([f"{blocking} records cannot be read"] if blocking else [])]
    return f" ({'; '.join(said)})" if said else ""


def source_of(study: Path) -> str:
    """Where the records came from, as it was named: a FHIR base URL, a folder or a file. Raises as `open_raw`."""
    path = study / "raw" / "manifest.json"
    if not path.is_file():
        raise UsageError(
            f"{study}: no complete pull here (raw/manifest.json is missing); run 'crmo-fhir extract' first"
        )
    return str(_read_manifest(path)["request"]["source"])


def read_texts(raw: Raw) -> Iterator[tuple[Key, str]]:
    """The landed records, each as its key and its JSON text."""
    for file in raw.files:
        with file.path.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                text = line.rstrip("\n")
                yield Key(file.base, file.type, msgspec.json.decode(text, type=_Named).id), text


def record_keys(raw: Raw) -> frozenset[str]:
    """The keys of the landed records, as the cohort names them: `Type/id`, of another service base by its whole URL."""
    prefixes = {(file.type, file.base): file.prefix for file in raw.files}
    return frozenset(f"{prefixes[key.type, key.base]}{key.type}/{key.id}" for key, _ in read_texts(raw))


class _Named(msgspec.Struct):
    id: str


def read_records(raw: Raw) -> Iterator[Record]:
    """The landed records as they came, with where each stood."""
    with (raw.files[0].path.parent / "origins.ndjson").open(encoding="utf-8") if raw.files else io.StringIO() as lines:
        said = {(one["base"], one["type"], one["id"]): one for one in map(json.loads, lines)}
    for key, text in read_texts(raw):
        one = said[key.base, key.type, key.id]
        yield Record(key.type, key.id, text, one["origin"], key.base, one["fullUrl"], one["idAssigned"])


def write_lines(folder: Path, records: Iterable[Record]) -> None:
    """Write records as NDJSON, one file a type, into a folder of their own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for (kind, _), own in _split(list(records)).items():
        _write_lines(folder / f"{kind}.ndjson", (record.text for record in own))


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Any]) -> None:
    """Write declared rows (dataclasses) as CSV; IntegrityError where the disk does not take it."""
    _write(path, _csv(header, [[getattr(row, name) for name in header] for row in rows]))


def _check_files(folder: Path, expected: Mapping[str, str], also: set[str]) -> None:
    present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    for name, digest in sorted(expected.items()):
        if name not in present or not (folder / name).is_file():
            raise IntegrityError(f"{folder / name}: is missing; extract again")
        if sha256_of(folder / name) != digest:
            raise IntegrityError(f"{folder / name}: is not what was written (its SHA-256 differs); extract again")
    if extra := sorted(present - set(expected) - also):
        raise IntegrityError(f"{folder / extra[0]}: was not written by this study; remove it or extract again")


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = _read_json(path, "extract into a new folder")
    if manifest.get("format") != FORMAT:
        raise IntegrityError(f"{path}: not a manifest of this version of crmo-fhir; extract into a new folder")
    return _unsealed(path, manifest, "extract into a new folder")


def _read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """A file of ours that holds its own hash. Raises IntegrityError, with the remedy, where it is not what was written."""
    return _unsealed(path, _read_json(path, remedy), remedy)


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path}: cannot be read; {remedy}") from error
    if not isinstance(content, dict):
        raise IntegrityError(f"{path}: cannot be read; {remedy}")
    return content


def _sealed(content: Mapping[str, Any]) -> str:
    """JSON that holds its own SHA-256 as `seal`, so that not a bit of it can change unseen."""
    unsealed = {name: value for name, value in content.items() if name != "seal"}
    text = json.dumps(unsealed, ensure_ascii=False, sort_keys=True)
    seal = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return json.dumps({**unsealed, "seal": seal}, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _unsealed(path: Path, content: dict[str, Any], remedy: str) -> dict[str, Any]:
    if path.read_bytes() != _sealed(content).encode("utf-8"):
        raise IntegrityError(f"{path}: is not what was written (its seal is broken); {remedy}")
    return content


def missing_of(study: Path) -> str:
    """What a partial pull lacks, in words; empty for a complete one."""
    manifest = _read_manifest(study / "raw" / "manifest.json")
    return "" if manifest.get("complete") is True else _why(manifest).strip(" ()") or "; ".join(manifest["failures"])


def is_complete(study: Path) -> bool:
    """Whether the study holds a complete pull, by its manifest."""
    path = study / "raw" / "manifest.json"
    return path.is_file() and _read_manifest(path).get("complete") is True


def write_cohort(study: Path, files: Mapping[str, bytes], build: Mapping[str, Any]) -> None:
    """Write `STUDY/cohort` at once: its tables, and `build.json` with their hashes and what they were built from."""
    staging = study / ".cohort-new"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    written = {name: _write_bytes(staging / name, content)["sha256"] for name, content in sorted(files.items())}
    _write(staging / "build.json", _sealed({**build, "reviews": _review_hashes(study), "files": written}))
    _swap(staging, study / "cohort")


def open_cohort(study: Path, raw: Raw) -> dict[str, Any]:
    """The build record of `STUDY/cohort`, after its files were compared with it.

    Raises UsageError where nothing was built, IntegrityError where a file changed or the cohort is of another pull.
    """
    path = study / "cohort" / "build.json"
    if not path.is_file():
        raise UsageError(f"{study}: no cohort here; run 'crmo-fhir build {study}' first")
    again = f"run 'crmo-fhir build {study}' again"
    build = _read_sealed(path, again)
    if build["raw"] != raw.sha256:
        raise IntegrityError(f"{study}: the cohort was built from another pull; {again}")
    if "reviews" not in build:
        raise IntegrityError(f"{study}: the cohort was built by another version of crmo-fhir; {again}")
    if build["reviews"] != _review_hashes(study):
        raise IntegrityError(f"{study / _REVIEWS}: the reviews are not those the cohort was built with; {again}")
    _check_files(study / "cohort", build["files"], {"build.json"})
    return build


def write_outputs(
    study: Path, files: Mapping[str, str], account: Mapping[str, Any], folder: Path | None = None
) -> None:
    """Write the figures of a study: every file complete under another name first, then all renamed, results.csv last.

    `outputs.json` keeps the hashes of the others, the build they are of, and `account`: what they were asked for with.
    """
    folder = folder or study
    written = {name: _write(_staged(folder, name), text)["sha256"] for name, text in sorted(files.items())}
    build = sha256_of(study / "cohort" / "build.json")
    _write(_staged(folder, "outputs.json"), _sealed({**account, "build": build, "files": written}))
    (folder / OUTPUTS[0]).unlink(missing_ok=True)
    for name in (*ON_REQUEST, *reversed(OUTPUTS)):
        if name in written or name == "outputs.json":
            _staged(folder, name).replace(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    _sync_folder(folder)


def open_outputs(study: Path, folder: Path | None = None) -> dict[str, Any]:
    """The account of the figures of a study (or of its release, in `folder`), after its files were compared with it.

    Raises UsageError where nothing was measured, IntegrityError where a file changed or the figures are of another cohort.
    """
    folder = folder or study
    path = folder / "outputs.json"
    if not path.is_file() or not (folder / OUTPUTS[0]).is_file():
        raise UsageError(
            f"{folder}: no figures here (results.csv or outputs.json is missing); run 'crmo-fhir measure {study}' first"
        )
    again = f"run 'crmo-fhir {'measure' if folder == study else 'release'} {study}' again"
    account = _read_sealed(path, again)
    for name, digest in sorted(account["files"].items()):
        if not (folder / name).is_file():
            raise IntegrityError(f"{folder / name}: is missing; {again}")
        if sha256_of(folder / name) != digest:
            raise IntegrityError(f"{folder / name}: is not what was written (its SHA-256 differs); {again}")
    if account["build"] != sha256_of(study / "cohort" / "build.json"):
        raise IntegrityError(f"{folder}: the figures are of another cohort; {again}")
    return account


def is_released(study: Path) -> bool:
    """Whether `STUDY/release` is of the cohort that the study holds now. Raises IntegrityError where it cannot be told."""
    path = study / _RELEASE / "outputs.json"
    if not path.is_file():
        return False
    account = _read_sealed(path, f"run 'crmo-fhir release {study}' again")
    return bool(account["build"] == sha256_of(study / "cohort" / "build.json"))


def write_release(study: Path, files: Mapping[str, str], account: Mapping[str, Any]) -> None:
    """Write `STUDY/release`, as `write_outputs` writes the figures of a study."""
    folder = study / _RELEASE
    folder.mkdir(mode=0o700, exist_ok=True)
    write_outputs(study, files, account, folder)


def read_releases(study: Path) -> list[dict[str, Any]]:
    """What was released of a study before, oldest first. Raises IntegrityError where a receipt is not what was written."""
    found = sorted((study / _RECEIPTS).glob("release-*.json"), key=lambda path: (len(path.name), path.name))
    return [_read_sealed(path, "no release can be held against it: put it back from a copy") for path in found]


def keep_release(study: Path, receipt: Mapping[str, Any]) -> None:
    """Keep what a release holds, exact and as released, where no later extract touches it; once for the same figures.

    It is for its owner alone and never leaves the study: it holds what the release hides.
    """
    earlier = read_releases(study)
    if not any(one["results"] == receipt["results"] for one in earlier):
        write_receipt(study, f"release-{len(earlier) + 1}.json", receipt)


def read_reviews(study: Path) -> list[dict[str, Any]]:
    """The reviews of a study, oldest first. Raises IntegrityError where one is missing or is not what was written."""
    reviews = []
    for number, path in enumerate(_review_files(study), start=1):
        expected = path.with_name(_review_name(number))
        if path != expected:
            raise IntegrityError(f"{expected}: is missing; put it back from a copy")
        review = _read_sealed(path, "put it back from a copy")
        if review["number"] != number:
            raise IntegrityError(f"{path}: is another review under this name; put the right one back from a copy")
        reviews.append(review)
    return reviews


def write_review(study: Path, number: int, review: Mapping[str, Any]) -> None:
    """Keep what a review says, where no later extract or build touches it."""
    _write_kept(study / _REVIEWS, _review_name(number), {**review, "number": number})


def _review_name(number: int) -> str:
    return f"{number:04}.json"


def _review_files(study: Path) -> list[Path]:
    return sorted((study / _REVIEWS).glob("[0-9]*.json"), key=lambda path: (len(path.name), path.name))


def _review_hashes(study: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in _review_files(study)}


def write_new(path: Path, content: bytes, study: Path) -> None:
    """Write a file for its owner alone and in one step. Raises UsageError where there is one, or where it may not stand."""
    if path.is_symlink() or path.exists():
        raise UsageError(f"{path}: is there already and is not written over; choose another name")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder; make it, or choose another")
    place, own = path.parent.resolve(), study.resolve()
    if own in place.parents or (place == own and (path.name in (*OUTPUTS, *ON_REQUEST) or path.name.startswith("."))):
        raise UsageError(f"{path}: that place is the program's own; choose another")
    write_whole(path, (content,))


def check_table(path: Path) -> None:
    """Raise UsageError where a table cannot stand: in no folder, in place of a folder, or among the files of a study."""
    check_text(path)
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder; make it, or choose another")
    if path.is_dir() or path.is_symlink():
        raise UsageError(f"{path}: is no file; choose another name")
    place = path.parent.resolve()
    in_study = path.name in OUTPUTS and (place / "raw" / "manifest.json").exists()
    if in_study or any((folder.parent / "raw" / "manifest.json").exists() for folder in (place, *place.parents)):
        raise UsageError(f"{path}: that place is the program's own; choose another")


def write_whole(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file for its owner alone and in one step; what it replaces is there until then."""
    staged = _staged(path.parent, path.name)
    try:
        _write_pieces(staged, pieces)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _staged(study: Path, name: str) -> Path:
    return study / f".{name}.new"


def read_receipts(study: Path) -> list[dict[str, Any]]:
    """The receipts of what was published from the study, oldest first. Raises IntegrityError where one was changed."""
    return [_read_sealed(path, _RESTORE) for path in sorted((study / _RECEIPTS).glob("publish-[0-9]*.json"))]


def read_dry_run(study: Path) -> dict[str, Any] | None:
    """What the last dry run of `publish` has shown, in the form of a receipt."""
    path = study / _RECEIPTS / DRY_RUN
    return _read_sealed(path, _RESTORE) if path.is_file() else None


def write_receipt(study: Path, name: str, receipt: Mapping[str, Any]) -> None:
    """Write a receipt in one step; what it replaces is there until then."""
    _write_kept(study / _RECEIPTS, name, receipt)


def _write_kept(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    _write(_staged(folder, name), _sealed(content))
    _staged(folder, name).replace(folder / name)
    _sync_folder(folder)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex; IntegrityError where the disk does not give it."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror}); mend the disk") from error


def _write(path: Path, text: str) -> dict[str, Any]:
    return _write_bytes(path, text.encode("utf-8"))


def _write_bytes(path: Path, content: bytes, *, sync: bool = True) -> dict[str, Any]:
    return _write_pieces(path, (content,), sync=sync)


def _write_lines(path: Path, lines: Iterable[str]) -> dict[str, Any]:
    return _write_pieces(path, (f"{line}\n".encode() for line in lines))


def _write_pieces(path: Path, pieces: Iterable[bytes], *, sync: bool = True) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
            file.flush()
            if sync:
                os.fsync(file.fileno())
    except OSError as error:
        raise IntegrityError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from error
    return {"sha256": digest.hexdigest(), "bytes": size}


def _swap(staging: Path, target: Path) -> None:
    """Put a finished folder in the place of an older one, and drop the figures that came of that.

    `_mend` undoes the half of it where the run ends between the two renames.
    """
    _sync_folder(staging)
    for name in (*OUTPUTS, *ON_REQUEST):
        (target.parent / name).unlink(missing_ok=True)
    old = target.with_name(f".{target.name}-old")
    if target.exists():
        target.rename(old)
    staging.rename(target)
    _sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _mend(study: Path) -> None:
    """Put back what was taken away and not replaced; remove what is half-written or was replaced."""
    for name in ("raw", "cohort"):
        new, old = study / f".{name}-new", study / f".{name}-old"
        if old.is_dir() and not (study / name).exists():
            old.rename(study / name)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(spill_folder(study), ignore_errors=True)
    for name in (*OUTPUTS, *ON_REQUEST):
        for folder in (study, study / _RELEASE):
            _staged(folder, name).unlink(missing_ok=True)
    for folder in (study / _RECEIPTS, study / _REVIEWS):
        for left in folder.glob(".*.new"):
            left.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        raise IntegrityError(f"{folder}: cannot be written ({error.strerror}); mend the disk") from error
    finally:
        os.close(handle)
