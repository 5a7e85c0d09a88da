"""What happens, as a sentence: the only module where the rooms meet.

Rooms are imported where they are used, so that `--help` costs nothing.
"""

import csv
import io
import json
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from importlib.resources import files as package_files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from zoneinfo import ZoneInfo

from crmo_fhir import __version__
from crmo_fhir.errors import IncompleteError, IntegrityError, PrivacyError, SignInError, UsageError
from crmo_fhir.model.parameters import EFFECT_SOURCES, SENSITIVITY, Parameters
from crmo_fhir.model.records import WHOLE
from crmo_fhir.model.results import NO_ANALYSIS, Analysis

if TYPE_CHECKING:
    import pandas as pd

    from crmo_fhir.artifacts import Artifacts
    from crmo_fhir.cohort import Cohort
    from crmo_fhir.difference import Change
    from crmo_fhir.export.disclosure import Release
    from crmo_fhir.fhir.client import FhirClient
    from crmo_fhir.landing import Journal, Raw
    from crmo_fhir.mapping.view import CompiledView
    from crmo_fhir.model.records import Pull
    from crmo_fhir.model.results import Member, Result
    from crmo_fhir.model.study import Disclosure, Study
    from crmo_fhir.publish import Held, Plan
    from crmo_fhir.source.crawl import Earlier
    from crmo_fhir.source.probe import Finding
    from crmo_fhir.source.whole import Gathered

Tell = Callable[[str], None]
OVERLAP = timedelta(minutes=5)
"""By so much an increment reaches back before the server's time of the last pull (promise: no increment is lost)."""
NOT_NAMED = "Reporting hospital (not named)"


def _nothing(*_: object) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True)
class Voice:
    """How a run speaks: warnings, notes, and progress as (type, records so far, total if known)."""

    warn: Tell = _nothing
    note: Tell = _nothing
    progress: Callable[[str, int, int | None], None] = _nothing


SILENT = Voice()


@dataclass(frozen=True, slots=True)
class Server:
    """How to reach a FHIR server and who we are to it; secrets come from the environment and key files only.

    `allow` are further origins its links may lead to, `absent` the types the hospital says it does not have.
    """

    token: str = ""
    basic: str = ""
    client_id: str = ""
    key_file: Path | None = None
    key_id: str = ""
    key_password: str = ""
    token_url: str = ""
    scope: str = ""
    retry_budget: float = 120.0
    ca_file: Path | None = None
    workers: int = 4
    allow: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    log: Tell = _nothing

    def __repr__(self) -> str:
        """Nothing of what it holds: some of it is secret."""
        return "Server()"


