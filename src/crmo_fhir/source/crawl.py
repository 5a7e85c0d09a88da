"""The candidates' records out of a FHIR server, by search.

Conditions by code and by text, checked again here; their patients, and the other records of the same persons; then
every read type of those patients; then what these refer to. Whatever a server sends is tested against what was asked:
servers ignore filters. What is already known to be there is looked for in what a search gives: servers find less than
they hold. A search of several pages is held against what changed while it ran.

Who the candidates are must be known, or the run ends. From there on a search that fails costs its own patients and type:
the ledger says so, `Pull.failures` holds why, and the rest is fetched. A later pull of the same study may fetch only what
changed (`Earlier`): the server's count of all tells what was deleted.
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar

import msgspec

from crmo_fhir.errors import IncompleteError
from crmo_fhir.fhir import references
from crmo_fhir.fhir.client import FhirClient, ForbiddenError, RefusedError
from crmo_fhir.fhir.codings import CodeSet, is_subsetted
from crmo_fhir.fhir.references import Key
from crmo_fhir.fhir.search import Account, Match, ShortError, capabilities, check_total, count
from crmo_fhir.fhir.search import search as find
from crmo_fhir.model.records import READ_TYPES, STRONGER_THAN_ORDERS, LedgerRow, Pull, Record, State
from crmo_fhir.source import plan, selection
from crmo_fhir.source.plan import Search
from crmo_fhir.source.selection import HYDRATED, Person

Fits = Callable[[Search, Match], bool]
"""Whether a match is what a search asks for: servers ignore filters."""
_T = TypeVar("_T")
PASSES = 4
"""So often a search of several pages is repeated while the data change under it, before the run gives it up."""
_NOT_TAKEN = (400, 404, 405, 406, 415, 422, 501)
_NO_POST = (400, 404, 405, 406, 415, 422, 501)


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an earlier pull of the same server holds, and `since` when (FHIR instant) to ask for changes.

    `whole` are the (patient, type) cells it has in full, `counts` the records by type that its source had.
    """

    since: str
    records: tuple[Record, ...]
    whole: frozenset[tuple[str, str]]
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Got:
    """The newest copy of a resource so far: its record, age, whom it is about, what it refers to, for whom it came."""

    record: Record
    age: tuple[datetime, int]
    about: Any
    refers: list[dict[str, Any]]
    owners: set[str]


@dataclass(slots=True)
class _Crawl:
    """What a crawl knows while it runs."""

    client: FhirClient
    capability: Mapping[str, Any]
    types: dict[str, set[str]]
    pull: Pull
    absent: frozenset[str]
    progress: Callable[[str, int, int | None], None]
    earlier: Earlier | None = None
    need_text: bool = False
    got: dict[Key, _Got] = field(default_factory=dict)
    aliases: dict[str, Key] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    cells: dict[tuple[str, str], tuple[State, str]] = field(default_factory=dict)
    countable: bool = True
    posts: bool | None = None
    totals: bool | None = None
    unverified: int = 0
    times: list[str] = field(default_factory=list)
    shown: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    kept: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    lock: threading.Lock = field(default_factory=threading.Lock)


def crawl(
    client: FhirClient,
    crmo: CodeSet,
    text: CodeSet,
    *,
    need_text: bool = False,
    absent: Collection[str] = (),
    earlier: Earlier | None = None,
    capability: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int | None], None] = lambda *_: None,
) -> Pull:
    """Pull the candidates' records from a server.

    `need_text`: diagnoses in words alone count in the study, so a server that cannot be searched for them ends the run.
    `absent` are types that the hospital says it does not have; `capability` is the CapabilityStatement where the caller has
    it already; `progress` is told (type, records so far, and when no more are to come, their number).

    Raises NetworkError, SignInError and IncompleteError as the client does; IncompleteError too where the server sends
    what was not asked for, does not give the candidates' patients, or does not list Patient or Condition. What else fails
    is in `Pull.failures`, and its cells of the ledger say refused, truncated or unsupported.
    """
    capability = capabilities(client) if capability is None else capability
    run = _Crawl(
        client,
        capability,
        plan.declared(capability),
        Pull(source=client.base, base=client.base),
        frozenset(absent),
        progress,
        _usable(client, earlier),
        need_text,
    )
    _describe(run)
    for kind in ("Patient", "Condition"):
        if kind not in run.types:
            raise IncompleteError(f"{client.host}: its CapabilityStatement lists no {kind}; check the base URL")
    with _workers(client) as pool:
        conditions = _conditions(run, pool, crmo, text)
        people = _people(run, pool, _subjects(run, conditions))
        ids = sorted(people)
        known = {_key(run, match) for match in conditions if run.got[_key(run, match)].owners}
        _of_patients(run, pool, ids, known)
        _hydrate(run, pool, set(ids))
    _count_evidence(run)
    _report(run, ids)
    return run.pull


