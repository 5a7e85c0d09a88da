"""A bulk export of a FHIR server: begun, waited for, fetched and checked file by file, and ended (Bulk Data Access IG).

STU2 and STU3 are begun by GET with a query, STU4 (4.0.0-ballot) by POST with Parameters, and a server that refuses the one
is asked once by the other. A kick-off makes a job, so it is sent again only where the server said that it took none (429,
503): one whose answer is lost would leave a second copy of everybody's records on the server, which nobody deletes.
Medication, which is nobody's, is searched for where a server does not export it with patients or a group.

What it holds to (numbers are the documented limits):

* A server that prepares an export is not a failing one. Its waits are as long as `Retry-After` says, at least 1 s and up
  to 300 s each, else 1, 2, 4 ... 60 s; they stand outside the retry budget and end after 24 h, or after 10 answers of 429
  in a row. What it calls transient, and what a gateway answers for it, is waited out within the retry budget.
* Every URL of a manifest is on the server's own origin or an allowed one. Files are fetched with credentials only where
  the manifest asks for them, by as many threads as the client has workers.
* A file counts when each line is a resource of its type, the last line is not cut, and they are as many as the manifest
  says. A line that is no JSON is left to who reads the data. The limit of a line is 128 MiB; only one line at a time is
  in memory.
* A file whose link no longer works (403, 404, 410) is fetched by the link of a manifest asked for anew, once.
* The state stands in `job.json` beside the files. A run that was cut off is gone on with: the same job, the files it has.
  Where that leads to no whole export either, a new one is begun.
* The job is deleted on the server by `finish`, when the study is written and verified, and by nothing else.
"""

import hashlib
import os
import re
import shutil
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urljoin

import msgspec

from crmo_fhir.errors import CrmoFhirError, IncompleteError, IntegrityError, NetworkError, SignInError, UsageError
from crmo_fhir.fhir import strict
from crmo_fhir.fhir.client import (
    FHIR_JSON,
    MAX_RETRY_AFTER,
    NDJSON,
    Answer,
    FhirClient,
    ForbiddenError,
    RefusedError,
    retry_after,
)
from crmo_fhir.fhir.outcomes import issue_codes, said
from crmo_fhir.fhir.search import Account, count, search
from crmo_fhir.model.records import READ_TYPES, Pull, State
from crmo_fhir.source import plan

LEVELS = {"export": "system", "patient-export": "patient", "group-export": "group"}
"""The operations of the Bulk Data IG, by the last part of their canonical URLs, and the level of each."""

MAX_WAITING = 24 * 3600.0
MAX_TOO_SOON = 10
MAX_MANIFESTS_WITHOUT_NEWS = 3
MAX_LINE = 128 * 1024 * 1024
MAX_OUTCOME = 1024 * 1024
MAX_PROBLEMS = 20
_PIECE = 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_STATE = "job.json"
_IG = "hl7.org/fhir/uv/bulkdata/"
_TYPE = re.compile(r"[A-Z][A-Za-z]{1,63}")
_GROUP = re.compile(r"(?!\.\.?$)[A-Za-z0-9.-]{1,64}")
_SEVERITIES = ("fatal", "error", "warning", "information", "success")
_TRANSIENT = {"transient", "timeout", "throttled"}
_TOOK_NONE = (429, 503)
_GATEWAY = (408, 502, 503, 504)
_JOB_FAILURES = frozenset(range(400, 600)) - {401, 403}
_Kind = Literal["output", "deleted", "outcome"]


@dataclass(slots=True)
class Export:
    """How an export came; its files stand in the folder it was fetched into.

    `transaction_time` is the server's snapshot (a FHIR instant), `counts` the resources that came, by type. Where there
    are `problems`, the server says that it left something out; `warnings` say what could not be verified. `files` has for
    each file of resources its name, type (empty for one of many types), count, declared count or None, bytes, sha256 and
    whether its end was `framed`. `deletions`: the server says which resources were deleted, be it that none were.
    """

    transaction_time: str
    status_url: str
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    files: list[dict[str, object]] = field(default_factory=list)
    deletions: bool = False
    types: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


class _File(msgspec.Struct, frozen=True):
    """One file of a manifest; `type` is empty where it holds many, `signed` says whether it is fetched with credentials."""

    kind: _Kind
    type: str
    url: str
    count: int | None
    signed: bool


class _Done(msgspec.Struct, frozen=True):
    """A file that was fetched and found good; `lines` are those that count, `counts` the resources among them by type."""

    bytes: int
    sha256: str
    framed: bool
    lines: int
    counts: dict[str, int]


class _Asked(msgspec.Struct, frozen=True):
    """What was asked for: another run goes on with a job only where it asks for the same."""

    base: str
    level: str
    since: str
    types: tuple[str, ...]
    filters: tuple[str, ...]


