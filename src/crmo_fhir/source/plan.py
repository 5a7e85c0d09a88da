r"""Which searches are asked of a server (pure: value sets, patients and CapabilityStatement in, searches out).

FHIR R4 search: values of one parameter joined by `,` are alternatives; `\`, `,`, `|` and `$` in a value are escaped.
References are asked for as `Patient/id`: servers that compare the text of a reference find nothing under the bare id.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from crmo_fhir.errors import IncompleteError
from crmo_fhir.fhir.codings import SKS, SKS_DIAGNOSES, CodeSet
from crmo_fhir.model.records import READ_TYPES

MAX_URL = 1800
BATCH = 50
PAGE = "500"
"""What is asked for at a time: one page is one moment, while over several the data may change."""
LARGEST_PAGE = 10_000
_COUNT = (("_count", PAGE),)
TEXT_WORDS = (
    "crmo",
    "cno",
    "multifocal",
    "multifokal",
    "nonbacterial",
    "non-bacterial",
    "nonbakteriel",
    "non-bakteriel",
    "chronic multifocal",
    "chronic recurrent multifocal",
    "chronic nonbacterial",
    "chronic non-bacterial",
    "kronisk multifokal",
    "kronisk rekurrent",
    "kronisk recidiverende",
)
OBSERVATION_CATEGORIES = (
    "social-history",
    "vital-signs",
    "imaging",
    "laboratory",
    "procedure",
    "survey",
    "exam",
    "therapy",
    "activity",
)
_SKS_DIAGNOSIS = re.compile(r"D[A-Z]\d{2,}")
_SKS_SIDES = ("+TUL1", "+TUL2", "+TUL3")
_SPECIAL = re.compile(r"([\\,|$])")
_ALTERNATIVE = re.compile(r"(?:\\.|[^,\\])+")
ABOUT_PERSONS = frozenset({"_id", "identifier", "link", "patient", "subject"})
"""Parameters whose values name persons, or what is theirs."""
_USED = frozenset({"_id", "code", "identifier", "link", "patient", "subject"})


@dataclass(frozen=True, slots=True)
class Search:
    """One search: type and parameters. `optional`: the server may refuse it. `patients`: the ids it asks for."""

    type: str
    params: tuple[tuple[str, str], ...]
    optional: bool = False
    patients: tuple[str, ...] = ()


def escaped(value: str) -> str:
    """Escape a value of a search parameter."""
    return _SPECIAL.sub(r"\\\1", value)


def _chunks(values: Iterable[str], name: str, limit: int, most: int) -> Iterator[list[str]]:
    """Divide values so that each part, joined under `name`, stays below `limit` characters, `most` values at a time."""
    chunk: list[str] = []
    for value in values:
        longer = [*chunk, value]
        if chunk and (len(longer) > most or len(urlencode([(name, ",".join(longer)), *_COUNT])) > limit):
            yield chunk
            longer = [value]
        chunk = longer
    if chunk:
        yield chunk


def condition_tokens(crmo: CodeSet) -> list[tuple[str, str]]:
    """The (system, code) pairs searched for; Danish SKS diagnoses also with the suffixes of side (`DM863+TUL1`).

    A token search compares whole codes, and no CapabilityStatement says otherwise: a server that holds `DM863` only with
    other suffixes cannot be told from one that does not hold it, so no warning can be given.
    """
    tokens: list[tuple[str, str]] = []
    for system, code in crmo.search_tokens():
        tokens.append((system, code))
        if system in (SKS, SKS_DIAGNOSES) and _SKS_DIAGNOSIS.fullmatch(code):
            tokens += [(system, code + side) for side in _SKS_SIDES]
    return list(dict.fromkeys(tokens))


def plan_conditions(crmo: CodeSet, base_length: int = 100) -> list[Search]:
    """Searches for Conditions by every code of the set, as `system|code` and as bare `code`, below 1,800 characters.

    The bare form finds the code under a system the set does not know by that URI; what it finds is checked locally.
    """
    return [*plan_systems(crmo, base_length), *plan_bare(crmo, base_length)]


def plan_systems(crmo: CodeSet, base_length: int = 100) -> list[Search]:
    """The part of `plan_conditions` that names systems."""
    return _by_code((f"{escaped(system)}|{escaped(code)}" for system, code in condition_tokens(crmo)), base_length)


def plan_bare(crmo: CodeSet, base_length: int = 100) -> list[Search]:
    """The part of `plan_conditions` that names none."""
    return _by_code((escaped(code) for _, code in condition_tokens(crmo)), base_length)


def _by_code(values: Iterable[str], base_length: int) -> list[Search]:
    distinct = list(dict.fromkeys(values))
    chunks = _chunks(distinct, "code", MAX_URL - base_length - len("/Condition?"), len(distinct))
    return [Search("Condition", (("code", ",".join(chunk)), *_COUNT)) for chunk in chunks]


def plan_text() -> list[Search]:
    """Searches by the words of the disease (`code:text`), which a server may refuse."""
    return [Search("Condition", (("code:text", ",".join(TEXT_WORDS)), *_COUNT), optional=True)]


def plan_uncoded() -> Search:
    """The search for Conditions that the server finds under no code: some keep no index of a diagnosis in words alone."""
    return Search("Condition", (("code:missing", "true"), *_COUNT), optional=True)


def declared(capability: Mapping[str, Any]) -> dict[str, set[str]]:
    """The types a CapabilityStatement's server lists, each with the names of its search parameters.

    A server that lists no type at all (`rest.resource` is optional) says nothing about them: all that are read, then.
    """
    found: dict[str, set[str]] = {}
    rests = [rest for rest in capability.get("rest") or () if isinstance(rest, dict)]
    servers = [rest for rest in rests if rest.get("mode", "server") == "server"]
    if servers and not any(rest.get("resource") for rest in servers):
        return {kind: set(_USED) for kind in READ_TYPES}
    for rest in servers:
        common = {param.get("name") for param in rest.get("searchParam") or () if isinstance(param, dict)}
        for resource in rest.get("resource") or ():
            if isinstance(resource, dict) and isinstance(resource.get("type"), str):
                own = {param.get("name") for param in resource.get("searchParam") or () if isinstance(param, dict)}
                names = found.setdefault(resource["type"], set())
                names |= {name for name in own | (common if own else set()) if isinstance(name, str)}
    return found


def exportable(capability: Mapping[str, Any]) -> list[str]:
    """The read types to export: those the server lists, where its list is one of what it holds and not of the export alone."""
    listed = declared(capability)
    return [kind for kind in READ_TYPES if kind in listed or not {"Patient", "Condition"} <= set(listed)]


def unlisted(host: str, kind: str) -> IncompleteError:
    """Say that a type was not asked for, because the server's CapabilityStatement does not list it."""
    return IncompleteError(
        f"{host}: its CapabilityStatement lists no {kind}, so none was asked for; list it under `absent` in crmo-fhir.toml if "
        "the hospital has none there, or take the pull as it is with --accept-partial"
    )


