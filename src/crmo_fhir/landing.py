"""The study folder: records landed as they came, with a manifest written last; everything atomic and hash-checked.

`STUDY/raw` is complete only where its manifest says so; whatever is read from it is compared with the manifest's
SHA-256 first. A folder that is not ours, or was made with other arguments, is refused and left as it is.
"""

import csv
import fcntl
import hashlib
import io
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crmo_fhir.errors import IncompleteError, IntegrityError, LockError, UsageError
from crmo_fhir.fhir.references import Key
from crmo_fhir.model.records import Broken, Pull, RawFile, Record

FORMAT = 1
OUTPUTS = ("results.csv", "table1.csv", "measure.json", "library.json", "measure-report.json", "report.html")


@dataclass(frozen=True, slots=True)
class Raw:
    """What `STUDY/raw` holds: the manifest, its own SHA-256, the files to read, and the fullUrls references may use."""

    manifest: dict[str, Any]
    sha256: str
    files: tuple[RawFile, ...]
    aliases: dict[str, Key]


@contextmanager
def hold(study: Path, *, create: bool = False) -> Iterator[None]:
    """Hold the study against other runs (an flock, gone with the process). Raises LockError at once if it is held."""
    if create:
        try:
            study.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{study}: cannot make the study folder ({error.strerror}); choose another with -o"
            ) from error
    if not study.is_dir():
        raise UsageError(f"{study}: no such study folder; make one with 'crmo-fhir extract'")
    try:
        handle = os.open(study / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UsageError(f"{study}: cannot write there ({error.strerror}); choose another folder with -o") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LockError(
                f"{study}: another run is at work in this folder; wait for it or choose another with -o"
            ) from error
        yield
    finally:
        os.close(handle)


def refuse_foreign(study: Path, request: Mapping[str, Any]) -> None:
    """Raise UsageError unless `study` is new, empty, or was made by this very request."""
    _recover(study)
    manifest = study / "raw" / "manifest.json"
    if manifest.is_file():
        made = _read_manifest(manifest).get("request", {})
        differ = sorted(k for k in {*made, *request} if made.get(k) != request.get(k))
        if differ:
            raise UsageError(f"{study}: made with other arguments ({', '.join(differ)}); choose another folder with -o")
    elif study.is_dir() and any(entry.name != ".lock" for entry in study.iterdir()):
        raise UsageError(f"{study}: holds files that are no study of ours; choose an empty folder with -o")


def land(study: Path, pull: Pull, request: Mapping[str, Any], day: str, misfit: Callable[[Record], str | None]) -> None:
    """Write `STUDY/raw` from a pull, the manifest last, in place of an earlier one of the same request.

    `misfit` says which element of a record has a shape no reader of its type expects (it goes to quarantine), `day` is
    the day of the extraction. Raises IncompleteError where something that could matter is in quarantine: then the
    manifest says `"complete": false`, and an earlier complete pull stays as it was.
    """
    records, broken = [], list(pull.broken)
    for record in pull.records:
        if reason := misfit(record):
            place = record.origin.rpartition(":")
            broken.append(Broken(place[0] or record.origin, place[2], reason, record.text))
        else:
            records.append(record)
    blocking = [b for b in broken if b.matters]
    complete = not blocking
    if not complete and _is_complete(study):
        _refuse(blocking, study, kept=True)
    staging = study / ".raw-new"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    main = _main_base(records, pull.base)
    files: dict[str, dict[str, Any]] = {}
    for (resource_type, base), own in sorted(_split(records).items(), key=lambda item: (item[0][0], str(item[0][1]))):
        others = sorted({str(r.base) for r in records if r.base != main})
        name = f"{resource_type}.ndjson" if base == main else f"{resource_type}@{others.index(str(base)) + 1}.ndjson"
        lines = [r.text for r in sorted(own, key=lambda r: (r.id, r.text))]
        files[name] = {**_write(staging / name, "".join(f"{line}\n" for line in lines)), "count": len(lines)}
        files[name] |= {"type": resource_type, "base": base}
    text = {
        "quarantine.ndjson": "".join(
            _quarantined(b) for b in sorted(broken, key=lambda b: (b.file, b.place, b.reason))
        ),
        "origins.ndjson": "".join(_origin(r) for r in sorted(records, key=lambda r: (r.type, r.id, str(r.base)))),
        "ledger.csv": _csv(
            ["patient", "type", "state", "count", "reason"],
            sorted((row.patient, row.type, row.state, row.count, row.reason) for row in pull.ledger),
        ),
    }
    for name, content in text.items():
        files[name] = _write(staging / name, content)
    manifest = {
        "format": FORMAT,
        "complete": complete,
        "extracted": day,
        "request": dict(request),
        "source": {
            "name": pull.source,
            "base": main,
            "server": pull.server,
            "fhirVersions": pull.fhir_versions,
            "records": dict(sorted(pull.type_counts.items())),
            "files": [
                {"name": f.name, "size": f.size, "sha256": f.sha256, "read": f.read}
                for f in sorted(pull.files, key=lambda f: f.name)
            ],
            "searches": pull.searches,
        },
        "files": files,
        "quarantined": {"blocking": len(blocking), "harmless": len(broken) - len(blocking)},
        "warnings": pull.warnings,
    }
    _write(staging / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    for name in OUTPUTS:
        (study / name).unlink(missing_ok=True)
    shutil.rmtree(study / "cohort", ignore_errors=True)
    _swap(staging, study / "raw")
    if not complete:
        _refuse(blocking, study, kept=False)


def _refuse(blocking: Sequence[Broken], study: Path, *, kept: bool) -> None:
    first = min(blocking, key=lambda b: (b.file, b.place))
    more = f" and {len(blocking) - 1} more" if len(blocking) > 1 else ""
    where = "the earlier complete pull is kept" if kept else f"see {study / 'raw' / 'quarantine.ndjson'}"
    raise IncompleteError(
        f"{first.file}:{first.place.removeprefix('line ')}: cannot be read ({first.reason}){more}; {where}; correct the source and extract again"
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
    return json.dumps(row, ensure_ascii=True) + "\n"


def _origin(record: Record) -> str:
    row = {
        "type": record.type,
        "id": record.id,
        "base": record.base,
        "fullUrl": record.full_url,
        "origin": record.origin,
        "idAssigned": record.id_assigned,
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def open_raw(study: Path) -> Raw:
    """Read the manifest of `STUDY/raw` and check every file against it.

    Raises UsageError where there is no study, IncompleteError for an incomplete pull, IntegrityError where a file is
    missing, was added or changed.
    """
    _recover(study)
    path = study / "raw" / "manifest.json"
    if not path.is_file():
        raise UsageError(
            f"{study}: no complete pull here (raw/manifest.json is missing); run 'crmo-fhir extract' first"
        )
    manifest = _read_manifest(path)
    if manifest.get("complete") is not True:
        raise IncompleteError(f"{path}: this pull is incomplete; correct the source and run 'crmo-fhir extract' again")
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


def _check_files(folder: Path, expected: Mapping[str, str], also: set[str]) -> None:
    present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    for name, digest in sorted(expected.items()):
        if name not in present:
            raise IntegrityError(f"{folder / name}: is missing; extract again")
        if sha256_of(folder / name) != digest:
            raise IntegrityError(f"{folder / name}: is not what was written (its SHA-256 differs); extract again")
    if extra := sorted(present - set(expected) - also):
        raise IntegrityError(f"{folder / extra[0]}: was not written by this study; remove it or extract again")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path}: cannot be read as a manifest; extract again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise IntegrityError(f"{path}: not a manifest of this version of crmo-fhir; extract into a new folder")
    return manifest


def _is_complete(study: Path) -> bool:
    path = study / "raw" / "manifest.json"
    return path.is_file() and _read_manifest(path).get("complete") is True


def write_cohort(study: Path, files: Mapping[str, bytes], build: Mapping[str, Any]) -> None:
    """Write `STUDY/cohort` at once: its tables, and `build.json` with their hashes and what they were built from."""
    staging = study / ".cohort-new"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    written = {name: _write_bytes(staging / name, content)["sha256"] for name, content in sorted(files.items())}
    _write(staging / "build.json", json.dumps({**build, "files": written}, indent=1, sort_keys=True) + "\n")
    for name in OUTPUTS:
        (study / name).unlink(missing_ok=True)
    _swap(staging, study / "cohort")


def open_cohort(study: Path, raw: Raw) -> dict[str, Any]:
    """The build record of `STUDY/cohort`, after its files were compared with it.

    Raises UsageError where nothing was built, IntegrityError where a file changed or the cohort is of another pull.
    """
    path = study / "cohort" / "build.json"
    if not path.is_file():
        raise UsageError(f"{study}: no cohort here; run 'crmo-fhir build {study}' first")
    try:
        build = json.loads(path.read_text(encoding="utf-8"))
        expected = dict(build["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path}: cannot be read; run 'crmo-fhir build' again") from error
    if build.get("raw") != raw.sha256:
        raise IntegrityError(f"{study}: the cohort was built from another pull; run 'crmo-fhir build {study}' again")
    _check_files(study / "cohort", expected, {"build.json"})
    return dict(build)


def write_outputs(study: Path, files: Mapping[str, str]) -> None:
    """Write the figures of a study: every file complete under another name first, then all renamed."""
    for name, text in files.items():
        _write(study / f".{name}.new", text)
    for name in files:
        (study / f".{name}.new").replace(study / name)
    _sync_folder(study)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _write(path: Path, text: str) -> dict[str, Any]:
    return _write_bytes(path, text.encode("utf-8"))


def _write_bytes(path: Path, content: bytes) -> dict[str, Any]:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise IntegrityError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from error
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _swap(staging: Path, target: Path) -> None:
    """Put a finished folder in the place of an older one; `_recover` mends a crash between the two renames."""
    _sync_folder(staging)
    old = target.with_name(f".{target.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    staging.rename(target)
    _sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _recover(study: Path) -> None:
    for name in ("raw", "cohort"):
        old = study / f".{name}-old"
        if old.is_dir() and not (study / name).exists():
            old.rename(study / name)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