class _Job(msgspec.Struct):
    """The state of an export: what was asked for, which of its types the server was asked for, and how far it came.

    Its names make `source.pieces` take it for the manifest it is, and the base of the files from its `request`. `others`
    are the files of types that were not asked for.
    """

    transaction_time: str = msgspec.field(name="transactionTime")
    request: str
    asked: _Asked
    types: tuple[str, ...]
    status_url: str
    files: list[_File] = []
    done: dict[str, _Done] = {}
    deletions: bool = False
    others: int = 0


class _Line(msgspec.Struct):
    """As much of a resource as must be looked at."""

    type: str = msgspec.field(name="resourceType", default="")


class _Deletions(_Line):
    """As much of a Bundle of deletions."""

    entry: list[msgspec.Raw] = []


@dataclass(frozen=True, slots=True)
class _KickOff:
    """One way to ask for an export."""

    post: bool
    types: tuple[str, ...]
    formatted: bool = True


@dataclass(slots=True)
class _Run:
    """What a run knows while it fetches; `state` guards the job, `checking` lets one file at a time be checked.

    To check is work of the processor, of which threads have one between them, and each may hold a long line.
    """

    client: FhirClient
    folder: Path
    job: _Job
    note: Callable[[str], None]
    progress: Callable[[str, int, int | None], None]
    state: threading.Lock = field(default_factory=threading.Lock)
    checking: threading.Lock = field(default_factory=threading.Lock)

    @property
    def where(self) -> str:
        """How messages name the export."""
        return f"{self.client.host}, $export"

    def named(self) -> list[tuple[str, _File]]:
        """The files with the names they have here, which are made of nothing a server says but a type we asked for."""
        return [(_name(number, file), file) for number, file in enumerate(self.job.files, 1)]


def _name(number: int, file: _File) -> str:
    if file.kind == "output":
        return f"{number}.{file.type or 'mixed'}.ndjson"
    # What the server says of the export itself is not among the data: hidden.
    return f"deleted.{number}.ndjson" if file.kind == "deleted" else f".outcome.{number}.ndjson"


# ------------------------------------------------------------------------------------------------- what a server declares


def levels(capability: Mapping[str, Any]) -> set[str]:
    """The levels a server declares an export at: system, patient, group.

    An operation is known by its canonical URL or its name (HAPI gives the one of Patient a URL of its own). A server that
    only says that it instantiates the IG's CapabilityStatement has what that one has: all three.
    """
    found = {_level(kind, operation) for kind, operation in _operations(capability)} - {""}
    return found or (set(LEVELS.values()) if _canonicals(capability, "instantiates") else set())


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _operations(capability: Mapping[str, Any]) -> Iterator[tuple[object, dict[str, Any]]]:
    """Each operation with the resource type it is declared for, or an empty one."""
    for rest in _dicts(capability.get("rest")):
        for operation in _dicts(rest.get("operation")):
            yield "", operation
        for resource in _dicts(rest.get("resource")):
            for operation in _dicts(resource.get("operation")):
                yield resource.get("type"), operation


def _level(kind: object, operation: Mapping[str, Any]) -> str:
    last = str(operation.get("definition")).partition("|")[0].rpartition("/")[2]
    known = last if last in LEVELS else str(operation.get("name")).removeprefix("$")
    if kind in ("Patient", "Group"):
        return str(kind).lower() if known in LEVELS else ""
    return LEVELS.get(known, "") if kind == "" else ""


def _canonicals(capability: Mapping[str, Any], member: str) -> list[str]:
    urls = capability.get(member)
    return [url for url in (urls if isinstance(urls, list) else []) if isinstance(url, str) and _IG in url]


def _is_stu4(capability: Mapping[str, Any]) -> bool:
    """Whether the server's `$export` is of STU4, which takes no GET; one that names no version is of before."""
    definitions = [
        str(operation.get("definition"))
        for _, operation in _operations(capability)
        if str(operation.get("name")).removeprefix("$") in LEVELS
    ]
    guides = [url for member in ("instantiates", "implementationGuide") for url in _canonicals(capability, member)]
    versions = [[url.partition("|")[2] for url in urls if "|" in url] for urls in (definitions, guides)]
    stated = versions[0] or versions[1]
    return bool(stated) and all(version.startswith("4") for version in stated)


# ---------------------------------------------------------------------------------------------------- the whole of it


