"""The resources of the fake server, each parsed once, and its search."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

Resource = dict[str, Any]
LOADED = datetime(2026, 1, 1, tzinfo=UTC)
"""When the resources a server starts with were last updated, unless they say so themselves."""

_ALTERNATIVE = re.compile(r"(?:\\.|[^,\\])+")
_PATIENT = re.compile(r"Patient/[^/]+")
_INSTANT = re.compile(r"(eq|ne|gt|lt|ge|le)?(\d{4})(-\d\d)?(-\d\d)?(T\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d))?")


@dataclass(frozen=True)
class Stored:
    """One resource as it is sent, and what searches look at."""

    text: str
    resource: Resource
    updated: datetime
    version: int

    @property
    def id(self) -> str:
        """The logical id."""
        return str(self.resource["id"])

    @cached_property
    def subject(self) -> str:
        """The reference to the patient as it is written."""
        return str(self.resource.get("subject", self.resource.get("patient", {})).get("reference", ""))

    @cached_property
    def patient(self) -> str:
        """The patient as `Patient/id`."""
        found = _PATIENT.search(self.subject)
        return found[0] if found else ""

    @cached_property
    def tokens(self) -> frozenset[str]:
        """The codes, with and without their systems."""
        return _tokens(self.resource.get("code", {}))


Test = Callable[[Stored], bool]


class Store:
    """Resources by type and id, in the order in which they were last written."""

    def __init__(self, resources: Iterable[Resource | str], *, stamped: bool) -> None:
        """Take the resources, parsed or as JSON text; `stamped` gives each a meta with version and time."""
        self.stamped = stamped
        self.types: dict[str, dict[str, Stored]] = defaultdict(dict)
        self.writes = 0
        for one in resources:
            text = one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)
            resource = json.loads(text)
            said = resource.get("meta", {}).get("lastUpdated")
            updated = datetime.fromisoformat(said) if said else LOADED
            if stamped:
                resource, text = _stamp(resource, updated, 1)
            self.types[resource["resourceType"]][resource["id"]] = Stored(text, resource, updated, 1)

    def get(self, kind: str, identity: str) -> Stored | None:
        """One resource."""
        return self.types.get(kind, {}).get(identity)

    def put(self, resource: Resource, at: datetime) -> None:
        """Write a new version, which says its number and time; it stands last from now on."""
        kind, identity = resource["resourceType"], resource["id"]
        before = self.types[kind].pop(identity, None)
        version = before.version + 1 if before else 1
        stamped, text = _stamp(resource, at, version)
        self.types[kind][identity] = Stored(text, stamped, at, version)
        self.writes += 1

    def remove(self, kind: str, identity: str) -> None:
        """Delete a resource."""
        del self.types[kind][identity]
        self.writes += 1

    def find(self, kind: str, tests: Sequence[Test]) -> list[Stored]:
        """The resources of a type that meet all tests."""
        return [one for one in list(self.types.get(kind, {}).values()) if all(test(one) for test in tests)]


def instant(at: datetime) -> str:
    """A FHIR instant with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _stamp(resource: Resource, at: datetime, version: int) -> tuple[Resource, str]:
    meta = {**resource.get("meta", {}), "versionId": str(version), "lastUpdated": instant(at)}
    stamped = {**resource, "meta": meta}
    return stamped, json.dumps(stamped, ensure_ascii=False)


def _tokens(concept: Resource) -> frozenset[str]:
    codings = concept.get("coding", ())
    return frozenset(
        token for c in codings for token in (c.get("code", ""), f"{c.get('system', '')}|{c.get('code', '')}")
    )


def values(value: str) -> list[str]:
    """The alternatives of a parameter, unescaped."""
    return [re.sub(r"\\(.)", r"\1", one) for one in _ALTERNATIVE.findall(value)]


def _said(one: Stored, *, text_indexed: bool) -> str:
    code = one.resource.get("code", {})
    displays = [c.get("display", "") for c in code.get("coding", ())]
    return " ".join([code.get("text", ""), *displays] if displays or text_indexed else []).lower()


def _is_updated(value: str) -> Test:
    """Test `_lastUpdated`; a value covers the whole of its precision (FHIR R4 search, date)."""
    found = _INSTANT.fullmatch(value)
    assert found is not None, value
    prefix, year, month, day, clock, seconds, fraction, _ = found.groups()
    low = datetime.fromisoformat(f"{year}{month or '-01'}{day or '-01'}{clock or 'T00:00:00Z'}")
    if clock:
        width = timedelta(milliseconds=1) if fraction else timedelta(seconds=1) if seconds else timedelta(minutes=1)
        high = low + width
    elif day:
        high = low + timedelta(days=1)
    else:
        high = (low + timedelta(days=31 if month else 366)).replace(day=1)
    tests: dict[str, Test] = {
        "eq": lambda one: low <= one.updated < high,
        "ne": lambda one: not low <= one.updated < high,
        "gt": lambda one: one.updated >= high,
        "ge": lambda one: one.updated >= low,
        "lt": lambda one: one.updated < low,
        "le": lambda one: one.updated < high,
    }
    return tests[prefix or "eq"]


def make_test(
    name: str, value: str, *, hidden: Iterable[str], typed_only: bool, text_as_code: bool, text_indexed: bool
) -> Test:
    """Make the test of one search parameter; a parameter the fake does not know is met by everything."""
    given = values(value)
    wanted = frozenset(given)
    if name == "_id":
        return lambda one: one.id in wanted
    if name == "_lastUpdated":
        tests = [_is_updated(alternative) for alternative in given]
        return lambda one: any(test(one) for test in tests)
    if name in ("patient", "subject"):
        out = frozenset(hidden)
        if typed_only:
            return lambda one: one.id not in out and one.subject in wanted
        patients = frozenset(f"Patient/{one.rpartition('Patient/')[2]}" for one in given)
        return lambda one: one.id not in out and one.patient in patients
    if name == "code:missing":
        is_missing = value == "true"
        return lambda one: is_missing != bool(one.tokens or (text_indexed and one.resource.get("code", {}).get("text")))
    if name == "code" or (name == "code:text" and text_as_code):
        return lambda one: not wanted.isdisjoint(one.tokens)
    if name == "code:text":
        return lambda one: any(word.lower() in _said(one, text_indexed=text_indexed) for word in given)
    if name == "identifier":
        return lambda one: any(
            f"{i.get('system')}|{i.get('value')}" in wanted for i in one.resource.get("identifier", ())
        )
    if name in ("url", "version"):
        return lambda one: str(one.resource.get(name)) in wanted
    if name == "link":
        return lambda one: any(link["other"].get("reference") in wanted for link in one.resource.get("link", ()))
    if name == "category:missing":
        return lambda one: (value == "true") != bool(one.resource.get("category"))
    if name == "category":
        return lambda one: any(not wanted.isdisjoint(_tokens(c)) for c in one.resource.get("category", ()))
    return lambda _: True