@dataclass(frozen=True, slots=True)
class How:
    """How to fetch: `mode` auto, search or bulk; a `group` to export; `updated_since` "last" or a FHIR instant.

    `memory` is what the engine may take, such as "4GB"; by default half of the machine's.
    """

    mode: str = "auto"
    group: str = ""
    updated_since: str = ""
    accept_partial: bool = False
    memory: str | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of a study, for the terminal and the files; those of a release come without an analysis."""

    results: "list[Result]"
    study: "Study"
    analysis: Analysis = NO_ANALYSIS


def extract(
    source: str,
    study: Path,
    parameters: Parameters,
    *,
    mappings: Path | None = None,
    server: Server | None = None,
    how: How | None = None,
    engine: str = "duckdb",
    voice: Voice = SILENT,
) -> None:
    """SOURCE → STUDY/raw → STUDY/cohort.

    `source` is a FHIR base URL, a folder or a file; `engine` runs the views over what was landed. Raises an error of `errors` where anything that could matter was
    not read; then no figure is left that could pass for a whole one. What was fetched stays, and the same call goes on.
    """
    from crmo_fhir import landing
    from crmo_fhir.artifacts import Artifacts
    from crmo_fhir.engine import check_engine

    check_engine(engine)
    how, server = how or How(), server or Server()
    artifacts = Artifacts.load(mappings)
    is_server = _is_server(source)
    name = source.rstrip("/") if is_server else str(Path(source).resolve())
    request = {"source": name, "group": how.group, "mappings": artifacts.digest, **_plain(parameters)}
    if not is_server and not Path(source).exists():
        raise UsageError(f"{source}: no such file or folder; name a FHIR base URL, a folder or a file")
    if not is_server:
        landing.check_text(Path(name))
    if not is_server and (how.group or how.updated_since):
        raise UsageError(f"{source}: --group and --updated-since are for a FHIR server; leave them out")
    if study.exists() and not (study / ".lock").exists():
        landing.refuse_foreign(study, request)  # not even a lock comes into a folder that is not ours
    with landing.hold(study, create=True):
        landing.refuse_foreign(study, request)
        _extract(source, study, request, parameters, artifacts, server, how, engine, voice)


def _extract(
    source: str,
    study: Path,
    request: Mapping[str, Any],
    parameters: Parameters,
    artifacts: "Artifacts",
    server: Server,
    how: How,
    engine: str,
    voice: Voice,
) -> None:
    """The same, in a study that is ours alone."""
    from crmo_fhir import landing

    with landing.keep_journal(study, request) as journal:
        is_server = _is_server(source)
        fetched = _fetch(source, study, journal, artifacts, parameters, server, how, voice) if is_server else None
        pull = fetched.pull if fetched else _select(Path(source), artifacts, study, how.memory)
        pull.source = request["source"]
        for warning in pull.warnings:
            voice.warn(warning)
        day = datetime.now(UTC).date().isoformat()
        landing.land(study, pull, request, day, _misfit, accept_partial=how.accept_partial)
        if missing := landing.missing_of(study):
            voice.warn(f"this pull is partial ({missing}); report and MeasureReport will say so")
        if fetched:
            fetched.landed()
        _build(study, artifacts, voice, accept_partial=how.accept_partial, engine=engine, memory=how.memory)


def _select(
    folder: Path, artifacts: "Artifacts", study: Path, memory: str | None = None, base: str | None = None
) -> "Pull":
    from crmo_fhir import landing
    from crmo_fhir.source.files import select_candidates

    crmo, text = artifacts.value_set("crmo"), artifacts.value_set("crmo-text")
    spill = landing.spill_folder(study)
    return select_candidates(folder, crmo, text, base=base, memory=memory, spill=spill, apart=study)


@dataclass(frozen=True, slots=True)
class _Fetched:
    """What came from a server, and what is to be done when it has landed."""

    pull: "Pull"
    landed: Callable[[], None]


def _fetch(
    source: str,
    study: Path,
    journal: "Journal",
    artifacts: "Artifacts",
    parameters: Parameters,
    server: Server,
    how: How,
    voice: Voice,
) -> _Fetched:
    """Fetch from a server, by the way that it offers and that costs least."""
    from crmo_fhir import landing
    from crmo_fhir.source import bulk
    from crmo_fhir.source.crawl import crawl
    from crmo_fhir.source.probe import choose_way

    earlier = _earlier(study, how.updated_since)
    client, capability = _connect(source, server, voice, journal)
    crmo, text = artifacts.value_set("crmo"), artifacts.value_set("crmo-text")
    way = choose_way(client, capability, crmo, asked=how.mode, group=how.group)
    voice.note(f"fetching by {way.mode}: {way.reason}")
    if way.mode == "bulk":
        select = partial(_select, artifacts=artifacts, study=study, memory=how.memory, base=client.base)
        pull = _export(client, capability, way.level, study, earlier, select, server.absent, voice)
    else:
        crawled = partial(
            crawl,
            client,
            crmo,
            text,
            need_text=parameters.text_diagnosis,
            absent=server.absent,
            earlier=earlier,
            capability=capability,
            progress=voice.progress,
        )
        pull = _crawl_on(crawled, journal)
    pull.way = {"mode": way.mode, "level": way.level, "reason": way.reason}

    def landed() -> None:
        if landing.is_complete(study):
            bulk.finish(client, landing.export_folder(study))
        else:
            landing.drop_export(study)  # the server's copy goes only when ours is whole
        client.close()

    return _Fetched(pull, landed)


def _crawl_on(crawled: "Callable[[], Pull]", journal: "Journal") -> "Pull":
    """Go on with what a run that was cut off has fetched; from the beginning where that no longer agrees with the server."""
    try:
        pull = crawled()
        if not (pull.failures and journal.used):
            return pull
    except IncompleteError:
        if not journal.used:
            raise
    journal.clear()
    return crawled()


def _connect(
    source: str,
    server: Server,
    voice: Voice,
    journal: "Journal | None" = None,
    writes: Sequence[str] = (),
) -> "tuple[FhirClient, dict[str, Any]]":
    """A signed-in session and the server's CapabilityStatement; for reading, or for writing the types `writes`.

    With SMART the token is fetched, and what it grants is held against what will be read or written, before anything else
    is asked. What a static token says of itself is held against what will be written.
    """
    from crmo_fhir.fhir.client import FhirClient, Static
    from crmo_fhir.fhir.search import capabilities
    from crmo_fhir.fhir.sign_in import compute_missing, compute_missing_in_token, compute_scopes, sign_in
    from crmo_fhir.model.records import READ_TYPES
    from crmo_fhir.source.plan import declared

    client = FhirClient(
        source,
        Static(token=server.token, basic=server.basic),
        retry_budget=server.retry_budget,
        ca_file=server.ca_file,
        workers=server.workers,
        allow=server.allow,
        journal=journal,
        tell=voice.warn,
        log=server.log,
    )
    asked = compute_scopes({}, writes, writes)
    if not server.client_id or server.key_file is None:
        if missing := compute_missing_in_token(server.token, asked):
            raise SignInError(
                f"{client.host}: the token does not allow {' '.join(missing)}; nothing was written, give one that does"
            )
        return client, capabilities(client)
    try:
        capability = capabilities(client)
    except SignInError:
        capability = None  # some servers show it to clients they know only
    types = writes or [kind for kind in READ_TYPES if kind not in server.absent]
    known = types if capability is None else declared(capability)
    client.credentials = sign_in(
        client,
        server.client_id,
        server.key_file,
        key_id=server.key_id or None,
        key_password=server.key_password or None,
        types=[kind for kind in types if kind in known],
        writes=[kind for kind in writes if kind in known],
        token_url=server.token_url or None,
        scope=None if not server.scope or compute_missing(asked, server.scope.split()) else server.scope,
    )
    client.credentials.header()
    return client, capabilities(client) if capability is None else capability


def _export(
    client: "FhirClient",
    capability: Mapping[str, Any],
    level: str,
    study: Path,
    earlier: "Earlier | None",
    select: "Callable[[Path], Pull]",
    absent: tuple[str, ...],
    voice: Voice,
) -> "Pull":
    """Fetch by a bulk export, and pick the candidates out of its files.

    Only the changes since an earlier pull are exported where the server says what was deleted since, and where no child is
    among them that the study does not hold yet; else everything is.
    """
    from crmo_fhir import landing
    from crmo_fhir.source import bulk, plan

    folder, types = landing.export_folder(study), plan.exportable(capability)
    account_for = partial(bulk.account_for, client=client, capability=capability, absent=absent)
    fetch = partial(
        bulk.export, client, capability, folder, level, types=types, note=voice.note, progress=voice.progress
    )
    if earlier is not None:
        export = fetch(since=earlier.since)
        if export.deletions and bulk.are_dated(folder, export):
            landing.write_lines(folder / "earlier", earlier.records)
            pull = select(folder)
            known = {patient for patient, _ in earlier.whole}
            if not pull.unresolved and known.issuperset(row.patient for row in pull.ledger):
                account_for(pull, export, whole=False, known=earlier.counts)
                return pull
        voice.note("the changes alone do not tell all: everything is exported")
        bulk.finish(client, folder)
    begun_before = folder.exists()
    while True:
        export = fetch()
        try:
            pull = select(folder)
        except IncompleteError:
            if not begun_before:
                raise
        else:
            account_for(pull, export, whole=level == "system", known={})
            if not begun_before or not (pull.failures or any(broken.matters for broken in pull.broken)):
                return pull
        # What an earlier run fetched was not whole, and the server may have been mended since.
        landing.drop_export(study)
        begun_before = False


def _earlier(study: Path, updated_since: str) -> "Earlier | None":
    """What an increment builds on: the study's last pull, and the server's instant from which changes are asked for."""
    from crmo_fhir import landing
    from crmo_fhir.source.crawl import Earlier

    if not updated_since:
        return None
    if not (study / "raw" / "manifest.json").is_file():
        raise UsageError(f"{study}: no pull here to update; run without --updated-since first")
    raw = landing.open_raw(study, accept_partial=True)
    last = raw.manifest["source"]["serverTime"]
    if not last:
        raise UsageError(f"{study}: the server showed no clock at the last pull; run without --updated-since")
    since = datetime.fromisoformat(last) - OVERLAP
    if updated_since != "last":
        try:
            given = datetime.fromisoformat(updated_since)
        except ValueError:
            given = None
        if given is None or given.tzinfo is None:
            raise UsageError("--updated-since takes 'last' or an instant with its offset, such as 2026-01-31T12:00:00Z")
        if given > datetime.fromisoformat(last):
            raise UsageError(f"--updated-since: what changed since the last pull ({last}) would be missed; give 'last'")
        since = min(since, given)
    with (study / "raw" / "ledger.csv").open(encoding="utf-8") as text:
        whole = frozenset((row["patient"], row["type"]) for row in csv.DictReader(text) if row["state"] in WHOLE)
    instant = since.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Earlier(instant, tuple(landing.read_records(raw)), whole, raw.manifest["source"]["records"])


def probe(
    source: str,
    *,
    mappings: Path | None = None,
    server: Server | None = None,
    how: How | None = None,
    voice: Voice = SILENT,
) -> "Finding":
    """What a server offers and what a pull would cost; no patient is read.

    Raises an error of `errors` where the server cannot be asked; what else stands in the way is in `Finding.impossible`.
    """
    from crmo_fhir.artifacts import Artifacts
    from crmo_fhir.fhir.sign_in import BackendServices
    from crmo_fhir.source.probe import probe as ask

    if not _is_server(source):
        raise UsageError(f"{source}: a FHIR server is asked; give its base URL (http or https)")
    how, server = how or How(), server or Server()
    client, capability = _connect(source, server, voice)
    try:
        found = ask(
            client,
            capability,
            Artifacts.load(mappings).value_set("crmo"),
            asked=how.mode,
            group=how.group,
            absent=server.absent,
        )
        if isinstance(client.credentials, BackendServices):
            found.scopes = list(client.credentials.granted)
        return found
    finally:
        client.close()


def diff(earlier: Path, later: Path, out: Path | None = None) -> "list[Change]":
    """What the pull of one study holds and that of another does not; written to `out` as CSV, one record a row."""
    from crmo_fhir import landing
    from crmo_fhir.difference import compute_changes

    with ExitStack() as held:
        for study in {study.resolve(): study for study in (earlier, later)}.values():
            held.enter_context(landing.hold(study))
        one, other = (landing.open_raw(study, accept_partial=True) for study in (earlier, later))
        changes = compute_changes(landing.read_texts(one), landing.read_texts(other))
    if out is not None:
        landing.write_rows(out, ("type", "state", "id", "base", "into"), changes)
    return changes


def _is_server(source: str) -> bool:
    """Whether a source is a FHIR server, and not a folder or a file."""
    return source.lower().startswith(("http://", "https://"))


def _misfit(record: Any) -> str | None:
    import msgspec

    from crmo_fhir.mapping.schema import find_misfit

    path = find_misfit(msgspec.json.decode(record.text), record.type)
    return None if path is None else f"{path} has not the shape FHIR gives it"


def build(
    study: Path,
    *,
    mappings: Path | None = None,
    accept_partial: bool = False,
    engine: str = "duckdb",
    memory: str | None = None,
    voice: Voice = SILENT,
) -> None:
    """STUDY/raw → STUDY/cohort, with the arguments the study was extracted with; every engine makes the same bytes.

    `memory` is what the engine may take.
    """
    from crmo_fhir import landing
    from crmo_fhir.artifacts import Artifacts
    from crmo_fhir.engine import check_engine

    check_engine(engine)
    with landing.hold(study):
        _build(study, Artifacts.load(mappings), voice, accept_partial=accept_partial, engine=engine, memory=memory)


def _build(
    study: Path,
    artifacts: "Artifacts",
    voice: Voice,
    *,
    accept_partial: bool = False,
    engine: str = "duckdb",
    memory: str | None = None,
) -> None:
    from crmo_fhir import landing
    from crmo_fhir.cohort import derive_cohort
    from crmo_fhir.engine import open_engine
    from crmo_fhir.mapping.facts import read_facts
    from crmo_fhir.model.review import judgement_of
    from crmo_fhir.model.tables import COHORT

    raw = landing.open_raw(study, accept_partial=accept_partial)
    request = raw.manifest["request"]
    _refuse_other_mappings(study, raw, artifacts)
    parameters = _parameters(request)
    reviews = [judgement_of(one) for review in landing.read_reviews(study) for one in review["judgements"]]
    with open_engine(engine, memory=memory, temp=landing.spill_folder(study)) as opened:
        facts, type_counts = read_facts(opened, artifacts, raw.files, raw.aliases, ZoneInfo(parameters.time_zone))
    cohort = derive_cohort(
        facts,
        type_counts,
        raw.manifest["source"]["records"],
        parameters,
        date.fromisoformat(raw.manifest["extracted"]),
        reviews,
    )
    files = {f"{name}.parquet": table.to_parquet(cohort.tables[name]) for name, table in COHORT.items()}
    files["attrition.csv"] = _csv(cohort.tables["attrition"])
    files["sensitivity.csv"] = _csv(_vary(cohort, parameters))
    files["unmapped.csv"] = _csv(facts["unmapped"][["system", "code", "display", "resource_type", "count"]])
    record = {
        "raw": raw.sha256,
        "program": __version__,
        "data_lock": cohort.data_lock.isoformat() if cohort.data_lock else None,
        "orders_count": cohort.orders_count,
    }
    landing.write_cohort(study, files, record)
    if len(cohort.tables["patients"]) == 0:
        voice.warn(
            "no child meets the criteria: the cohort is empty; attrition.csv shows where the candidates were left"
        )
    unresolved = (
        facts["listed"]["reason"].str.contains("subject|patient", regex=True).sum() if len(facts["listed"]) else 0
    )
    if unresolved:
        voice.warn(f"{unresolved} records name no Patient that is here; attrition.csv lists them by type")


_Part = TypeVar("_Part", bound=Sized)


@dataclass(frozen=True, slots=True)
class Viewed:
    """What a view gave: how many rows, of how many records, and how many records were left out."""

    rows: int
    records: int | None
    left_out: int = 0


def view(
    named: str,
    source: str,
    out: Path,
    *,
    mappings: Path | None = None,
    accept_partial: bool = False,
    engine: str = "duckdb",
    memory: str | None = None,
    voice: Voice = SILENT,
) -> Viewed:
    """One ViewDefinition over SOURCE → a table, CSV or Parquet by the ending of `out`.

    `named` is a view of the mappings or a file that holds one; `source` a folder or a file, all of whose records of the
    view's type are read, or a study. Raises UsageError for a view that is wrong before anything is read, IncompleteError
    for records that cannot be read (`accept_partial` leaves them out). `memory` is what the engine may take. `out` is
    written whole or not at all.
    """
    from crmo_fhir import landing
    from crmo_fhir.artifacts import Artifacts
    from crmo_fhir.engine import check_engine, open_engine
    from crmo_fhir.export import table
    from crmo_fhir.mapping.query import run_by_base, run_to_tables
    from crmo_fhir.mapping.view import compile_view

    check_engine(engine)
    table.check_ending(out.name)
    landing.check_table(out)
    compiled = compile_view(_definition(named, Artifacts.load(mappings)))
    if _is_server(source):
        raise UsageError(f"{source}: a view reads a folder, a file or a study; run 'crmo-fhir extract' first")
    path, records, left_out = Path(source), None, 0
    with ExitStack() as held:
        if (path / "raw" / "manifest.json").is_file():
            held.enter_context(landing.hold(path))
            raw = landing.open_raw(path, accept_partial=accept_partial)
            files = [(file.path, file.base) for file in raw.files if file.type == compiled.resource]
            if not files:
                voice.warn(f"{path} holds no {compiled.resource}: the table is empty")
            folder = landing.spill_folder(path)
        else:
            folder = Path(held.enter_context(TemporaryDirectory(prefix=".view-", dir=out.parent)))
            gathered = _gather(path, compiled, folder, memory, accept_partial=accept_partial, voice=voice)
            files, records, left_out = gathered.files, gathered.count, len(gathered.broken)
            folder /= "spill"
        given = 0

        def counted(parts: Iterable[_Part]) -> Iterator[_Part]:
            nonlocal given
            for part in parts:
                given += len(part)
                yield part

        opened = held.enter_context(open_engine(engine, memory=memory, temp=folder)) if files else None
        if table.is_parquet(out.name):
            tables = run_to_tables(opened, compiled, files) if opened else ()
            pieces = table.write_parquet(compiled.types, compiled.collections, counted(tables))
        else:
            rows = (found for _, found in run_by_base(opened, compiled, files)) if opened else ()
            pieces = table.write_csv(compiled.types, compiled.collections, counted(rows))
        landing.write_whole(out, pieces)
    return Viewed(given, records, left_out)


def _definition(named: str, artifacts: "Artifacts") -> Mapping[str, Any]:
    """The ViewDefinition of this name in the mappings, else that of the file."""
    from crmo_fhir.artifacts import is_view
    from crmo_fhir.fhir import strict

    views = artifacts.views()
    if named in views:
        return views[named]
    if not Path(named).is_file():
        raise UsageError(f"{named}: no view of that name and no such file; views are {', '.join(views)}")
    try:
        definition = strict.parse(Path(named).read_bytes().removeprefix(BOM_UTF8))
    except ValueError as error:
        raise UsageError(f"{named}: {error}; correct it") from error
    if not isinstance(definition, dict) or ("resourceType" in definition and not is_view(definition)):
        raise UsageError(f"{named}: is no ViewDefinition; give one")
    return definition


def _gather(
    path: Path, view: "CompiledView", folder: Path, memory: str | None, *, accept_partial: bool, voice: Voice
) -> "Gathered":
    """The records of a view's type in a folder or file; those that cannot be read end the run, or are told of."""
    from crmo_fhir.mapping.schema import find_misfit
    from crmo_fhir.source.whole import Narrow, gather

    kind = view.resource
    misfit = partial(find_misfit, resource_type=kind)
    gathered = gather(path, kind, folder, misfit, Narrow(view.told, view.fits), memory)
    for warning in gathered.warnings:
        voice.warn(warning)
    if gathered.broken:
        first, count = gathered.broken[0], len(gathered.broken)
        more = f" (and {count - 1} more)" if count > 1 else ""
        told = f"{first.file}, {first.place}{more}: {first.reason}"
        if not accept_partial:
            raise IncompleteError(f"{told}; correct it at its source, or leave it out with --accept-partial")
        voice.warn(f"{count} records were left out: {told}")
    if not gathered.count:
        voice.warn(f"{path} holds no {kind} that can be read: the table is empty")
    return gathered