def export(
    client: FhirClient,
    capability: Mapping[str, Any],
    folder: Path,
    level: str,
    *,
    since: str = "",
    types: Sequence[str] = READ_TYPES,
    type_filters: Sequence[str] = (),
    note: Callable[[str], None],
    progress: Callable[[str, int, int | None], None],
) -> Export:
    """Export from a server into `folder`, which is ours alone: `<n>.<Type>.ndjson`, and `deleted.<n>.ndjson` of Bundles.

    `level` is system, patient or group:ID; `since` a FHIR instant, after which resources must have changed. `type_filters`
    are searches (`Condition?code=…`) that a server may use or ignore, so what comes is to be tested in either case. What an
    earlier run with the same arguments began is gone on with. `note` is told what goes on; `progress`, of each type, how
    many resources have come, and how many are to come where the manifest says so.

    Raises UsageError for a group that no id can name; IncompleteError where the server does not export, or what came is
    not what its manifest says; NetworkError, SignInError and IntegrityError as the client does, NetworkError too after
    24 h of waiting. Nothing is deleted on the server (`finish` does that).
    """
    asked = _Asked(client.base, level, since, tuple(types), tuple(type_filters))
    path = _path(level)
    job = _recalled(folder)
    if job is not None and job.asked == asked:
        note("the export of an earlier run is gone on with")
        try:
            return _fetch(_Run(client, folder, job, note, progress), 0)
        except (IncompleteError, ForbiddenError):
            client.tell(f"{client.host}: the export of the earlier run does not come whole; a new one is begun")
    answer, kick_off = _begin(client, path, asked, _KickOff(_is_stu4(capability), asked.types))
    job = _Job("", f"{client.base}/{path}", asked, kick_off.types, _status_url(client, answer))
    _clear(folder)
    run = _Run(client, folder, job, note, progress)
    _save(run)
    return _fetch(run, _polite(run, _asked_wait(answer), 0))


def finish(client: FhirClient, folder: Path) -> None:
    """Delete the job on the server, when all it gave is landed and verified, and remove `folder`.

    A server that has no such job (404, 410) or does not do that (405, 501) is fine; where the request fails, the user is
    told. What a killed run left of the folder is removed. IntegrityError where it cannot be.
    """
    job = _recalled(folder)
    if job is not None:
        try:
            client.send("DELETE", job.status_url, b"", {"Accept": FHIR_JSON}, expect=(404, 405, 410, 501))
        except CrmoFhirError:
            client.tell(f"{client.host}: the export could not be deleted on the server, which may keep it for a while")
    _remove(folder)


def _fetch(run: _Run, wait: float) -> Export:
    """Wait `wait` seconds and then for the manifest, unless it is there already; fetch its files and give account."""
    if not run.job.transaction_time:
        run.job.files = _manifests(run, wait)
        _save(run)
    _download_all(run)
    return _account(run)


# ------------------------------------------------------------------------------------------------------- the beginning


def _path(level: str) -> str:
    if level == "system":
        return "$export"
    if level == "patient":
        return "Patient/$export"
    group = level.removeprefix("group:")
    if group == level or not _GROUP.fullmatch(group):
        raise UsageError("the id of the group is none of FHIR's (letters, digits, - and .); give --group ID")
    return f"Group/{quote(group)}/$export"


def _begin(client: FhirClient, path: str, asked: _Asked, kick_off: _KickOff) -> tuple[Answer, _KickOff]:
    """Ask for the export, and where that is refused for its form, in another form; each form once."""
    tried = {kick_off}
    while True:
        try:
            return _kick_off(client, path, asked, kick_off), kick_off
        except RefusedError as error:
            forms = [form for form in _other_forms(error, asked, kick_off) if form not in tried]
            if not forms:
                raise
            kick_off = forms[0]
            tried.add(kick_off)


def _other_forms(error: RefusedError, asked: _Asked, kick_off: _KickOff) -> Iterator[_KickOff]:
    """The forms that may be taken where one was refused, the likeliest first."""
    if error.status == 400 and "_outputFormat" in str(error):
        yield replace(kick_off, formatted=False)
    if error.status in (400, 422) and asked.level != "system":
        # Not in the compartment of a patient: some servers (HAPI) refuse such a type, others send what is referred to.
        # Then it is searched for.
        yield replace(kick_off, types=tuple(kind for kind in kick_off.types if kind != "Medication"))
    if error.status in (405, 501) or (error.status in (400, 404) and "not-supported" in error.codes):
        yield replace(kick_off, post=not kick_off.post)