@contextmanager
def _workers(client: FhirClient) -> Iterator[ThreadPoolExecutor]:
    """The threads that ask; where the run ends early nobody waits for what they are asking, and they ask for no more."""
    ended = threading.Event()
    pool = ThreadPoolExecutor(client.workers, initializer=client.ask_until, initargs=(ended,))
    try:
        yield pool
    except BaseException:
        ended.set()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _usable(client: FhirClient, earlier: Earlier | None) -> Earlier | None:
    """The earlier pull, unless the server's clock now stands before it: then its changes cannot be told from the rest."""
    if earlier is None:
        return None
    now = _instant(client.server_date)
    if now is None or now < selection.instant(earlier.since):
        client.tell("the server's clock stands before the last pull or is not shown: everything is fetched anew")
        return None
    return earlier


def _instant(date: str) -> datetime | None:
    """A `Date` header as a time."""
    try:
        return parsedate_to_datetime(date)
    except (ValueError, TypeError):
        return None


def _count_evidence(run: _Crawl) -> None:
    """Where the candidates have orders only, ask whether the whole server holds stronger evidence of a drug taken."""
    if not run.counts["MedicationRequest"] or any(run.counts[kind] for kind in STRONGER_THAN_ORDERS):
        return
    for kind in STRONGER_THAN_ORDERS:
        if kind not in run.types:
            continue
        try:
            counted = count(run.client, kind, [])
        except (RefusedError, ForbiddenError):
            counted = None
        if counted is None:
            _warn(run, f"the server does not count its {kind}: orders make courses, as if it held none")
        else:
            run.counts[kind] = counted


def _describe(run: _Crawl) -> None:
    software = run.capability.get("software")
    software = software if isinstance(software, dict) else {}
    version = str(run.capability["fhirVersion"])
    said = {
        "name": software.get("name"),
        "version": software.get("version"),
        "fhirVersion": version,
        "date": run.client.server_date,
    }
    run.pull.server = {name: value for name, value in said.items() if isinstance(value, str) and value}
    run.pull.fhir_versions = [version]


# ------------------------------------------------------------------------------------------------------------ searching


def _ask(run: _Crawl, search: Search, fits: Fits = lambda *_: True) -> list[Match]:
    """Run one search to its end, and again as long as the data change under it (see `_settled`).

    Where the server counts more than it sends and links to no further page, all of it is asked for on one page, and
    where that is not given, half as many values at a time. ShortError where one value alone has too many matches;
    IncompleteError as soon as a match comes that does not fit: then the server ignores what it is asked.
    """
    try:
        return _settled(run, search, fits)
    except ShortError as short:
        if (wider := plan.widened(search, short.total)) is not None:
            try:
                return _settled(run, wider, fits)
            except ShortError:
                pass
            except RefusedError as error:
                if error.status not in _NOT_TAKEN:
                    raise
        halves = plan.halves(search)
        if not halves:
            raise
    return [match for half in halves for match in _ask(run, half, fits)]


def _settled(run: _Crawl, search: Search, fits: Fits) -> list[Match]:
    """The matches of a search of which it is known that nothing slipped from page to page while it ran.

    One page is one moment. Over several pages, a record that is deleted or written moves the others, and one may be on no
    page at all while another takes its place in the count (FHIR R4 http, paging; results are current at the moment of the
    request only). So the search is over when nothing it finds was written since it began and the server still counts as
    many, or when two passes bring the same. Of a page that a run that was cut off has left the moment is gone by: it counts
    where the server says that nothing of it was written or deleted since.
    """
    account = Account()
    try:
        matches = _once(run, search, account, fits)
    except IncompleteError:
        if not account.recalled:
            raise
        account = Account()  # what a killed run left does not go on: its pages may have expired
        matches = _once(run, search, account, fits, fresh=True)
    for _ in range(PASSES - 1):
        if (account.pages < 2 and not account.recalled) or _is_quiet(run, search, account):
            return matches
        if run.totals is None and len(account.totals) < account.pages:
            run.totals = _takes_total(run, search)
        before, account = _content(matches), Account()
        _show(run, search.type, -len(matches))
        matches = _once(run, search, account, fits, fresh=True)
        if _content(matches) == before:
            return matches
    raise IncompleteError(
        f"{run.client.host}, {search.type} search: the data change faster than their pages can be read; run again later"
    )


def _content(matches: Iterable[Match]) -> set[tuple[str, str]]:
    return {(match.id, match.text) for match in matches}


