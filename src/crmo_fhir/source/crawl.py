"""The candidates' records out of a FHIR server, by search.

Conditions by code and by text, checked again here; their patients, and the other records of the same persons; then
every read type of those patients; then what these refer to. Whatever a server sends is tested against what was asked:
servers ignore filters. What is already known to be there is looked for in what a search gives: servers find less than
they hold. A search that fails ends the run, so that a pull is whole or is none.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from crmo_fhir.errors import IncompleteError
from crmo_fhir.fhir import references
from crmo_fhir.fhir.client import Account, FhirClient, Match, RefusedError, ShortError
from crmo_fhir.fhir.codings import CodeSet
from crmo_fhir.fhir.references import Key
from crmo_fhir.model.records import READ_TYPES, STRONGER_THAN_ORDERS, LedgerRow, Pull, Record
from crmo_fhir.source import plan, selection
from crmo_fhir.source.plan import Search
from crmo_fhir.source.selection import HYDRATED, Person

_NOT_TAKEN = (400, 404, 405, 406, 415, 422, 501)


@dataclass(slots=True)
class _Got:
    """The newest copy of a resource so far, and the patients it came for."""

    resource: dict[str, Any]
    record: Record
    owners: set[str]


@dataclass(slots=True)
class _Crawl:
    """What a crawl knows while it runs."""

    client: FhirClient
    capability: dict[str, Any]
    types: dict[str, set[str]]
    pull: Pull
    need_text: bool = False
    got: dict[Key, _Got] = field(default_factory=dict)
    aliases: dict[str, Key] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    countable: bool = True
    unverified: int = 0


def crawl(client: FhirClient, crmo: CodeSet, text: CodeSet, *, need_text: bool = False) -> Pull:
    """Pull the candidates' records from a server.

    `need_text`: diagnoses in words alone count in the study, so a server that cannot be searched for them ends the run.

    Raises NetworkError, SignInError and IncompleteError as the client does; IncompleteError too where the server sends
    what was not asked for, does not send what it is known to hold (patients, Conditions of the search by code, records
    that others refer to), or does not list Patient or Condition. Nothing partial is returned.
    """
    capability = client.capabilities()
    run = _Crawl(client, capability, plan.declared(capability), Pull(source=client.base, base=client.base), need_text)
    _describe(run)
    for kind in ("Patient", "Condition"):
        if kind not in run.types:
            raise IncompleteError(f"{client.host}: its CapabilityStatement lists no {kind}; check the base URL")
    conditions = _conditions(run, crmo, text)
    people = _people(run, _subjects(run, conditions))
    ids = sorted(people)
    known = {_key(run, match) for match in conditions if run.got[_key(run, match)].owners}
    for kind in READ_TYPES:
        if kind not in ("Patient", "Medication"):
            _of_patients(run, kind, ids, known)
    _hydrate(run, set(ids))
    _count_evidence(run)
    _report(run, ids)
    return run.pull


def _count_evidence(run: _Crawl) -> None:
    """Where the candidates have orders only, ask whether the whole server holds stronger evidence of a drug taken."""
    if not run.counts["MedicationRequest"] or any(run.counts[kind] for kind in STRONGER_THAN_ORDERS):
        return
    for kind in STRONGER_THAN_ORDERS:
        if kind not in run.types:
            continue
        try:
            counted = run.client.count(kind, [])
        except RefusedError:
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


def _ask(run: _Crawl, search: Search, *, post: bool = False) -> list[Match]:
    """Run one search to its end.

    Where the server counts more than it sends and links to no further page, all of it is asked for on one page, and
    where that is not given, half as many values at a time. ShortError where one value alone has too many matches.
    """
    try:
        return _once(run, search, post=post)
    except ShortError as short:
        if (wider := plan.widened(search, short.total)) is not None:
            try:
                return _once(run, wider, post=post)
            except ShortError:
                pass
            except RefusedError as error:
                if error.status not in _NOT_TAKEN:
                    raise
        halves = plan.halves(search)
        if not halves:
            raise
    return [match for half in halves for match in _ask(run, half, post=post)]


def _once(run: _Crawl, search: Search, *, post: bool) -> list[Match]:
    """Run one search and take down how it went, with the server's count of its matches where that can be had."""
    params = search.params
    if "_total" in run.types.get(search.type, ()):
        params = (*params, ("_total", "accurate"))
    account = Account()
    matches = list(run.client.search(search.type, params, post=post, account=account))
    if account.total is None and run.countable:
        account.total = _counted(run, search, post=post)
        if account.total is not None:
            run.client.check_total(search.type, account.total, account.matches)
    if account.total is None and account.pages == 1 and account.matches >= int(dict(params)["_count"]):
        # A full page, no link and no count: only a larger page can tell whether there is more.
        raise ShortError(
            f"{run.client.host}, {search.type} search: a full page with no count and no link; whether there is more "
            "cannot be known",
            2 * account.matches,
        )
    # A search by POST names persons in its body; what it asked for stays out of the account.
    said = [f"{name}={'' if post else value}" for name, value in params]
    run.pull.searches.append(
        {
            "type": search.type,
            "method": "POST" if post else "GET",
            "query": f"{search.type}?{'&'.join(said)}",
            "self": "" if post else account.self_link,
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
        _warn(run, f"{search.type} search: the server warns ({code})")
    return matches


def _counted(run: _Crawl, search: Search, *, post: bool) -> int | None:
    """The server's count of the matches of a search, asked for apart; a server that gives none is asked once."""
    try:
        total = run.client.count(search.type, search.params, post=post)
    except RefusedError as error:
        if error.status not in _NOT_TAKEN:
            raise
        total = None
    run.countable = total is not None
    return total


def _warn(run: _Crawl, warning: str) -> None:
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
    before = run.got.get(key)
    if before is None:
        run.counts[match.type] += 1
        run.got[key] = _Got(match.resource, record, set(owners))
        return
    before.owners.update(owners)
    mine, its = selection.age(match.resource), selection.age(before.resource)
    if selection.newer((mine, match.text), (its, before.record.text)):
        before.resource, before.record = match.resource, record


def _target(run: _Crawl, reference: object) -> Key | None:
    """The key on this server a reference means, whether or not it was fetched; None for foreign and unreadable ones."""
    said = references.parse(reference, run.client.base)
    if said.kind == "own":
        return Key(said.base, said.type, said.id)
    text = reference.get("reference") if isinstance(reference, dict) else reference
    return run.aliases.get(text.strip()) if isinstance(text, str) else None


# ----------------------------------------------------------------------------------------------- Conditions and patients


def _conditions(run: _Crawl, crmo: CodeSet, text: CodeSet) -> list[Match]:
    """The Conditions that qualify, by code and by text."""
    found: list[Match] = []
    asked = {code.casefold() for _, code in plan.condition_tokens(crmo)}
    for search in plan.plan_conditions(crmo, len(run.client.base)):
        for match in _ask(run, search):
            if selection.qualifies(match.resource, crmo, text):
                found.append(match)
            elif not any(
                coding.code and coding.code.casefold() in asked
                for coding in selection.codings(match.resource.get("code"))
            ):
                raise _ignored(run, search, "code")
    worded: list[Match] = []
    for search in plan.plan_text():
        try:
            matches = _ask(run, search)
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
        total = run.client.count(search.type, search.params) or 0
        if total <= plan.LARGEST_PAGE:
            return _ask(run, search) if total else []
    except RefusedError as error:
        if error.status not in _NOT_TAKEN:
            raise
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


def _ignored(run: _Crawl, search: Search, name: str) -> IncompleteError:
    return IncompleteError(
        f"{run.client.host}, {search.type} search: the server sent what was not asked for; it ignores {name}"
    )


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


def _people(run: _Crawl, ids: set[str]) -> dict[str, Person]:
    """Fetch these patients and, until nothing new comes, the other records of the same persons."""
    people: dict[str, Person] = {}
    missing_links: set[str] = set()
    required = set(ids)
    todo = set(ids)
    while todo:
        fresh = _patients(run, todo, required, missing_links)
        people |= fresh
        todo = set()
        for one in fresh.values():
            resource = run.got[one.key].resource
            for other in one.links:
                target = _target(run, other)
                if target is not None and target.type == "Patient" and target.id not in people:
                    todo.add(target.id)
                    if selection.is_replaced_by(resource, other):
                        required.add(target.id)
        todo |= _linking(run, fresh) | _sharing(run, fresh)
        todo -= set(people) | missing_links
    if missing_links:
        _warn(run, f"{len(missing_links)} Patient records that others say they replace are not on the server")
    return people


def _patients(run: _Crawl, ids: set[str], required: set[str], missing: set[str]) -> dict[str, Person]:
    found: dict[str, Person] = {}
    for search in plan.plan_patient("Patient", sorted(ids), run.capability, len(run.client.base)):
        for match in _ask(run, search):
            if match.id not in search.patients:
                raise _ignored(run, search, "_id")
            _take(run, match, [match.id])
            found[match.id] = selection.person(_key(run, match), run.got[_key(run, match)].resource)
    if lost := ids - set(found):
        if lost & required:
            raise IncompleteError(
                f"{run.client.host}: {len(lost & required)} patients with a qualifying Condition, or in the place of one, "
                "are not given; check the scope of the token"
            )
        missing |= lost
    return found


def _linking(run: _Crawl, people: dict[str, Person]) -> set[str]:
    """The ids of Patient records that link to these, where the server can be asked (`Patient?link=`)."""
    if not people:
        return set()
    if "link" not in run.types["Patient"]:
        _warn(run, "the server lists no search Patient?link: records merged elsewhere may be missing")
        return set()
    ids: set[str] = set()
    for batch in plan.plan_ids("Patient", sorted(people), len(run.client.base) + 200):
        value = ",".join(f"Patient/{plan.escaped(one)}" for one in batch.patients)
        search = Search("Patient", (("link", value), ("_count", "200")), optional=True, patients=batch.patients)
        try:
            matches = _ask(run, search)
        except RefusedError as error:
            if error.status not in _NOT_TAKEN:
                raise
            _warn(run, f"the server refuses Patient?link ({error.status}): records merged elsewhere may be missing")
            return ids
        for match in matches:
            linked = match.resource.get("link")
            links = linked if isinstance(linked, list) else []
            targets = [_target(run, link.get("other")) for link in links if isinstance(link, dict)]
            if not any(target is not None and target.id in batch.patients for target in targets):
                raise _ignored(run, search, "link")
            one = selection.person(_key(run, match), match.resource)
            # `seealso` and `refer` point to a patient too, and are no merging.
            if any(target is not None and target.id in batch.patients for target in map(_linker(run), one.links)):
                ids.add(match.id)
    return ids


def _linker(run: _Crawl) -> Callable[[object], Key | None]:
    return lambda reference: _target(run, reference)


def _sharing(run: _Crawl, people: dict[str, Person]) -> set[str]:
    """The ids of Patient records with an identifier of these, by POST: an identifier does not belong in a URL."""
    identifiers = sorted({identifier for one in people.values() for identifier in one.identifiers})
    if not identifiers:
        return set()
    if "identifier" not in run.types["Patient"]:
        _warn(run, "the server lists no search Patient?identifier: records with a shared identifier may be missing")
        return set()
    ids: set[str] = set()
    for start in range(0, len(identifiers), plan.BATCH):
        batch = set(identifiers[start : start + plan.BATCH])
        value = ",".join(f"{plan.escaped(system)}|{plan.escaped(one)}" for system, one in sorted(batch))
        search = Search("Patient", (("identifier", value), ("_count", "200")), optional=True)
        try:
            matches = _ask(run, search, post=True)
        except RefusedError as error:
            if error.status not in _NOT_TAKEN:
                raise
            _warn(
                run,
                f"the server refuses Patient/_search ({error.status}): records with a shared identifier may be missing",
            )
            return ids
        for match in matches:
            one = selection.person(_key(run, match), match.resource)
            if not one.identifiers & batch:
                if _has_old_identifier(match, batch):
                    continue
                raise _ignored(run, search, "identifier")
            if any(selection.same_person(one, other) for other in people.values()):
                ids.add(match.id)
    return ids


def _has_old_identifier(match: Match, batch: set[tuple[str, str]]) -> bool:
    """Whether the server was right and only we do not count the identifier (use temp or old, or another spelling)."""
    values = {value.casefold() for _, value in batch}
    items = match.resource.get("identifier")
    found = items if isinstance(items, list) else []
    return any(isinstance(item, dict) and str(item.get("value", "")).strip().casefold() in values for item in found)


# -------------------------------------------------------------------------------------------------- what is about them


def _of_patients(run: _Crawl, kind: str, ids: list[str], known: set[Key]) -> None:
    """Fetch all of one type of these patients; of what is known to be theirs, nothing may be missing."""
    if kind not in run.types:
        _warn(run, f"the server's CapabilityStatement lists no {kind}: none was asked for")
        return
    missing = {key for key in known if key.type == kind}
    for search in plan.plan_patient(kind, ids, run.capability, len(run.client.base)):
        for part in _parts(run, search):
            missing -= {_key(run, match) for match in part}
            for match in part:
                target = _target(run, selection.subject(match.resource))
                if target is None or target.type != "Patient" or target.id not in search.patients:
                    raise _ignored(run, search, search.params[0][0])
                _take(run, match, [target.id])
    if missing:
        raise _lost(run, kind, len(missing))


def _lost(run: _Crawl, kind: str, count: int) -> IncompleteError:
    return IncompleteError(
        f"{run.client.host}, {kind} search: the server leaves out {count} records of the patients asked for; its search "
        "by patient cannot be relied on"
    )


def _parts(run: _Crawl, search: Search) -> list[list[Match]]:
    """The matches of one search; Observations by category where the server will not give them otherwise."""
    try:
        return [_ask(run, search)]
    except RefusedError as error:
        if search.type != "Observation" or error.status not in (400, 422):
            raise
    _warn(run, "the server gives Observations by category only: those without a standard category are not found")
    return [
        _ask(run, Search(search.type, (*search.params, ("category", category)), patients=search.patients))
        for category in plan.OBSERVATION_CATEGORIES
    ]


def _hydrate(run: _Crawl, ids: set[str]) -> None:
    """Fetch the Medications, Encounters, ImagingStudies and MedicationRequests that are referred to, to the end.

    One that is about a patient of these `ids` was left out by the search for all of that patient's (IncompleteError).
    """
    lost: Counter[str] = Counter()
    done: set[Key] = set()
    tried: set[Key] = set()
    while fresh := [key for key in run.got if key not in done]:
        asked: dict[Key, set[str]] = {}
        for key in fresh:
            done.add(key)
            for reference in selection.wanted(run.got[key].resource):
                target = _target(run, reference)
                if target is not None and target.type in HYDRATED:
                    asked.setdefault(target, set()).update(run.got[key].owners)
        for target, owners in asked.items():
            if target in run.got and selection.subject(run.got[target].resource) is None:
                run.got[target].owners |= owners
        for kind in HYDRATED:
            keys = {key for key in asked if key.type == kind} - set(run.got) - tried
            tried |= keys
            for match in _by_id(run, kind, sorted(key.id for key in keys)):
                subject = selection.subject(match.resource)
                about = _target(run, subject)
                if subject is None:
                    _take(run, match, asked[_key(run, match)])
                elif about is None or about.type != "Patient" or about.id not in ids:
                    continue  # somebody else's
                elif kind in run.types:
                    raise _lost(run, kind, 1)
                else:
                    _take(run, match, [about.id])
            lost[kind] += len(keys - set(run.got))
    for kind, count in sorted(lost.items()):
        if count:
            _warn(run, f"{count} {kind} resources are referred to and not given by the server (or somebody else's)")


def _by_id(run: _Crawl, kind: str, ids: list[str]) -> list[Match]:
    """Resources by id, in batches; one by one those a search does not give."""
    found: list[Match] = []
    searches = plan.plan_ids(kind, ids, len(run.client.base)) if kind in run.types else []
    for search in searches:
        try:
            matches = _ask(run, search)
        except RefusedError as error:
            if error.status not in _NOT_TAKEN:
                raise
            break
        if any(match.id not in search.patients for match in matches):
            raise _ignored(run, search, "_id")
        found += matches
    for identity in sorted(set(ids) - {match.id for match in found}):
        match = _read(run, kind, identity)
        if match is not None:
            found.append(match)
    return found


def _read(run: _Crawl, kind: str, identity: str) -> Match | None:
    """Read one resource; None where it is not there (404) or no more (410)."""
    try:
        resource, text = run.client.read(kind, identity)
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
    if run.unverified:
        _warn(run, f"{run.unverified} searches came without a total: that they are whole rests on their links alone")
    owned: Counter[tuple[str, str]] = Counter()
    for key, one in run.got.items():
        for owner in one.owners:
            owned[owner, key.type] += 1
    for patient in ids:
        for kind in READ_TYPES:
            count = owned[patient, kind]
            state = "complete" if count else "empty" if kind in run.types else "unsupported"
            reason = "not in the CapabilityStatement" if state == "unsupported" else ""
            run.pull.ledger.append(LedgerRow(patient, kind, state, count, reason))