def _kick_off(client: FhirClient, path: str, asked: _Asked, kick_off: _KickOff) -> Answer:
    """Send a kick-off until the server takes or refuses it."""
    headers = {"Accept": FHIR_JSON, "Prefer": "respond-async"}
    since = [("_since", asked.since)] if asked.since else []
    filters = [("_typeFilter", query) for query in asked.filters]
    if kick_off.post:
        # STU4 has no lists divided by commas; the format it gives unasked is the one we read.
        parts = [("_type", kind) for kind in kick_off.types] + filters
        parameters: list[dict[str, str]] = [{"name": name, "valueString": value} for name, value in parts]
        parameters += [{"name": name, "valueInstant": value} for name, value in since]
        url, method = client.url(path), "POST"
        body = msgspec.json.encode({"resourceType": "Parameters", "parameter": parameters})
    else:
        formats = [("_outputFormat", NDJSON)] if kick_off.formatted else []
        url = client.url(path, [("_type", ",".join(kick_off.types)), *since, *filters, *formats])
        method, body = "GET", b""
    attempt = 0
    while (answer := client.send(method, url, body, headers, expect=_TOOK_NONE)).status in _TOOK_NONE:
        client.pause(url, f"the server answers {answer.status}", attempt, _asked_wait(answer))
        attempt += 1
    if answer.status != 202:
        raise IncompleteError(
            f"{client.host}, $export: the server answers {answer.status} instead of 202, so it has begun no export; take "
            "--mode search"
        )
    return answer


def _status_url(client: FhirClient, answer: Answer) -> str:
    said_url = answer.headers.get("content-location", "").strip()
    if not said_url:
        raise IncompleteError(
            f"{client.host}, $export: the server does not say where the state of the export is (no Content-Location); "
            "take --mode search"
        )
    return _linked(client, answer.url, said_url, "the state of the export")


def _linked(client: FhirClient, base: str, url: str, what: str) -> str:
    """A URL out of an answer from `base`, absolute; IncompleteError where it leads to an origin that is not allowed."""
    try:
        return client.url(urljoin(base, url))
    except (IncompleteError, ValueError) as error:
        raise IncompleteError(
            f"{client.host}, $export: {what} is on another origin; it was not fetched (--allow-origin, if that is right)"
        ) from error


# --------------------------------------------------------------------------------------------------------- the waiting


def _asked_wait(answer: Answer) -> float | None:
    return retry_after(answer.headers.get("retry-after"), answer.headers.get("date"))


def _status(answer: Answer, where: str) -> int:
    """The status of the job: that of the answer, unless the server keeps the two apart (`separate-export-status`)."""
    stated = answer.headers.get("x-export-status", "").strip()
    if answer.status != 200 or not stated:
        return answer.status
    if not re.match(r"[2-5]\d\d\b", stated):
        raise IncompleteError(f"{where}: an X-Export-Status that is no status; run again")
    return int(stated[:3])


def _manifest(run: _Run, url: str, wait: float) -> tuple[dict[str, Any], str]:
    """Look at the state of the job, first after `wait` seconds, until there is a manifest: it, and its URL.

    Raises IncompleteError where the job has failed or is gone, NetworkError where it takes too long.
    """
    client, waited, looks, failures, too_soon = run.client, 0.0, 0, 0, 0
    while True:
        if wait:
            client.wait(wait)
        answer = client.answer("GET", url, headers={"Accept": "application/json"}, expect=_JOB_FAILURES)
        status = _status(answer, run.where)
        if status == 200:
            return client.json(answer), answer.url
        asked = _asked_wait(answer)
        if status in (202, 429):
            failures, too_soon = 0, too_soon + 1 if status == 429 else 0
            wait = _polite(run, asked, looks)
            looks, waited = looks + 1, waited + wait
            if waited > MAX_WAITING or too_soon > MAX_TOO_SOON:
                why = f"not ready after {MAX_WAITING / 3600:.0f} h" if waited > MAX_WAITING else "429 again and again"
                raise NetworkError(f"{run.where}: {why}; run again later, it goes on with the same export")
            percent = re.search(r"\d{1,3}(\.\d{1,2})?\s?%", answer.headers.get("x-progress", ""))
            share = f" ({percent[0]})" if percent else ""
            run.note(f"the server prepares the export{share}; the next look is in {wait:.0f} s")
            continue
        _refuse_failure(run, answer, status, asked)
        client.pause(url, f"the server answers {status}", failures, asked)
        failures, wait = failures + 1, 0.0


def _polite(run: _Run, asked: float | None, looks: int) -> float:
    """How long to wait before the next look, in seconds."""
    if asked is None:
        return float(min(60.0, 2.0**looks))
    if asked > MAX_RETRY_AFTER:
        run.client.tell(
            f"{run.where}: the server asks to wait {asked:.0f} s; the limit of {MAX_RETRY_AFTER:.0f} s is taken"
        )
    return min(MAX_RETRY_AFTER, max(1.0, asked))