def _refuse_other_mappings(study: Path, raw: "Raw", artifacts: "Artifacts") -> None:
    if raw.manifest["request"]["mappings"] != artifacts.digest:
        raise UsageError(
            f"{study}: extracted with other mappings; give the same --mappings, or extract into a new folder"
        )


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What came of `review`: how many rows were written, or judgements taken in (as which review) and rows left open."""

    rows: int
    number: int = 0
    left_open: int = 0


def write_review(study: Path, out: Path, *, everything: bool = False, accept_partial: bool = False) -> Reviewed:
    """STUDY/cohort → the worksheet of the courses that a clinician must judge, XLSX or CSV by the ending of `out`.

    `everything` asks for every course in the figures. Raises UsageError where there is such a file already.
    """
    from crmo_fhir import landing
    from crmo_fhir.cohort.review import derive_questions
    from crmo_fhir.export.worksheet import check_ending, write_worksheet

    check_ending(out.name)
    with landing.hold(study):
        raw = landing.open_raw(study, accept_partial=accept_partial)
        landing.open_cohort(study, raw)
        mark, parameters = _mark(raw), _parameters(raw.manifest["request"])
        questions = derive_questions(_tables(study), parameters, mark, everything=everything)
        landing.write_new(out, write_worksheet(out.name, [question.cells for question in questions]), study)
    return Reviewed(len(questions))


def read_review(
    study: Path,
    path: Path,
    *,
    mappings: Path | None = None,
    accept_partial: bool = False,
    voice: Voice = SILENT,
) -> Reviewed:
    """A worksheet that was filled in → STUDY/reviews, and the cohort built again with its judgements.

    All of it is taken in, or nothing: IncompleteError names every row that cannot be. The same worksheet again is nothing new.
    """
    import hashlib

    from crmo_fhir import landing
    from crmo_fhir.artifacts import Artifacts
    from crmo_fhir.cohort.review import derive_questions, read_answers
    from crmo_fhir.export.worksheet import read_worksheet

    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the worksheet that 'crmo-fhir review {study} --out' wrote")
    content = path.read_bytes()
    with landing.hold(study):
        raw = landing.open_raw(study, accept_partial=accept_partial)
        landing.open_cohort(study, raw)
        artifacts = Artifacts.load(mappings)
        _refuse_other_mappings(study, raw, artifacts)
        rows, mark, earlier = read_worksheet(str(path), content), _mark(raw), landing.read_reviews(study)
        if rows and all(cells["study"] != mark for _, cells in rows):
            raise UsageError(f"{path}: is a worksheet of another study; nothing was taken in, name the study it is of")
        digest = hashlib.sha256(content).hexdigest()
        number = len(earlier) + 1
        if earlier and earlier[-1]["worksheet"] == digest:
            number -= 1
        parameters = _parameters(raw.manifest["request"])
        questions = derive_questions(_tables(study), parameters, mark, everything=True)
        read = read_answers(rows, questions, mark, number, datetime.now(ZoneInfo(parameters.time_zone)).date())
        if read.faults:
            told = "; ".join(f"row {row}: {fault}" for row, fault in read.faults)
            raise IncompleteError(f"{path}: nothing was taken in; {told}; correct these rows and give it again")
        taken = Reviewed(len(read.judgements), number, read.left_open)
        if read.judgements and number > len(earlier):
            kept = {"worksheet": digest, "judgements": [one.plain() for one in read.judgements]}
            landing.write_review(study, number, kept)
            _build(study, artifacts, voice, accept_partial=accept_partial)
        assessments = _tables(study)["assessments"]
        names = {one.name for one in read.judgements}
        lost = sum(
            name in names and how == "unattributed"
            for name, how in zip(assessments["assessment"], assessments["attribution"], strict=True)
        )
        if lost:
            voice.warn(f"{lost} of these judgements count for no course by their dates; attrition.csv says why")
    return taken


def _mark(raw: "Raw") -> str:
    """What tells the worksheets of a study from those of others: the SHA-256 of the request that made it."""
    import hashlib

    told = json.dumps(raw.manifest["request"], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(told.encode("utf-8")).hexdigest()


def _tables(study: Path) -> "dict[str, pd.DataFrame]":
    """The tables of STUDY/cohort, which was checked."""
    from crmo_fhir.model.tables import COHORT

    folder = study / "cohort"
    return {name: table.from_parquet((folder / f"{name}.parquet").read_bytes()) for name, table in COHORT.items()}


def _vary(cohort: "Cohort", parameters: Parameters) -> "pd.DataFrame":
    """The treatment groups counted once more with each rule of SENSITIVITY changed, all else as it was."""
    from crmo_fhir.cohort import derive_treatment
    from crmo_fhir.metrics import compute_headlines
    from crmo_fhir.model.tables import SENSITIVITIES, rows_of

    patients, rows = rows_of(cohort.tables["patients"]), []
    for name, values in SENSITIVITY.items():
        for value in (getattr(Parameters(), name), *values):
            if value != getattr(parameters, name):
                changed: dict[str, Any] = {name: value}
                variant = replace(parameters, **changed)
                scores = "derived" in EFFECT_SOURCES[variant.effect_source]
                counts = compute_headlines(
                    patients, derive_treatment(cohort.told, variant, scores=scores).rows, variant
                )
                rows += [
                    {"parameter": name, "value": str(value), "group": group, "n": n, "N": whole}
                    for group, (n, whole) in counts.items()
                ]
    return SENSITIVITIES.frame(rows)


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who reports: the name of the hospital, and its resource on its own server (`Organization/…`) where it has one."""

    name: str | None = None
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """How the FHIR of a study is written: in R4 or R5, for DEQM universal (uv) or of the US realm (us).

    `individual` adds a MeasureReport for each child, and the list of them. `lang` is the language of report.html.
    """

    fhir_version: Literal["R4", "R5"] = "R4"
    deqm: Literal["uv", "us"] = "uv"
    individual: bool = False
    lang: Literal["en", "da"] = "en"


