"""Searches on a FHIR server: all pages of one, each held against what was asked, or an error that says what is wrong."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

from crmo_fhir.errors import IncompleteError
from crmo_fhir.fhir import references, strict
from crmo_fhir.fhir.client import FORM, Answer, FhirClient
from crmo_fhir.fhir.codings import is_subsetted
from crmo_fhir.fhir.outcomes import issue_codes, said

MAX_PAGES_WITHOUT_NEWS = 5
_VERSIONS = re.compile(r"(4\.0|4\.3|5\.0)(\.\d+)?(-[\w.-]{1,40})?", re.ASCII)
_OUR_PARAMETERS = ("_count", "_format", "_total", "_summary", "_sort", "_pretty", "_elements")
_STRICT = {"Prefer": "handling=strict"}
_BOM = b"\xef\xbb\xbf"


class ShortError(IncompleteError):
    """A search came to its end with fewer matches than the server counts: `total`."""

    def __init__(self, message: str, total: int) -> None:
        """Keep what a caller may ask again with."""
        super().__init__(message)
        self.total = total


@dataclass(frozen=True, slots=True)
class Match:
    """One resource a search found: parsed, and as one line of JSON with every number as sent."""

    type: str
    id: str
    resource: dict[str, Any]
    text: str
    full_url: str | None
    page: int


@dataclass(slots=True)
class Account:
    """How one search went; a caller passes an empty one to `search` and reads it when the search is over.

    `started` is the earliest `Date` of its pages; `totals` are all totals that pages named, in order; `recalled`
    says that a page came out of the journal of a run that was cut off; `kept` are the keys of its pages there.
    """

    self_link: str = ""
    started: str = ""
    pages: int = 0
    matches: int = 0
    repeated: int = 0
    totals: list[int] = field(default_factory=list)
    total: int | None = None
    framed: bool = True
    recalled: bool = False
    outcomes: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def capabilities(client: FhirClient) -> dict[str, Any]:
    """GET the CapabilityStatement; IncompleteError where there is none or its FHIR version is not 4.0, 4.3 or 5.0."""
    statement = client.get("metadata")
    kind = statement["resourceType"]
    if kind != "CapabilityStatement":
        older = " (DSTU2 or older)" if kind == "Conformance" else ""
        raise IncompleteError(f"{client.host} answers metadata with no CapabilityStatement{older}; check the base URL")
    version = statement.get("fhirVersion")
    if not isinstance(version, str) or not _VERSIONS.fullmatch(version):
        shown = (
            version if isinstance(version, str) and re.fullmatch(r"\d[\w.-]{0,19}", version, re.ASCII) else "no version"
        )
        raise IncompleteError(f"{client.host} speaks FHIR {shown}; R4 (4.0), R4B (4.3) and R5 (5.0) are read")
    return statement


def search(
    client: FhirClient,
    type_name: str,
    params: Sequence[tuple[str, str]],
    *,
    post: bool = False,
    account: Account | None = None,
    fresh: bool = False,
    check: Callable[[Match], None] = lambda _: None,
) -> Iterator[Match]:
    """Search one type over all its pages and yield each match once per page it stands on.

    The matches are those of the asked type with `search.mode` match, or none where the server gives no modes. Pages are
    kept in the client's journal as they are found good; those of a search that fails are dropped from it again. `fresh`:
    what the journal has is not taken, nor what the server remembers of the same search (HAPI does, for a minute). `check` raises an IncompleteError where a match is not what was asked for: then the
    page is not kept, and no further one is asked for.
    Raises IncompleteError where a page is no searchset, an entry has no resource or id, an outcome is an error, the
    self link lacks a parameter that was sent, a `next` leads off the origin or in circles, a resource is cut down
    (SUBSETTED), or the total does not agree with the matches (ShortError where it is larger); else as `FhirClient.answer`.
    """
    account = Account() if account is None else account
    try:
        yield from _pages(client, type_name, params, account, check, post=post, fresh=fresh)
        if account.total is not None:
            check_total(client, type_name, account.total, account.matches)
    except IncompleteError:
        client.forget(account.kept)
        raise


def _pages(
    client: FhirClient,
    type_name: str,
    params: Sequence[tuple[str, str]],
    account: Account,
    check: Callable[[Match], None],
    *,
    post: bool,
    fresh: bool,
) -> Iterator[Match]:
    headers = {**_STRICT, **({"Cache-Control": "no-cache"} if fresh else {})}
    url, form = client.url(type_name, () if post else params), None
    if post:
        # A search by POST changes nothing, so it may be repeated like a GET.
        url, form = client.url(f"{type_name}/_search"), urlencode(params).encode()
        headers["Content-Type"] = FORM
    seen_urls, seen, without_news = {url}, set[str](), 0
    while True:
        method = "GET" if form is None else "POST"
        answer = client.answer(method, url, form, headers, journaled=not fresh)
        account.recalled = account.recalled or answer.recalled
        account.started = _earlier(account.started, answer.headers.get("date", ""))
        account.pages += 1
        where = f"{client.host}, {type_name} search, page {account.pages}"
        account.framed = account.framed and answer.framed
        page, matches = _page(client, answer, type_name, account, where)
        links = strict.links(page)
        if account.pages == 1:
            account.self_link = links.get("self", "")
            _check_self_link(account.self_link, params, where)
        for match in matches:
            check(match)
        account.kept.append(client.keep(method, answer, form, url))
        news = [match for match in matches if match.id not in seen]
        account.repeated += len(matches) - len({match.id for match in news})
        seen.update(match.id for match in matches)
        account.matches = len(seen)
        yield from matches
        if "next" not in links:
            return
        without_news = 0 if news else without_news + 1
        url, form = _next(client, answer.url, links["next"], where), None
        headers.pop("Content-Type", None)
        if url in seen_urls or without_news > MAX_PAGES_WITHOUT_NEWS:
            raise IncompleteError(f"{where}: the next links go in circles; the search cannot be completed")
        seen_urls.add(url)


def _earlier(one: str, other: str) -> str:
    """The earlier of two HTTP dates; one that cannot be read is none. A page out of the journal may be older than the first."""
    read = {}
    for text in (one, other):
        with suppress(ValueError):
            read[text] = parsedate_to_datetime(text)
    return min(read, key=lambda text: read[text], default="")


def check_total(client: FhirClient, type_name: str, total: int, sent: int) -> None:
    """IncompleteError where a search sent more matches than the server counts, ShortError where it sent fewer."""
    if total == sent:
        return
    counts = f"{client.host}, {type_name} search: the server counts {total} matches and sent {sent}"
    if total > sent:
        raise ShortError(
            f"{counts} without a link to the rest; run again, and if it stays so, raise the server's page size",
            total,
        )
    raise IncompleteError(f"{counts}; run again, the server's data may have changed in between")


def count(client: FhirClient, type_name: str, params: Sequence[tuple[str, str]], *, post: bool = False) -> int | None:
    """How many matches the server counts for a search (`_summary=count`), or None where it does not say.

    Raises as `FhirClient.get`: a server that does not know `_summary` may refuse it.
    """
    asked = [*((name, value) for name, value in params if name != "_count"), ("_summary", "count")]
    if post:
        form, headers = urlencode(asked).encode(), {**_STRICT, "Content-Type": FORM}
        answer = client.answer("POST", client.url(f"{type_name}/_search"), form, headers)
    else:
        answer = client.answer("GET", client.url(type_name, asked), None, _STRICT)
    return _total(client.resource(answer))


def _page(
    client: FhirClient, answer: Answer, type_name: str, account: Account, where: str
) -> tuple[dict[str, Any], list[Match]]:
    page = client.resource(answer)
    if page["resourceType"] == "OperationOutcome":
        words = said(page) or ", ".join(issue_codes(page, ("warning", "information")))
        raise IncompleteError(f"{where}: an OperationOutcome ({words}) instead of a Bundle")
    if page["resourceType"] != "Bundle" or page.get("type") != "searchset":
        raise IncompleteError(f"{where}: not a Bundle of type searchset")
    total = _total(page)
    if total is not None:
        account.total = total
        account.totals.append(total)
    try:
        _, entries = strict.bundle(answer.body.removeprefix(_BOM))
    except ValueError as error:
        raise IncompleteError(f"{where}: {error}") from error
    if entries and not isinstance(page["entry"], list):
        raise IncompleteError(f"{where}: its entries cannot be read")
    matches = []
    for index, entry in enumerate(entries, 1):
        resource = page["entry"][index - 1].get("resource")
        kind = resource.get("resourceType") if isinstance(resource, dict) else None
        if entry.resource is None or not isinstance(resource, dict) or not isinstance(kind, str):
            raise IncompleteError(f"{where}, entry {index}: no resource")
        mode = entry.head.get("search")
        mode = mode.get("mode") if isinstance(mode, dict) else None
        if kind == "OperationOutcome":
            if issue_codes(resource):
                raise IncompleteError(f"{where}, entry {index}: the server reports {said(resource)}")
            account.outcomes += issue_codes(resource, ("warning",))
            continue
        if mode in ("include", "outcome") or (mode is None and kind != type_name):
            continue
        if kind != type_name:
            raise IncompleteError(f"{where}, entry {index}: a match of another type")
        identity = resource.get("id")
        if not isinstance(identity, str) or not references.is_id(identity):
            raise IncompleteError(
                f"{where}, entry {index}: a resource without id, or with one that no reference can name"
            )
        if is_subsetted(resource):
            raise IncompleteError(f"{where}, entry {index}: the server sent only a part of the resource (SUBSETTED)")
        full_url = entry.head.get("fullUrl")
        full_url = full_url if isinstance(full_url, str) else None
        matches.append(Match(kind, identity, resource, strict.compact(entry.resource), full_url, account.pages))
    return page, matches


def _next(client: FhirClient, page_url: str, link: str, where: str) -> str:
    """The URL of a next link, which is opaque: resolved against the page it stands on, and sent as it is."""
    try:
        # As from a search by GET: of one by POST, the last part of the path is _search, which is no place of pages.
        return client.url(urljoin(page_url.removesuffix("/_search"), link))
    except (IncompleteError, ValueError) as error:
        raise IncompleteError(
            f"{where}: the next page is on another origin; it was not fetched (--allow-origin, if that is right)"
        ) from error


def _total(page: Mapping[str, Any]) -> int | None:
    total = page.get("total")
    return total if isinstance(total, int) and not isinstance(total, bool) else None


def _check_self_link(self_link: str, params: Sequence[tuple[str, str]], where: str) -> None:
    """Refuse a self link that lacks a parameter sent (FHIR R4 search 3.1.1.6: clients SHALL check what was used)."""
    used = {name.partition(":")[0] for name, _ in parse_qsl(urlsplit(self_link).query, keep_blank_values=True)}
    if not used or "_getpages" in used:  # no self link, or one that says nothing: only the check of what came can tell
        return
    used |= {"patient", "subject"} if used & {"patient", "subject"} else set()
    for name, _ in params:
        if name not in _OUR_PARAMETERS and name.partition(":")[0] not in used:
            raise IncompleteError(f"{where}: the server ignored the parameter {name}; what it sent is not the answer")