def _refuse_failure(run: _Run, answer: Answer, status: int, asked: float | None) -> None:
    """Raise the error that a failed look means, unless it will pass."""
    try:
        outcome = strict.parse(answer.body.removeprefix(_BOM))
    except ValueError:
        outcome = None
    codes = issue_codes(outcome, _SEVERITIES)
    if _TRANSIENT.intersection(codes) or (status == 503 and asked is not None):
        return
    if status in _GATEWAY and not codes:  # of a gateway, which knows nothing of the job
        return
    words = said(outcome, (*run.job.asked.types, "$export"))
    shown = f"{status} ({words})" if words else f"{status}"
    what = "the server no longer holds the export:" if status in (404, 410) else "the export failed on the server with"
    raise IncompleteError(f"{run.where}: {what} {shown}; run again")


# ------------------------------------------------------------------------------------------------------- the manifests


def _manifests(run: _Run, wait: float) -> list[_File]:
    """The files of the manifest and of those it links to; the job takes note of the rest of them."""
    job, url, seen, without_news = run.job, run.job.status_url, set[str](), 0
    files: list[_File] = []
    known: set[tuple[str, str, str]] = set()
    others, times, deletions = 0, list[str](), False
    while url:
        seen.add(url)
        manifest, place = _manifest(run, url, wait)
        wait = 0.0
        times.append(_transaction_time(run, manifest))
        deletions = deletions or manifest.get("deleted") is not None
        listed, left = _files_of(run, manifest, place)
        others += left
        before = len(files)
        for file in listed:
            if (key := (file.kind, file.type, file.url)) not in known:
                known.add(key)
                files.append(file)
        without_news = 0 if len(files) > before else without_news + 1
        links = [link.get("url") for link in _dicts(manifest.get("link")) if link.get("relation") == "next"]
        url = ""
        if links:
            if not isinstance(links[0], str) or not links[0]:
                raise _ill(run, "link")
            url = _linked(run.client, place, links[0], "the next manifest")
        if url in seen or without_news > MAX_MANIFESTS_WITHOUT_NEWS:
            raise IncompleteError(f"{run.where}: the links of the manifests go in circles; run again")
    # Of several snapshots the earliest: what changed after it comes again with the next pull.
    job.transaction_time = min(times, key=datetime.fromisoformat)
    job.deletions, job.others = deletions, others
    return files


def _ill(run: _Run, member: str) -> IncompleteError:
    return IncompleteError(f"{run.where}: the manifest has no {member}, or not as the IG gives it; run again")


def _transaction_time(run: _Run, manifest: Mapping[str, Any]) -> str:
    time = manifest.get("transactionTime")
    try:
        if isinstance(time, str) and datetime.fromisoformat(time).tzinfo is not None:
            return time
    except ValueError:
        pass
    raise _ill(run, "transactionTime")


def _files_of(run: _Run, manifest: Mapping[str, Any], place: str) -> tuple[list[_File], int]:
    """The files a manifest lists, and how many more it lists of types that were not asked for."""
    signed, organised = manifest.get("requiresAccessToken"), manifest.get("outputOrganizedBy")
    if not isinstance(signed, bool):
        raise _ill(run, "requiresAccessToken")
    if organised is not None and not isinstance(organised, str):
        raise _ill(run, "outputOrganizedBy")
    files, others = [], 0
    kinds: dict[str, _Kind] = {"output": "output", "deleted": "deleted", "error": "outcome", "outcome": "outcome"}
    for member, kind in kinds.items():
        items = manifest.get(member)
        if items is None and member != "output":
            continue
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise _ill(run, member)
        for item in items:
            url, count = item.get("url"), item.get("count")
            type_name = "Bundle" if kind == "deleted" else "OperationOutcome"
            if not isinstance(url, str) or not url.strip():
                raise _ill(run, f"{member}.url")
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
                raise _ill(run, f"{member}.count")
            if kind == "output":
                type_name = item.get("type", "" if organised else None)
                if not isinstance(type_name, str) or not (_TYPE.fullmatch(type_name) or (organised and not type_name)):
                    raise _ill(run, f"{member}.type")
                if type_name and type_name not in run.job.asked.types:
                    others += 1
                    continue
                type_name = "" if organised else type_name
            files.append(_File(kind, type_name, _linked(run.client, place, url, "a file"), count, signed))
    return files, others


def _renewed(run: _Run, index: int, stale: _File) -> _File:
    """The same file by the link of a newer manifest, which is asked for unless another thread has done so."""
    with run.state:
        if run.job.files[index] is stale:
            files = _manifests(run, 0.0)
            if [(file.kind, file.type, file.count) for file in files] != [
                (file.kind, file.type, file.count) for file in run.job.files
            ]:
                raise IncompleteError(f"{run.where}: the manifest, asked for again, lists other files; run again")
            run.job.files = files
            _save(run)
        return run.job.files[index]


# ----------------------------------------------------------------------------------------------------------- the files