def measure(
    study: Path,
    *,
    mappings: Path | None = None,
    accept_partial: bool = False,
    published: Path | None = None,
    reporter: Reporter | None = None,
    form: Form | None = None,
) -> Measured:
    """STUDY/cohort → results.csv, statistics.csv, table1.csv, measure.json, library.json, measure-report.json and report.html.

    `accept_partial` takes a pull that is not whole; report and MeasureReport then say so. `published` is a CSV of figures
    printed elsewhere, set beside ours in table1.csv and the report. Nothing is written that `verify` would refuse.
    """
    from crmo_fhir import landing
    from crmo_fhir.artifacts import Artifacts

    with landing.hold(study):
        raw = landing.open_raw(study, accept_partial=accept_partial)
        built = landing.open_cohort(study, raw)
        account = {
            "program": __version__,
            "mappings": raw.manifest["request"]["mappings"],
            "published": _read_published(published) if published else None,
            "reporter": asdict(reporter or Reporter()),
            "form": asdict(form or Form()),
        }
        measured, files = _figures(study, raw, built, Artifacts.load(mappings), account)
        _check(raw, files)
        landing.write_outputs(study, files, account)
    return measured


@dataclass(frozen=True, slots=True)
class Verified:
    """A study that was found to be as it was written: its records, figures and their account, and the relations checked."""

    raw: "Raw"
    measured: Measured
    account: Mapping[str, Any]
    checked: int