def _is_quiet(run: _Crawl, search: Search, account: Account) -> bool:
    """Whether the server says that nothing of a search was written since it began, and always counted what came.

    Each of several pages must have named the total: nothing else tells of what was deleted between them.
    """
    began = _instant(account.started)
    if began is None or "_lastUpdated" not in run.types.get(search.type, ()):
        return False
    if not run.countable or (account.pages > 1 and account.totals != [account.matches] * account.pages):
        return False
    changed = replace(search, params=(*search.params, ("_lastUpdated", f"ge{_fhir_instant(began)}")))
    return _counted(run, changed) == 0 and _counted(run, search) == account.matches


def _fhir_instant(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _once(run: _Crawl, asked: Search, account: Account, fits: Fits, *, fresh: bool = False) -> list[Match]:
    """Run one search and take down how it went, with the server's count of its matches where that can be had."""
    params = _params(run, asked)

    def check(match: Match) -> None:
        if not fits(asked, match):
            raise IncompleteError(
                f"{run.client.host}, {asked.type} search: the server sent what was not asked for; it ignores "
                f"{asked.params[0][0]}"
            )

    matches = []
    post = _posts(run, asked)
    for match in find(run.client, asked.type, params, post=post, account=account, fresh=fresh, check=check):
        matches.append(match)
        if len(matches) % 200 == 0:
            _show(run, asked.type, 200)
    _show(run, asked.type, len(matches) % 200)
    if run.countable and (account.total is None or not account.matches or not asked.patients):
        # Nothing in an empty answer, or in one about nobody we know, shows that it is the answer to this question.
        counted = _counted(run, asked)
        run.countable = counted is not None
        if counted is not None:
            account.total = counted
            check_total(run.client, asked.type, counted, account.matches)
    if account.total is None and account.pages == 1 and account.matches >= int(dict(params)["_count"]):
        # A full page, no link and no count: only a larger page can tell whether there is more.
        raise ShortError(
            f"{run.client.host}, {asked.type} search: a full page with no count and no link; whether there is more "
            "cannot be known",
            2 * account.matches,
        )
    _take_down(run, asked, params, account)
    return matches


def _show(run: _Crawl, kind: str, more: int) -> None:
    """Tell how many records of a type have come, and that these are all when no search for it is left."""
    with run.lock:
        run.shown[kind] += more
        run.progress(kind, run.shown[kind], None if run.left.get(kind, 1) else run.shown[kind])


def _take_down(run: _Crawl, asked: Search, params: Sequence[tuple[str, str]], account: Account) -> None:
    """Keep the account of a search for the manifest; whom it asked for stays out of it."""
    said = [f"{name}={'' if name in plan.ABOUT_PERSONS else value}" for name, value in params]
    with run.lock:
        run.kept[asked.type] += account.kept
        run.times.append(account.started)
        run.pull.searches.append(
            {
                "type": asked.type,
                "method": "POST" if _posts(run, asked) else "GET",
                "query": f"{asked.type}?{'&'.join(said)}",
                "asked": len(asked.patients),
                "pages": account.pages,
                "matches": account.matches,
                "repeated": account.repeated,
                "total": account.total,
                "framed": account.framed,
                "outcomes": account.outcomes,
            }
        )
        run.unverified += account.total is None
    for code in account.outcomes:
        _warn(run, f"{asked.type} search: the server warns ({code})")


def _params(run: _Crawl, search: Search) -> tuple[tuple[str, str], ...]:
    """The parameters of a search, with a total asked for where the server knows how."""
    asks = run.totals or "_total" in run.types.get(search.type, ())
    return (*search.params, ("_total", "accurate")) if asks else search.params


def _takes_total(run: _Crawl, search: Search) -> bool:
    """Whether a server that says no total unasked says it when it is asked; few say so in their CapabilityStatement."""
    account, params = Account(), (*search.params, ("_total", "accurate"))
    try:
        for _ in find(run.client, search.type, params, post=_posts(run, search), account=account, fresh=True):
            break
    except IncompleteError:
        return False
    return account.total is not None


def _posts(run: _Crawl, search: Search) -> bool:
    """Whether to search by POST: what names persons belongs in no URL, which servers write to their logs."""
    return run.posts is not False and any(name in plan.ABOUT_PERSONS for name, _ in search.params)


def _insist(ask: Callable[[], _T]) -> _T:
    """Ask, and once more where the server refuses what it need not take: one refusal may be a fault of the moment."""
    try:
        return ask()
    except RefusedError as error:
        if error.status not in _NOT_TAKEN:
            raise
    return ask()


def _counted(run: _Crawl, search: Search) -> int | None:
    """The server's count of the matches of a search, asked for apart; None where it gives none, asked twice."""
    for _ in range(2):
        try:
            found = count(run.client, search.type, _params(run, search), post=_posts(run, search))
        except RefusedError as error:
            if error.status not in _NOT_TAKEN:
                raise
            continue
        if found is not None:
            return found
    return None


def _ask_all(
    run: _Crawl, pool: ThreadPoolExecutor, searches: Iterable[Search], fits: Fits
) -> Iterator[tuple[Search, list[Match]]]:
    """Run searches side by side; give each with its matches, in the order of the searches."""
    listed = list(searches)
    return zip(listed, pool.map(lambda search: _ask(run, search, fits), listed), strict=True)


def _warn(run: _Crawl, warning: str) -> None:
    with run.lock:
        if warning not in run.pull.warnings:
            run.pull.warnings.append(warning)


def _doubt(run: _Crawl, warning: str) -> None:
    """Warn that diagnoses in words alone may be missing; IncompleteError where the study counts them."""
    if run.need_text:
        raise IncompleteError(f"{run.client.host}: {warning}, and this study counts them; leave --text-diagnosis out")
    _warn(run, warning)


def _key(run: _Crawl, match: Match) -> Key:
    return Key(run.client.base, match.type, match.id)


def _take(run: _Crawl, match: Match, owners: Iterable[str]) -> None:
    """Keep a match, the newest copy where it came before."""
    key = _key(run, match)
    if match.full_url:
        run.aliases[match.full_url] = key
    origin = f"{match.type} search, page {match.page}"
    record = Record(match.type, match.id, match.text, origin, run.client.base, match.full_url)
    age = selection.age(match.resource)
    before = run.got.get(key)
    if before is not None:
        before.owners.update(owners)
        if not selection.newer((age, match.text), (before.age, before.record.text)):
            return
    else:
        run.counts[match.type] += 1
    about, refers = selection.subject(match.resource), selection.wanted(match.resource)
    run.got[key] = _Got(record, age, about, refers, before.owners if before is not None else set(owners))


def _target(run: _Crawl, reference: object) -> Key | None:
    """The key on this server a reference means, whether or not it was fetched; None for foreign and unreadable ones."""
    said = references.parse(reference, run.client.base)
    if said.kind == "own":
        return Key(said.base, said.type, said.id)
    text = reference.get("reference") if isinstance(reference, dict) else reference
    return run.aliases.get(text.strip()) if isinstance(text, str) else None


def _has_id(search: Search, match: Match) -> bool:
    """Whether a match is one of those asked for by their ids."""
    return match.id in search.patients


# ----------------------------------------------------------------------------------------------- Conditions and patients


def _conditions(run: _Crawl, pool: ThreadPoolExecutor, crmo: CodeSet, text: CodeSet) -> list[Match]:
    """The Conditions that qualify, by code and by text."""
    found: list[Match] = []
    asked = {code.casefold() for _, code in plan.condition_tokens(crmo)}

    def fits(_: Search, match: Match) -> bool:
        return selection.qualifies(match.resource, crmo, text) or any(
            coding.code and coding.code.casefold() in asked for coding in selection.codings(match.resource.get("code"))
        )

    for _, matches in _ask_all(run, pool, plan.plan_conditions(crmo, len(run.client.base)), fits):
        found += [match for match in matches if selection.qualifies(match.resource, crmo, text)]
    worded: list[Match] = []
    for search in plan.plan_text():
        try:
            matches = _insist(partial(_ask, run, search))
            if matches and not any(
                word in said for match in matches for said in _said(match) for word in plan.TEXT_WORDS
            ):
                # It may be the answer to another search; what comes a second time is the server's way to read words.
                _forget(run, search.type)
                matches = _insist(partial(_ask, run, search))
        except RefusedError as error:
            if error.status not in _NOT_TAKEN:
                raise
            _doubt(
                run, f"the server refuses the search by text ({error.status}): diagnoses in words alone are not found"
            )
            continue
        _check_text(run, found, matches)
        worded += matches
    if all(any(selection.codings(match.resource.get("code"))) for match in worded):
        worded += _uncoded(run)
    return found + [match for match in worded if selection.qualifies(match.resource, crmo, text)]


def _uncoded(run: _Crawl) -> list[Match]:
    """The Conditions that the server has under no code, where it can be asked for them and they are not too many."""
    search = plan.plan_uncoded()
    try:
        total = _insist(lambda: count(run.client, search.type, search.params)) or 0
        if total <= plan.LARGEST_PAGE:
            return _insist(lambda: _ask(run, search)) if total else []
    except RefusedError as error:
        if error.status not in _NOT_TAKEN:
            raise
        _warn(
            run,
            "the server refuses the search for Conditions without a code: that its search by text finds them is not known",
        )
        return []
    _doubt(
        run,
        f"the server has {total} Conditions without a code, and its search by text finds none such: diagnoses in words "
        "alone may not be found",
    )
    return []


def _check_text(run: _Crawl, coded: list[Match], matches: list[Match]) -> None:
    """Warn where Conditions that begin with the words are not among what the search by these words gave.

    FHIR R4 3.1.1.4.10: `:text` compares the beginning of `code.text` and of the displays; some servers take it for a code.
    """
    known = {match.id for match in coded if any(said.startswith(plan.TEXT_WORDS) for said in _said(match))}
    if lost := known - {match.id for match in matches}:
        _doubt(
            run,
            f"the server's search by text leaves out {len(lost)} of {len(known)} Conditions known to hold the words: "
            "diagnoses in words alone may not be found",
        )


def _said(match: Match) -> list[str]:
    """The text and the displays of a Condition's code, in lower case."""
    code = match.resource.get("code")
    text = code.get("text") if isinstance(code, dict) else None
    displays = [coding.display for coding in selection.codings(code)]
    return [said.casefold() for said in (text, *displays) if isinstance(said, str)]


def _forget(run: _Crawl, kind: str) -> None:
    """Drop the pages of a type from the journal: they turned out wrong as a whole, and the next run asks anew."""
    with run.lock:
        run.client.forget(run.kept.pop(kind, ()))


def _subjects(run: _Crawl, conditions: list[Match]) -> set[str]:
    """The ids of the Conditions' patients; a Condition whose patient is not on this server is kept and counted."""
    ids: set[str] = set()
    lost: set[str] = set()
    for match in conditions:
        target = _target(run, selection.subject(match.resource))
        if target is not None and target.type == "Patient":
            ids.add(target.id)
            _take(run, match, [target.id])
        else:
            lost.add(match.id)
            _take(run, match, [])
    if lost:
        _warn(run, f"{len(lost)} qualifying Conditions refer to no patient of this server")
    return ids


def _people(run: _Crawl, pool: ThreadPoolExecutor, ids: set[str]) -> dict[str, Person]:
    """Fetch these patients and, until nothing new comes, the other records of the same persons."""
    people: dict[str, Person] = {}
    missing_links: set[str] = set()
    required = set(ids)
    todo = set(ids)
    while todo:
        fresh, replaced = _patients(run, pool, todo, required, missing_links)
        people |= fresh
        todo = set()
        for one in fresh.values():
            for other in one.links:
                target = _target(run, other)
                if target is not None and target.type == "Patient" and target.id not in people:
                    todo.add(target.id)
        shown = _linking(run, pool, fresh) | _sharing(run, pool, fresh)
        required |= replaced | shown
        todo |= shown
        todo -= set(people) | missing_links
    if missing_links:
        _warn(run, f"{len(missing_links)} Patient records that others say they replace are not on the server")
    return people


def _patients(
    run: _Crawl, pool: ThreadPoolExecutor, ids: set[str], required: set[str], missing: set[str]
) -> tuple[dict[str, Person], set[str]]:
    """The persons of these ids, and the ids of the records that have taken the place of some."""
    found: dict[str, Person] = {}
    replacing: set[str] = set()
    searches = plan.plan_patient("Patient", sorted(ids), run.capability, len(run.client.base))
    if searches and run.posts is None:
        _try_post(run, searches[0])
    for _, matches in _ask_all(run, pool, searches, _has_id):
        for match in matches:
            _take(run, match, [match.id])
            one = selection.person(_key(run, match), match.resource)
            found[match.id] = one
            targets = {
                target.id
                for other in one.links
                if selection.is_replaced_by(match.resource, other)
                and (target := _target(run, other)) is not None
                and target.type == "Patient"
            }
            replacing |= targets
    if lost := ids - set(found):
        if lost & required:
            _forget(run, "Patient")
            raise IncompleteError(
                f"{run.client.host}: {len(lost & required)} patients with a qualifying Condition, or in the place of one, "
                "are not given; check the scope of the token"
            )
        missing |= lost
    return found, replacing


def _try_post(run: _Crawl, search: Search) -> None:
    """Find out, with the first search that names persons, whether the server takes searches by POST.

    No CapabilityStatement says so. One that refuses them, or does not read the form and so answers with others, is asked
    by GET from then on; the ids of FHIR are no names. It must do so twice in the same way: once may be a fault.
    """
    before = ""
    for _ in range(PASSES):
        try:
            found = count(run.client, search.type, search.params, post=True)
        except IncompleteError as error:
            if isinstance(error, RefusedError) and error.status not in _NO_POST:
                raise
            answer = str(error)
        else:
            run.posts = found is None or found <= len(search.patients)
            if run.posts:
                return
            answer = str(found)
        if answer == before:
            break
        before = answer
    run.posts = False


def _linking(run: _Crawl, pool: ThreadPoolExecutor, people: dict[str, Person]) -> set[str]:
    """The ids of Patient records that link to these, where the server can be asked (`Patient?link=`)."""
    if not people:
        return set()
    if "link" not in run.types["Patient"]:
        _warn(run, "the server lists no search Patient?link: records merged elsewhere may be missing")
        return set()
    ids: set[str] = set()
    searches = [
        Search("Patient", (("link", value), ("_count", plan.PAGE)), optional=True, patients=batch.patients)
        for batch in plan.plan_ids("Patient", sorted(people), len(run.client.base) + 200)
        for value in (",".join(f"Patient/{plan.escaped(one)}" for one in batch.patients),)
    ]

    def fits(search: Search, match: Match) -> bool:
        linked = match.resource.get("link")
        links = linked if isinstance(linked, list) else []
        return _mean(run, search, [link.get("other") for link in links if isinstance(link, dict)])

    try:
        answers = _insist(lambda: list(_ask_all(run, pool, searches, fits)))
    except RefusedError as error:
        if error.status not in _NOT_TAKEN:
            raise
        _warn(run, f"the server refuses Patient?link ({error.status}): records merged elsewhere may be missing")
        return ids
    for search, matches in answers:
        for match in matches:
            # `seealso` and `refer` point to a patient too, and are no merging.
            if _mean(run, search, selection.person(_key(run, match), match.resource).links):
                ids.add(match.id)
    return ids


def _mean(run: _Crawl, search: Search, others: Iterable[object]) -> bool:
    """Whether one of these references is to a patient that a search asks for."""
    targets = [_target(run, other) for other in others]
    return any(target is not None and target.id in search.patients for target in targets)


def _sharing(run: _Crawl, pool: ThreadPoolExecutor, people: dict[str, Person]) -> set[str]:
    """The ids of Patient records with an identifier of these; asked by POST only: an identifier belongs in no URL."""
    identifiers = sorted({identifier for one in people.values() for identifier in one.identifiers})
    if not identifiers:
        return set()
    if "identifier" not in run.types["Patient"]:
        _warn(run, "the server lists no search Patient?identifier: records with a shared identifier may be missing")
        return set()
    if run.posts is False:
        _warn(run, "the server takes no search by POST: records with a shared identifier may be missing")
        return set()
    ids: set[str] = set()
    known = set(identifiers)
    batches = [identifiers[start : start + plan.BATCH] for start in range(0, len(identifiers), plan.BATCH)]
    searches = [
        Search("Patient", (("identifier", value), ("_count", plan.PAGE)), optional=True)
        for batch in batches
        for value in (",".join(f"{plan.escaped(system)}|{plan.escaped(one)}" for system, one in batch),)
    ]

    def fits(_: Search, match: Match) -> bool:
        one = selection.person(_key(run, match), match.resource)
        return bool(one.identifiers & known) or _has_old_identifier(match, known)

    try:
        answers = _insist(lambda: list(_ask_all(run, pool, searches, fits)))
    except RefusedError as error:
        if error.status not in _NOT_TAKEN:
            raise
        _warn(
            run, f"the server refuses Patient/_search ({error.status}): records with a shared identifier may be missing"
        )
        return ids
    for _, matches in answers:
        for match in matches:
            one = selection.person(_key(run, match), match.resource)
            if any(selection.same_person(one, other) for other in people.values()):
                ids.add(match.id)
    return ids


def _has_old_identifier(match: Match, known: set[tuple[str, str]]) -> bool:
    """Whether the server was right and only we do not count the identifier (use temp or old, or another spelling)."""
    values = {value.casefold() for _, value in known}
    items = match.resource.get("identifier")
    found = items if isinstance(items, list) else []
    return any(isinstance(item, dict) and str(item.get("value", "")).strip().casefold() in values for item in found)


# -------------------------------------------------------------------------------------------------- what is about them


def _of_patients(run: _Crawl, pool: ThreadPoolExecutor, ids: list[str], known: set[Key]) -> None:
    """Fetch all of every type of these patients, side by side; of what is known to be theirs, nothing may be missing."""
    searches: list[Search] = []
    for kind in READ_TYPES:
        if kind in ("Patient", "Medication"):
            continue
        if kind in run.types:
            searches += plan.plan_patient(kind, ids, run.capability, len(run.client.base))
        elif kind not in run.absent:
            _fail(run, kind, ids, "unsupported", plan.unlisted(run.client.host, kind))
    before = _by_patient(run)
    run.shown.clear()
    run.left.update(search.type for search in searches)
    for search, answer in zip(searches, pool.map(lambda one: _theirs(run, one, before), searches), strict=True):
        if isinstance(answer, IncompleteError | ForbiddenError):
            refused = isinstance(answer, RefusedError | ForbiddenError)
            _fail(run, search.type, search.patients, "refused" if refused else "truncated", answer)
            continue
        for match, owner in answer:
            _take(run, match, [owner])
        missing = {key for key in known if key.type == search.type and run.got[key].owners & set(search.patients)} - {
            _key(run, match) for match, _ in answer
        }
        if missing:
            _fail(run, search.type, search.patients, "truncated", _lost(run, search.type, len(missing)))


def _theirs(
    run: _Crawl, search: Search, before: Mapping[tuple[str, str], list[Match]]
) -> list[tuple[Match, str]] | IncompleteError | ForbiddenError:
    """The matches of a search by patient, each with its patient; or why it failed, where that is no reason to end."""
    try:
        found = _changes(run, search, before)
        matches = [match for part in _parts(run, search) for match in part] if found is None else found
        return [(match, _owner(run, search, match)) for match in matches]
    except (IncompleteError, ForbiddenError) as error:
        return error
    finally:
        with run.lock:
            run.left[search.type] -= 1
        _show(run, search.type, 0)


def _owned(run: _Crawl) -> Fits:
    """Whether a match is of a patient asked for."""
    return lambda search, match: _owner(run, search, match) != ""


def _owner(run: _Crawl, search: Search, match: Match) -> str:
    """The id of the patient of a match; empty where it is none of those that were asked for."""
    target = _target(run, selection.subject(match.resource))
    return target.id if target is not None and target.type == "Patient" and target.id in search.patients else ""


def _fail(run: _Crawl, kind: str, patients: Iterable[str], state: State, failure: Exception) -> None:
    """Take down what is missing, once for each way in which a type fails."""
    assert isinstance(failure, IncompleteError | ForbiddenError)
    _forget(run, kind)
    for patient in patients:
        run.cells[patient, kind] = (state, str(failure))
    if str(failure) not in {str(other) for other in run.pull.failures}:
        run.pull.failures.append(failure)


def _lost(run: _Crawl, kind: str, number: int) -> IncompleteError:
    return IncompleteError(
        f"{run.client.host}, {kind} search: the server leaves out {number} records of the patients asked for; its search "
        "by patient cannot be relied on"
    )


def _parts(run: _Crawl, search: Search) -> list[list[Match]]:
    """The matches of one search; Observations by category where the server will not give them otherwise."""
    fits = _owned(run)
    try:
        return [_ask(run, search, fits)]
    except RefusedError as error:
        if search.type != "Observation" or error.status not in (400, 422):
            raise
    try:
        return [_ask(run, search, fits)]  # one refusal may be a fault of the moment, and no category finds them all
    except RefusedError as error:
        refusal = error
    searches = [
        replace(search, params=(*search.params, ("category", category))) for category in plan.OBSERVATION_CATEGORIES
    ]
    try:
        parts = [_ask(run, one, fits) for one in searches]
    except RefusedError:
        raise refusal from None  # it was not the category that it wanted
    try:
        parts.append(_ask(run, replace(search, params=(*search.params, ("category:missing", "true"))), fits))
    except RefusedError:
        _warn(run, "the server gives Observations by category only: those without a standard category are not found")
    return parts


# ------------------------------------------------------------------------------------------------------------ increments


def _by_patient(run: _Crawl) -> dict[tuple[str, str], list[Match]]:
    """The records of the earlier pull as matches, by patient and type."""
    found: dict[tuple[str, str], list[Match]] = defaultdict(list)
    for record in run.earlier.records if run.earlier else ():
        resource = msgspec.json.decode(record.text)
        target = _target(run, selection.subject(resource))
        if record.base == run.client.base and target is not None and target.type == "Patient":
            match = Match(record.type, record.id, resource, record.text, record.full_url, 1)
            found[target.id, record.type].append(match)
    return found


def _changes(run: _Crawl, search: Search, before: Mapping[tuple[str, str], list[Match]]) -> list[Match] | None:
    """What the earlier pull has of a search, brought up to date; None where all of it must be asked for.

    Asked for is what was written since, and the server is believed where it finds by date what is known. Then its count of
    the whole tells whether something was deleted or went to somebody else: what we hold after the update can only be too much.
    """
    earlier = run.earlier
    if earlier is None or "_lastUpdated" not in run.types.get(search.type, ()):
        return None
    if any((patient, search.type) not in earlier.whole for patient in search.patients):
        return None
    changed = replace(search, params=(*search.params, ("_lastUpdated", f"ge{earlier.since}")))
    try:
        fresh = {match.id: match for match in _ask(run, changed, _owned(run))}
    except IncompleteError:
        return None  # a server that ignores or refuses _lastUpdated is asked for everything
    held = {match.id: match for patient in search.patients for match in before.get((patient, search.type), ())}
    if held and not _finds_by_date(run, search, held.values()):
        return None
    held |= fresh
    return list(held.values()) if _counted(run, search) == len(held) else None


def _finds_by_date(run: _Crawl, search: Search, known: Iterable[Match]) -> bool:
    """Whether the server finds the newest of these by its time: one without an index of times finds nothing, in silence."""
    newest = max(selection.age(match.resource)[0] for match in known)
    if newest == selection.instant(None):
        return False
    return bool(_counted(run, replace(search, params=(*search.params, ("_lastUpdated", f"ge{_fhir_instant(newest)}")))))


# --------------------------------------------------------------------------------------------------------- what is meant


def _hydrate(run: _Crawl, pool: ThreadPoolExecutor, ids: set[str]) -> None:
    """Fetch the Medications, Encounters, ImagingStudies and MedicationRequests that are referred to, to the end.

    One that is about a patient of these `ids` was left out by the search for all of that patient's, which is then truncated.
    """
    lost: Counter[str] = Counter()
    done: set[Key] = set()
    tried: set[Key] = set()
    while fresh := [key for key in run.got if key not in done]:
        asked: dict[Key, set[str]] = {}
        for key in fresh:
            done.add(key)
            for reference in run.got[key].refers:
                target = _target(run, reference)
                if target is not None and target.type in HYDRATED:
                    asked.setdefault(target, set()).update(run.got[key].owners)
        for target, owners in asked.items():
            if target in run.got and run.got[target].about is None:
                run.got[target].owners |= owners
        for kind in HYDRATED:
            keys = {key for key in asked if key.type == kind} - set(run.got) - tried
            tried |= keys
            try:
                matches = _by_id(run, pool, kind, sorted(key.id for key in keys))
            except (IncompleteError, ForbiddenError) as error:
                state: State = "refused" if isinstance(error, RefusedError | ForbiddenError) else "truncated"
                _fail(run, kind, {owner for key in keys for owner in asked[key]}, state, error)
                continue
            for match in matches:
                _take_meant(run, match, asked[_key(run, match)], ids)
            lost[kind] += len(keys - set(run.got))
    for kind, number in sorted(lost.items()):
        if number:
            _warn(run, f"{number} {kind} resources are referred to and not given by the server (or somebody else's)")


def _take_meant(run: _Crawl, match: Match, owners: set[str], ids: set[str]) -> None:
    """Take a resource that others refer to, unless it is about somebody else."""
    subject = selection.subject(match.resource)
    about = _target(run, subject)
    if subject is None:
        _take(run, match, owners)
    elif about is not None and about.type == "Patient" and about.id in ids:
        if match.type in run.types and (about.id, match.type) not in run.cells:
            _fail(run, match.type, [about.id], "truncated", _lost(run, match.type, 1))
        _take(run, match, [about.id])


def _by_id(run: _Crawl, pool: ThreadPoolExecutor, kind: str, ids: list[str]) -> list[Match]:
    """Resources by id, in batches; one by one those a search does not give."""
    found: list[Match] = []
    searches = plan.plan_ids(kind, ids, len(run.client.base)) if kind in run.types else []
    try:
        for _, matches in _ask_all(run, pool, searches, _has_id):
            found += matches
    except RefusedError as error:
        if error.status not in _NOT_TAKEN:
            raise
    missing = sorted(set(ids) - {match.id for match in found})
    read = pool.map(lambda identity: _read(run, kind, identity), missing)
    return found + [match for match in read if match is not None]


def _read(run: _Crawl, kind: str, identity: str) -> Match | None:
    """Read one resource; None where it is not there (404) or no more (410)."""

    def check(resource: Mapping[str, Any]) -> None:
        if is_subsetted(resource):
            raise IncompleteError(f"{run.client.host}, {kind}: the server sent only a part of a resource (SUBSETTED)")

    try:
        resource, text = run.client.read(kind, identity, check)
    except RefusedError as error:
        if error.status in (404, 410):
            return None
        raise
    return Match(kind, identity, resource, text, None, 1)


# ----------------------------------------------------------------------------------------------------------- the account


def _report(run: _Crawl, ids: list[str]) -> None:
    """Put the records in order and write the ledger of patients and types."""
    run.pull.records = [run.got[key].record for key in sorted(run.got)]
    run.pull.type_counts = dict(sorted(run.counts.items()))
    run.pull.searches.sort(key=lambda one: (str(one["type"]), str(one["query"]), str(one["matches"])))
    times = [moment for date in (run.client.server_date, *run.times) if (moment := _instant(date)) is not None]
    run.pull.server_time = _fhir_instant(min(times)) if times else ""
    if run.unverified:
        _warn(run, f"{run.unverified} searches came without a total: that they are whole rests on their links alone")
    owned: Counter[tuple[str, str]] = Counter()
    for key, one in run.got.items():
        for owner in one.owners:
            owned[owner, key.type] += 1
    for patient in ids:
        for kind in READ_TYPES:
            number = owned[patient, kind]
            state, reason = run.cells.get((patient, kind), ("complete" if number else "empty", ""))
            if kind in run.absent and kind not in run.types and not number:
                reason = "the hospital says that it has none there"
            run.pull.ledger.append(LedgerRow(patient, kind, state, number, reason))