def _download_all(run: _Run) -> None:
    """Fetch and check all files; the first that is not good ends it."""
    named = run.named()
    expected: dict[str, int | None] = {}
    for _, file in named:
        before = expected.get(file.type, 0)
        expected[file.type] = None if before is None or file.count is None else before + file.count
    came: Counter[str] = Counter()
    pool, finish_others = ThreadPoolExecutor(run.client.workers), True
    try:
        work = {pool.submit(_download, run, index, name): file for index, (name, file) in enumerate(named)}
        for one in as_completed(work):
            done = one.result()
            if work[one].kind == "output":
                came.update(done.counts)
                for kind in done.counts:
                    run.progress(kind, came[kind], expected.get(kind))
    except KeyboardInterrupt:
        finish_others = False  # who interrupts wants to leave at once
        raise
    finally:
        pool.shutdown(wait=finish_others, cancel_futures=True)


def _download(run: _Run, index: int, name: str) -> _Done:
    """Fetch one file and check it, unless that was done."""
    path, file, done = run.folder / name, run.job.files[index], run.job.done.get(name)
    if done is not None and _is_whole(path, done):
        return done
    try:
        got = run.client.download(file.url, path, signed=file.signed, accept=NDJSON)
    except (RefusedError, ForbiddenError) as error:
        if isinstance(error, RefusedError) and error.status not in (404, 410):
            raise
        file = _renewed(run, index, file)
        try:
            got = run.client.download(file.url, path, signed=file.signed, accept=NDJSON)
        except RefusedError as again:
            raise IncompleteError(
                f"{run.where}, file {index + 1}: it cannot be fetched ({again.status}), nor by the link of the manifest "
                "asked for again; run again"
            ) from again
    with run.checking:
        try:
            lines, counts = _check(path, file, f"{run.where}, file {index + 1} ({file.type or 'of many types'})")
        except IncompleteError as error:
            traceback.clear_frames(error.__traceback__)  # they hold the line, and there may be as many as threads
            raise
    done = _Done(got.bytes, got.sha256, got.framed, lines, counts)
    with run.state:
        run.job.done[name] = done
        _save(run)
    return done