def verify(
    study: Path, *, mappings: Path | None = None, accept_partial: bool = False, voice: Voice = SILENT
) -> "tuple[Measured, int]":
    """Check a study again, from its records to its figures; gives the figures and how many relations were checked.

    Every file is held against its hash, the figures are computed anew and compared byte by byte, and what is in the files
    must agree (`export.verification`); so with the release of these figures, if there is one. Raises IntegrityError for
    the first thing that is not as it must be.
    """
    from crmo_fhir import landing
    from crmo_fhir.artifacts import Artifacts

    with landing.hold(study):
        artifacts = Artifacts.load(mappings)
        verified = _verified(study, artifacts, accept_partial=accept_partial)
        checked = verified.checked
        if landing.is_released(study):
            checked += _verify_release(study, verified, artifacts)
        elif (study / "release").is_dir():
            voice.warn(f"{study / 'release'} is of earlier figures than these and was not checked")
    return verified.measured, checked


def _verified(study: Path, artifacts: "Artifacts", *, accept_partial: bool = False) -> Verified:
    """The same of a study that is held already, without its release."""
    from crmo_fhir import landing

    raw = landing.open_raw(study, accept_partial=accept_partial)
    built = landing.open_cohort(study, raw)
    account = landing.open_outputs(study)
    files = {name: (study / name).read_text(encoding="utf-8") for name in account["files"]}
    checked = _check(raw, files)
    measured, again = _figures(study, raw, built, artifacts, account)
    _refuse_other_bytes(study, files, again, f"makes of the cohort; run 'crmo-fhir measure {study}' again")
    return Verified(raw, measured, account, checked)