def patient_parameter(type_name: str, names: set[str]) -> str:
    """The search parameter of a type that names its patient, as the server declares it."""
    usual, other = ("subject", "patient") if type_name == "AdverseEvent" else ("patient", "subject")
    return other if other in names and usual not in names else usual


def plan_patient(
    type_name: str, ids: Sequence[str], capability: Mapping[str, Any], base_length: int = 100
) -> list[Search]:
    """Searches for all of one type of these patients, 50 patients at a time.

    Empty for a type the server does not list, and for Medication, which belongs to no patient.
    """
    types = declared(capability)
    if type_name not in types or type_name == "Medication":
        return []
    if type_name == "Patient":
        return plan_ids("Patient", ids, base_length)
    name = patient_parameter(type_name, types[type_name])
    return _batches(type_name, name, "Patient/", ids, base_length)


def plan_ids(type_name: str, ids: Sequence[str], base_length: int = 100) -> list[Search]:
    """Searches for resources of one type by their ids, 50 at a time."""
    return _batches(type_name, "_id", "", ids, base_length)


def _batches(type_name: str, name: str, form: str, ids: Sequence[str], base_length: int) -> list[Search]:
    limit = MAX_URL - base_length - len(type_name) - len("/?")
    ordered = sorted(set(ids))
    searches, position = [], 0
    for chunk in _chunks((form + escaped(one) for one in ordered), name, limit, BATCH):
        asked = tuple(ordered[position : position + len(chunk)])
        position += len(chunk)
        searches.append(Search(type_name, ((name, ",".join(chunk)), *_COUNT), patients=asked))
    return searches


def widened(search: Search, total: int) -> Search | None:
    """The same search with all its matches on one page; None where that is too much to ask for or already was asked."""
    if total > LARGEST_PAGE or total <= int(dict(search.params).get("_count", "0")):
        return None
    rest = tuple((name, value) for name, value in search.params if name != "_count")
    return replace(search, params=(*rest, ("_count", str(total))))


def halves(search: Search) -> list[Search]:
    """Two searches that together ask for the same: each for half of the alternatives; none where there is only one."""
    (name, value), *rest = search.params
    values = _ALTERNATIVE.findall(value)
    middle = len(values) // 2
    return [
        replace(search, params=((name, ",".join(values[part])), *rest), patients=search.patients[part])
        for part in (slice(middle), slice(middle, None))
        if middle
    ]