def _is_whole(path: Path, done: _Done) -> bool:
    """Whether a file is there as an earlier run left it."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == done.sha256
    except OSError:
        return False


def _check(path: Path, file: _File, where: str) -> tuple[int, dict[str, int]]:
    """Hold a file against its manifest: the lines that count, and the resources among them by type.

    The head of a block in a file organised by patient (a Parameters) is no data. IncompleteError where a line is a resource
    of another type, the last one is cut, or they are not as many as declared.
    """
    decoder = msgspec.json.Decoder(_Deletions if file.kind == "deleted" else _Line)
    counts: Counter[str] = Counter()
    lines, entries, is_cut = 0, 0, False
    for line, is_ended in _lines(path, where, MAX_LINE):
        if not lines and line[:64].lstrip()[:1] == b"<":
            raise IncompleteError(f"{where}: an HTML or XML page instead of NDJSON; run again")
        try:
            found, is_cut = decoder.decode(line), False
        except msgspec.ValidationError as error:
            raise IncompleteError(f"{where}: a line that is no resource; run again") from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # No JSON, which is for who reads the data to judge, unless it is the end of the file.
            lines, is_cut = lines + 1, not is_ended or _ends_early(line)
            continue
        if not file.type and found.type == "Parameters":
            continue
        if found.type != file.type and (file.type or not _TYPE.fullmatch(found.type)):
            raise IncompleteError(f"{where}: it holds resources of another type; run again")
        lines += 1
        counts[found.type] += 1
        entries += len(found.entry) if isinstance(found, _Deletions) else 0
    if is_cut:
        raise IncompleteError(f"{where}: its last line is cut off; run again")
    # The IG does not say whether the count of a file of deletions is of Bundles or of what they delete.
    if file.count is not None and file.count not in ({lines, entries} if file.kind == "deleted" else {lines}):
        raise IncompleteError(f"{where}: the manifest says {file.count} resources and {lines} came; run again")
    return lines, dict(counts)


def _ends_early(line: bytes | bytearray) -> bool:
    """Whether a line that is no JSON is the beginning of one, be it that a line feed follows."""
    end = len(line)
    while end and line[end - 1] in b"\r\n":
        end -= 1
    try:
        msgspec.json.decode(memoryview(line)[:end], type=msgspec.Raw)
    except msgspec.DecodeError as error:
        return "truncated" in str(error)
    except (UnicodeDecodeError, RecursionError):
        return False
    return False


def _lines(path: Path, where: str, limit: int) -> Iterator[tuple[bytes | bytearray, bool]]:
    """The lines of a file that are not blank, divided at line feeds only, without BOM, and whether a line feed ends each.

    IncompleteError for a line of more than `limit` bytes, of which no more than that is ever in memory.
    """
    try:
        with path.open("rb") as stream:
            rest = bytearray()
            while piece := stream.readline(_PIECE):
                is_ended = piece.endswith(b"\n")
                if rest or not is_ended:
                    rest += piece
                if len(rest) > limit:
                    raise IncompleteError(
                        f"{where}: a line of more than {limit // 2**20} MiB; if it stays so, take --mode search"
                    )
                if not is_ended and len(piece) == _PIECE:
                    continue
                line = rest or piece
                if line.startswith(_BOM):
                    line = line[3:]
                if not line.isspace():
                    yield line, is_ended
                rest = bytearray()
            if rest:
                yield rest, False
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror}); run again") from error


# --------------------------------------------------------------------------------------------------------- the account


def _account(run: _Run) -> Export:
    job = run.job
    found = Export(job.transaction_time, job.status_url, deletions=job.deletions)
    counts: Counter[str] = Counter()
    uncounted = unframed = 0
    for index, (name, file) in enumerate(run.named(), 1):
        if file.kind != "output":
            continue
        done = job.done[name]
        counts.update({file.type: 0} if file.type else {})
        counts.update(done.counts)
        uncounted += file.count is None
        unframed += file.count is None and not done.framed
        if file.count is None and not done.lines:
            found.problems.append(
                f"{file.type or 'of many types'}: file {index} of the export is empty, and its count not said"
            )
        found.files.append(
            {
                "name": name,
                "type": file.type,
                "count": done.lines,
                "declared": file.count,
                "bytes": done.bytes,
                "sha256": done.sha256,
                "framed": done.framed,
            }
        )
    found.counts = {kind: counts[kind] for kind in sorted(counts)}
    found.types = list(found.counts)
    if job.others:
        found.warnings.append(f"{job.others} files of the export are of types not asked for; they were not fetched")
    if uncounted:
        found.warnings.append("the export's manifest has no counts: that all resources came cannot be told from it")
    if unframed:
        found.warnings.append(
            f"length unverified: {unframed} files of the export came with neither a length nor a count"
        )
    if job.asked.since and not job.deletions:
        found.warnings.append("the export does not say what was deleted since; only a pull of everything can tell")
    _take_outcomes(run, found)
    for kind in job.asked.types:
        if kind not in job.types:
            _search_instead(run, kind, found)
    return found


def _search_instead(run: _Run, kind: str, found: Export) -> None:
    """Fetch by search a type that the server does not export at this level: it is nobody's, so all of it may be read."""
    name = f"0.{kind}.ndjson"
    digest, size, ids = hashlib.sha256(), 0, set[str]()
    account = Account()
    try:
        with os.fdopen(_created(run.folder / name), "wb") as file:
            for match in search(run.client, kind, [("_count", "500")], account=account):
                line = f"{match.text}\n".encode()
                size += file.write(line)
                digest.update(line)
                ids.add(match.id)
    except (RefusedError, ForbiddenError):
        found.problems.append(f"{kind}: the server neither exports it at this level nor lets it be searched for")
        return
    except OSError as error:
        raise _unwritten(run.folder / name, error) from error
    found.counts = dict(sorted({**found.counts, kind: len(ids)}.items()))
    found.types = list(found.counts)
    found.files.append(
        {
            "name": name,
            "type": kind,
            "count": len(ids),
            "declared": account.total,
            "bytes": size,
            "sha256": digest.hexdigest(),
            "framed": account.framed,
        }
    )


def _take_outcomes(run: _Run, found: Export) -> None:
    """Add what the server says of the export itself: its errors are problems, anything less is a warning."""
    problems: Counter[str] = Counter()
    warnings: Counter[str] = Counter()
    for name, file in run.named():
        if file.kind != "outcome":
            continue
        for line, _ in _lines(run.folder / name, f"{run.where}, a file of errors", MAX_OUTCOME):
            try:
                outcome = strict.parse(bytes(line))
            except ValueError:
                outcome = None
            if issue_codes(outcome) or not issue_codes(outcome, _SEVERITIES):
                words = said(outcome, (*run.job.asked.types, "$export")) or "an outcome that cannot be read"
                problems[f"the server could not export everything: {words}"] += 1
            for code in issue_codes(outcome, ("warning", "information")):
                warnings[f"the server says of its export: {code}"] += 1
    shown = [f"{text} ({times} times)" if times > 1 else text for text, times in problems.items()]
    found.problems += shown[:MAX_PROBLEMS]
    if len(shown) > MAX_PROBLEMS:
        found.problems.append(f"the server reports {len(shown) - MAX_PROBLEMS} more kinds of errors of its export")
    found.warnings += warnings