def _verify_release(study: Path, verified: Verified, artifacts: "Artifacts") -> int:
    """Check STUDY/release: it is what its receipt says was released of these figures, and tells of nothing it masks."""
    from crmo_fhir import landing
    from crmo_fhir.export.results import read_results, results_csv
    from crmo_fhir.export.verification import verify_outputs
    from crmo_fhir.model.study import Disclosure

    folder = study / "release"
    account = landing.open_outputs(study, folder)
    disclosure = Disclosure(account["threshold"], account["rounding"])
    files = {name: (folder / name).read_text(encoding="utf-8") for name in account["files"]}
    checked = verify_outputs(files, landing.record_keys(verified.raw), disclosure)
    exact = results_csv(verified.measured.results)
    receipts = [one for one in landing.read_releases(study) if one["results"] == exact]
    if not receipts or _release(receipts[0]).disclosure != disclosure:
        raise IntegrityError(f"{folder}: no receipt tells of this release; run 'crmo-fhir release {study}' again")
    reporter = Reporter(**account["reporter"]).name or NOT_NAMED
    study_then = replace(verified.measured.study, reporter=reporter)
    figures = Measured(read_results(receipts[0]["released"]), _released_study(study_then, disclosure))
    again = _texts(figures, artifacts, account["published"], Form(**account["form"]))
    _refuse_other_bytes(folder, files, again, f"releases of the figures; run 'crmo-fhir release {study}' again")
    return checked


def _refuse_other_bytes(folder: Path, files: Mapping[str, str], again: Mapping[str, str], what: str) -> None:
    """Raise IntegrityError for the first file that is other than when it is made again."""
    for name in sorted(files):
        if files[name] != again.get(name):
            raise IntegrityError(f"{folder / name}: is not what this program {what}")


def _figures(
    study: Path, raw: "Raw", built: Mapping[str, Any], artifacts: "Artifacts", account: Mapping[str, Any]
) -> "tuple[Measured, dict[str, str]]":
    """The figures of a study and the files they are written to; `built` is the record of its cohort, which was checked."""
    from crmo_fhir.metrics import compute_analysis, compute_members, compute_results

    if built["program"] != __version__:
        raise IntegrityError(
            f"{study}: the cohort was built by another version of crmo-fhir; run 'crmo-fhir build {study}' again"
        )
    request = raw.manifest["request"]
    if request["mappings"] != artifacts.digest:
        raise UsageError(f"{study}: extracted with other mappings; give the same --mappings")
    parameters, folder, form = _parameters(request), study / "cohort", Form(**account["form"])
    tables = _tables(study)
    known = _study(raw.manifest, built, tables["patients"], parameters, folder, Reporter(**account["reporter"]))
    varied = [
        {**row, "n": int(row["n"]), "N": int(row["N"])}
        for row in _read_csv((folder / "sensitivity.csv").read_text(encoding="utf-8"))
    ]
    results, analysis = compute_results(tables, parameters), compute_analysis(tables, parameters, varied)
    measured = Measured(results, known, analysis)
    members = compute_members(tables, parameters) if form.individual else None
    return measured, _texts(measured, artifacts, account["published"], form, members)


def _texts(
    measured: Measured,
    artifacts: "Artifacts",
    printed: Sequence[Mapping[str, str]] | None,
    form: Form,
    members: "Sequence[Member] | None" = None,
) -> dict[str, str]:
    """What is written of figures, by file name."""
    from crmo_fhir.export.measure_report import (
        build_individual_reports,
        build_measure_report,
        build_subject_list,
        checked,
        to_json,
        to_line,
    )
    from crmo_fhir.export.r5 import to_r5
    from crmo_fhir.export.report import report_html
    from crmo_fhir.export.results import results_csv, statistics_csv
    from crmo_fhir.export.table1 import table1_csv

    results, study, measure = measured.results, measured.study, artifacts.measure()
    estimates = measured.analysis.estimates
    report = build_measure_report(results, study, measure, form.deqm)
    version = to_r5 if form.fhir_version == "R5" else lambda resource: resource
    files = {
        "results.csv": results_csv(results),
        "table1.csv": table1_csv(results, printed, estimates),
        "measure.json": to_json(version(checked(measure))),
        "library.json": to_json(version(checked(artifacts.library()))),
        "measure-report.json": to_json(version(report)),
        "report.html": report_html(results, study, printed, measured.analysis, form.lang),
    }
    if measured.analysis != NO_ANALYSIS:
        files["statistics.csv"] = statistics_csv(estimates)
    if members is not None:
        individual = build_individual_reports(members, study, measure, form.deqm)
        files["individual-reports.ndjson"] = "".join(to_line(version(one)) for one in individual)
        files["subject-list-report.json"] = to_json(
            version(build_subject_list(report, members, study, measure, form.deqm))
        )
    return files


def _check(raw: "Raw", files: Mapping[str, str]) -> int:
    from crmo_fhir import landing
    from crmo_fhir.export.verification import verify_outputs

    return verify_outputs(files, landing.record_keys(raw))


@dataclass(frozen=True, slots=True)
class Released:
    """How many counts a release shows, and of how many."""

    shown: int
    counts: int


def release(
    study: Path,
    disclosure: "Disclosure",
    *,
    mappings: Path | None = None,
    accept_partial: bool = False,
    published: Path | None = None,
    after: Sequence[Path] = (),
    lang: Literal["en", "da"] | None = None,
) -> Released:
    """STUDY/results.csv → STUDY/release: the same files, with every count masked that a child could be recognised by.

    Held against the receipts of earlier releases, of this study and of those `after`; its own receipt is written before the
    files. `lang` is the language of report.html, by default that of the study. Raises an error of `verify` where the study is not what `measure` left, PrivacyError where nothing safe remains.
    """
    from crmo_fhir import landing
    from crmo_fhir.artifacts import Artifacts
    from crmo_fhir.export.disclosure import count_shown, filter_published, filter_results
    from crmo_fhir.export.results import results_csv
    from crmo_fhir.export.verification import verify_outputs
    from crmo_fhir.metrics.statistics import INTERVALS

    with ExitStack() as held:
        for one in {folder.resolve(): folder for folder in (study, *after)}.values():
            held.enter_context(landing.hold(one))
        artifacts = Artifacts.load(mappings)
        verified = _verified(study, artifacts, accept_partial=accept_partial)
        measured, account = verified.measured, verified.account
        exact = results_csv(measured.results)
        earlier = [
            _release(receipt) for one in dict.fromkeys((study, *after)) for receipt in landing.read_releases(one)
        ]
        interval = INTERVALS[measured.study.parameters.interval]
        results = filter_results(measured.results, disclosure, interval, earlier)
        printed = _read_published(published) if published else None
        safe = None if printed is None else filter_published(printed, results, disclosure) or None
        form = replace(Form(**account["form"]), individual=False)
        form = replace(form, lang=lang or form.lang)
        outputs = _texts(Measured(results, _released_study(measured.study, disclosure)), artifacts, safe, form)
        verify_outputs(outputs, landing.record_keys(verified.raw), disclosure)
        content = {"results": exact, "released": outputs["results.csv"], **asdict(disclosure)}
        landing.keep_release(study, {**content, "released on": datetime.now(UTC).date().isoformat()})
        landing.write_release(
            study, outputs, {**account, "published": safe, "form": asdict(form), **asdict(disclosure)}
        )
    return Released(*count_shown(results))


def _release(receipt: Mapping[str, Any]) -> "Release":
    from crmo_fhir.export.disclosure import Release
    from crmo_fhir.export.results import read_results
    from crmo_fhir.model.study import Disclosure

    return Release(
        tuple(read_results(receipt["results"])),
        tuple(read_results(receipt["released"])),
        Disclosure(receipt["threshold"], receipt["rounding"]),
        receipt["released on"],
    )


def _released_study(study: "Study", disclosure: "Disclosure") -> "Study":
    """The study without counts that cannot be protected; a date that is one child's is widened to its year."""
    given = study.parameters
    lock = study.data_lock
    if lock is not None and given.data_lock is None:
        lock = lock.replace(month=12, day=31)
    return replace(
        study,
        reporter_reference=None,  # it would lead nowhere on another server, so the hospital goes along by name
        start=study.start if given.since else study.start.replace(month=1, day=1),
        end=study.end if given.until else study.end.replace(month=12, day=31),
        data_lock=lock,
        attrition=(),
        unmapped=(),
        ledger={},
        warnings=(),
        disclosure=disclosure,
    )


@dataclass(frozen=True, slots=True)
class Published:
    """What came of `publish`: the plan, and what each of its writes became (none in a dry run)."""

    plan: "Plan"
    written: "list[Held]"


def publish(
    study: Path,
    *,
    to: str = "",
    allowed: Sequence[str] = (),
    confirm: str = "",
    withdraw: bool = False,
    individual: bool = False,
    observations: bool = False,
    over: Sequence[str] = (),
    mappings: Path | None = None,
    server: Server | None = None,
    voice: Voice = SILENT,
) -> Published:
    """The results of a study → a FHIR server; without `confirm` only what would be written.

    `to` is the server, by default the one the records came from; any other must be among `allowed`, and gets the masked
    copy of STUDY/release alone. `withdraw` takes back what was published; `over` names foreign versions that may go;
    `individual` writes the report of each child too, `observations` the effects attributed to treatments: both at the source
    alone.
    Raises an error of `errors`; a ConflictError where the server holds something else than was expected or sent.
    """
    from crmo_fhir import landing
    from crmo_fhir import publish as way_back

    with landing.hold(study):
        base, own = _target(study, to, allowed)
        if (individual or observations) and not own:
            raise PrivacyError(
                f"{study}: what is about single patients goes back to the server they came from and nowhere else"
            )
        reports, receipts = [], landing.read_receipts(study)
        if not withdraw:
            reports += _publishable(study, mappings, own=own, warn=voice.warn)
            reports += [*(_individual(study) if individual else []), *(_attributed(study) if observations else [])]
        told = withdraw and any(write["resource"] == "Observation" for one in receipts for write in one["writes"])
        types = ["MeasureReport"] if withdraw else ["Library", "Measure", "MeasureReport"]
        types += [*(["Observation"] if observations or told else []), "Provenance"]
        client, capability = _connect(base, server or Server(), voice, writes=types)
        try:
            offer = way_back.read_offer(capability, [kind for kind in types if kind != "Provenance"], client.host)
            pull = landing.sha256_of(study / "raw" / "manifest.json")
            if not withdraw:
                stale = partial(way_back.find_stale, individual=individual, observations=observations)
                reports += stale(client, receipts, reports)
            else:
                path = study / "measure-report.json"
                reports = way_back.find_published(client, receipts, _json_of(path) if path.is_file() else None)
            made = [report for report in reports if report["resourceType"] not in ("Library", "Measure")]
            origin = way_back.describe_origin(made, pull, withdrawn=withdraw)
            plan = way_back.prepare(client, offer, reports, origin, receipts, over)
            for note in plan.notes:
                voice.warn(note)
            if not plan.requests:
                return Published(plan, [])
            if not confirm:
                shown = way_back.begin_receipt(plan, plan.sha256, "dry-run")
                landing.write_receipt(study, landing.DRY_RUN, shown)
                return Published(plan, [])
            way_back.check_approved(plan, confirm, receipts, landing.read_dry_run(study), client.host)
            keep = partial(landing.write_receipt, study, f"publish-{len(receipts) + 1:04}.json")
            receipt = way_back.begin_receipt(plan, confirm, "begun")
            return Published(plan, way_back.carry_out(client, plan, receipt, keep))
        finally:
            client.close()


def _target(study: Path, to: str, allowed: Sequence[str]) -> tuple[str, bool]:
    """Where to publish, and whether that is the very server the records came from; PrivacyError where it may not be."""
    from crmo_fhir import landing
    from crmo_fhir.fhir.client import checked_base

    source = landing.source_of(study)
    own = checked_base(source) if _is_server(source) else ""
    others = [checked_base(url) for url in allowed]
    if not to and not own and len(others) != 1:
        raise UsageError(f"{study}: its records came from no server; name the one to publish to with --server URL")
    base = checked_base(to or own or others[0])
    if base != own and base not in others:
        raise PrivacyError(
            f"{base} is not where the records came from, nor listed as publish = [...] in crmo-fhir.toml; nothing was sent"
        )
    return base, base == own