# ----------------------------------------------------------------------------------------------------------- the state


def _recalled(folder: Path) -> _Job | None:
    """The job of an earlier run; None where there is none, or its state cannot be read."""
    try:
        return msgspec.json.decode((folder / _STATE).read_bytes(), type=_Job)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _save(run: _Run) -> None:
    """Write the state: whole or not at all. IntegrityError where the disk does not take it."""
    path, new = run.folder / _STATE, run.folder / f".{_STATE}"
    try:
        with os.fdopen(_created(new), "wb") as file:
            file.write(msgspec.json.encode(run.job))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        handle = os.open(run.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise _unwritten(path, error) from error


def _created(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)


def _unwritten(path: Path, error: OSError) -> IntegrityError:
    return IntegrityError(f"{path}: cannot be written ({error.strerror}); free space or choose another folder")


def _clear(folder: Path) -> None:
    """Make the folder, empty and for nobody else to read."""
    _remove(folder)
    try:
        folder.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise IntegrityError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise IntegrityError(
            f"{folder}: cannot be removed ({error.strerror}); it holds records of the export, remove it by hand"
        ) from error


# ----------------------------------------------------------------------------------------- what the candidates' pull is told


class _Meta(msgspec.Struct):
    last_updated: str = msgspec.field(name="lastUpdated", default="")


class _Dated(msgspec.Struct):
    meta: _Meta | None = None


def account_for(
    pull: Pull,
    export: Export,
    client: FhirClient,
    capability: Mapping[str, Any],
    *,
    whole: bool,
    known: Mapping[str, int],
    absent: Collection[str] = (),
) -> None:
    """Add to the pull of the candidates how the export came that they were picked out of.

    `whole`: it was of the whole server, so that the server's count of each type, as of the export's time, tells whether all
    came; fewer than that make the type truncated for everybody. `known` are counts of an earlier export, which an export of
    changes alone cannot repeat. `absent` are types that the hospital says it does not have.
    """
    software = capability.get("software")
    software = software if isinstance(software, dict) else {}
    version = str(capability["fhirVersion"])
    said_of = {"name": software.get("name"), "version": software.get("version"), "date": client.server_date}
    pull.server = {name: value for name, value in said_of.items() if isinstance(value, str) and value}
    pull.server["fhirVersion"] = version
    pull.fhir_versions = [version]
    pull.base = client.base
    pull.server_time = export.transaction_time
    pull.exports, pull.files = export.files, []
    pull.warnings += export.warnings
    pull.failures += [IncompleteError(f"{client.host}, $export: {problem}") for problem in export.problems]
    pull.type_counts = {
        kind: max(pull.type_counts.get(kind, 0), known.get(kind, 0)) for kind in sorted({*pull.type_counts, *known})
    }
    for kind in READ_TYPES:
        if kind not in plan.exportable(capability) and kind not in absent:
            _mark(pull, kind, "unsupported", plan.unlisted(client.host, kind))
    if whole:
        _verify_counts(pull, export, client, plan.exportable(capability))


def _mark(pull: Pull, kind: str, state: State, failure: IncompleteError) -> None:
    """Say of a type that it did not come whole, for every patient."""
    pull.failures.append(failure)
    pull.ledger = [replace(row, state=state, reason=str(failure)) if row.type == kind else row for row in pull.ledger]


def _verify_counts(pull: Pull, export: Export, client: FhirClient, types: Sequence[str]) -> None:
    unverified = []
    for kind in types:
        if all(file["declared"] is not None for file in export.files if file["type"] == kind) and export.counts.get(
            kind
        ):
            continue
        try:
            there = count(client, kind, [("_lastUpdated", f"le{export.transaction_time}")])
        except (RefusedError, SignInError):
            there = None
        if there is None:
            unverified.append(kind)
        elif there > export.counts.get(kind, 0):
            failure = IncompleteError(
                f"{client.host}, $export: the server counts {there} {kind} and exported {export.counts.get(kind, 0)}; run "
                "again, or with --mode search"
            )
            _mark(pull, kind, "truncated", failure)
    if unverified:
        pull.warnings.append(
            f"the server does not count its {', '.join(unverified)}: that all of them came is not verified"
        )


def are_dated(folder: Path, export: Export) -> bool:
    """Whether every exported resource says when it was last updated: else it cannot be told from an older copy."""
    decoder = msgspec.json.Decoder(_Dated)
    for file in export.files:
        for line, _ in _lines(folder / str(file["name"]), "a file of the export", MAX_LINE):
            try:
                found = decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return False
            if found.meta is None or not found.meta.last_updated:
                return False
    return True