def _publishable(study: Path, mappings: Path | None, *, own: bool, warn: Tell) -> list[dict[str, Any]]:
    """Library, Measure and reports in the order in which they are written, after `verify`; the masked ones for elsewhere."""
    from crmo_fhir.artifacts import Artifacts

    artifacts = Artifacts.load(mappings)
    verified = _verified(study, artifacts)
    if verified.account["form"]["fhir_version"] != "R4":
        raise UsageError(
            f"{study}: the report is in FHIR R5; run 'crmo-fhir measure {study}' to write it for an R4 server"
        )
    names = ("library.json", "measure.json", "measure-report.json")
    release = study / "release"
    if not own and not (release / names[2]).is_file():
        raise PrivacyError(
            f"{study}: unmasked figures go back to the server they came from and nowhere else; run 'crmo-fhir release {study}' first"
        )
    if not own:
        _verify_release(study, verified, artifacts)
    library, measured, report = (_json_of((study if own else release) / name) for name in names)
    if report.get("status") != "complete":
        raise IncompleteError(f"{study}: the report is of a pull that is not whole; it is not published")
    if any(one.get("name") == NOT_NAMED for one in report.get("contained", ())):
        warn(
            f"the report does not name who reports; set reporter in crmo-fhir.toml and run 'crmo-fhir measure {study}'"
        )
    return [library, measured, report]


def _individual(study: Path) -> list[dict[str, Any]]:
    path = study / "individual-reports.ndjson"
    if not path.is_file():
        raise UsageError(f"{path}: is missing; run 'crmo-fhir measure {study} --individual' first")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _attributed(study: Path) -> list[dict[str, Any]]:
    from crmo_fhir import landing
    from crmo_fhir.export.observations import build_attributed_effects, build_reviewed_effects
    from crmo_fhir.model.review import judgement_of

    tables = _tables(study)
    reviews = [judgement_of(one) for review in landing.read_reviews(study) for one in review["judgements"]]
    return [*build_attributed_effects(tables), *build_reviewed_effects(tables, reviews)]


def _json_of(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"{path}: is missing; run 'crmo-fhir measure' first") from error
    except ValueError as error:
        raise IntegrityError(f"{path}: is no JSON; run 'crmo-fhir measure' again") from error
    if not isinstance(found, dict):
        raise IntegrityError(f"{path}: is no FHIR resource; run 'crmo-fhir measure' again")
    return found


def demo(study: Path, *, form: Form | None = None, voice: Voice = SILENT) -> Measured:
    """The whole way on the bundled cohort, without a network; the printed figures travel with it."""
    fixtures = demonstration()
    window = json.loads((fixtures / "published" / "window.json").read_text(encoding="utf-8"))
    extract(str(fixtures / "demonstration"), study, _parameters(window), voice=voice)
    return measure(study, published=fixtures / "published" / "printed.csv", form=form)


def demonstration() -> Path:
    """The folder of the bundled records and of the figures printed for them: in the package, else in the checkout."""
    packaged = Path(str(package_files("crmo_fhir"))) / "fixtures"
    checkout = Path(__file__).resolve().parents[2] / "fixtures"
    for folder in (packaged, checkout):
        if (folder / "demonstration").is_dir():
            return folder
    raise IncompleteError(f"{packaged}: the demonstration is missing from this installation; install crmo-fhir again")


def _study(
    manifest: Mapping[str, Any],
    built: Mapping[str, Any],
    patients: "pd.DataFrame",
    parameters: Parameters,
    folder: Path,
    reporter: Reporter,
) -> "Study":
    from crmo_fhir.model.study import Study

    data_lock = date.fromisoformat(built["data_lock"]) if built["data_lock"] else None
    first = min(patients["diagnosis_low"], default=None)
    attrition = _read_csv((folder / "attrition.csv").read_text(encoding="utf-8"))
    with (folder.parent / "raw" / "ledger.csv").open(encoding="utf-8", newline="") as text:
        ledger = Counter(row["state"] for row in csv.DictReader(text))
    end = parameters.until or data_lock or parameters.since or date(1970, 1, 1)  # no record has a date: an empty cohort
    return Study(
        parameters=parameters,
        start=parameters.since or first or min(end, data_lock or end),
        end=end,
        data_lock=data_lock,
        complete=manifest["complete"],
        reporter=reporter.name or NOT_NAMED,
        reporter_reference=reporter.reference,
        program_version=__version__,
        source_kind="FHIR server" if manifest["source"]["server"] else "FHIR export (folder)",
        attrition=tuple({**row, "kept": int(row["kept"]), "dropped": int(row["dropped"])} for row in attrition),
        unmapped=tuple(_read_csv((folder / "unmapped.csv").read_text(encoding="utf-8"))),
        ledger=dict(sorted(ledger.items())),
        warnings=tuple(manifest["warnings"]),
    )


def _plain(parameters: Parameters) -> dict[str, Any]:
    return {k: v.isoformat() if isinstance(v, date) else v for k, v in asdict(parameters).items()}


def _parameters(plain: Mapping[str, Any]) -> Parameters:
    days = {"since", "until", "data_lock"}
    names = Parameters.__dataclass_fields__
    given: dict[str, Any] = {k: date.fromisoformat(v) if k in days and v else v for k, v in plain.items() if k in names}
    return Parameters(**given)


def _csv(frame: "pd.DataFrame") -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(frame.columns)
    for row in frame.itertuples(index=False):
        writer.writerow(["" if value is None else _cell(value) for value in row])
    return text.getvalue().encode("utf-8")


def _cell(value: object) -> object:
    """A text cell that a spreadsheet could run as a formula is defused (OWASP CSV injection)."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r", "\0") else value


def _read_published(path: Path) -> Sequence[dict[str, str]]:
    """Figures printed elsewhere; from `NAME.da.csv` beside `NAME.csv`, if it is there, quantity and note in Danish."""
    from crmo_fhir.export.texts import LANGUAGES

    rows = _read_csv(path.read_text(encoding="utf-8"))
    for lang in LANGUAGES:
        other = path.with_suffix(f".{lang}{path.suffix}")
        found = {row.get("id"): row for row in _read_csv(other.read_text(encoding="utf-8"))} if other.is_file() else {}
        for row in rows:
            told = found.get(row.get("id"), {})
            row |= {f"{name}_{lang}": told[name] for name in ("quantity", "note") if told.get(name)}
    return rows


def _read_csv(text: str) -> Sequence[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))
