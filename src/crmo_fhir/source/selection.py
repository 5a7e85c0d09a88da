"""What decides, of resources as parsed, who is a candidate and what belongs to one (pure).

A candidate is a patient with a Condition whose code stands in the CRMO value set or whose text names the disease, and
every Patient record of the same person. Who of them enters the cohort is decided later, from the records kept here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from crmo_fhir.fhir.codings import CodeSet, Coding
from crmo_fhir.fhir.references import Identifier, Key, references_in

HYDRATED = ("Medication", "Encounter", "ImagingStudy", "MedicationRequest")
"""Types fetched because a kept record refers to them, whoever they are about."""

_SAME_PERSON = ("replaced-by", "replaces")
_PASSED_USES = ("temp", "old")

_NEVER = datetime(1, 1, 1, tzinfo=UTC)

Resource = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Person:
    """What of a Patient says whether two records are of one person."""

    key: Key
    identifiers: frozenset[Identifier]
    birth: str
    gender: str
    links: tuple[Any, ...]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def codings(concept: object) -> Iterator[Coding]:
    """The codings of a CodeableConcept; members that are no strings count as absent."""
    for coding in _list(_dict(concept).get("coding")):
        found = _dict(coding)
        yield Coding(_text(found.get("system")), _text(found.get("code")), _text(found.get("display")))


def qualifies(condition: Resource, crmo: CodeSet, text: CodeSet) -> bool:
    """Whether a Condition makes its patient a candidate: by a code, else by `code.text` or the display of a coding."""
    concept = _dict(condition.get("code"))
    found = list(codings(concept))
    if any(crmo.contains(coding) for coding in found):
        return True
    return any(text.matches_text(said) for said in (_text(concept.get("text")), *(coding.display for coding in found)))


def malformed(kind: str, resource: Resource) -> str | None:
    """What of a resource has a shape in which nobody can tell whose it is, or whether it is a diagnosis that counts."""
    for name in ("subject", "patient"):
        if resource.get(name) is not None and not isinstance(resource[name], dict):
            return f"{name} is no Reference"
    concept = resource.get("code")
    if kind != "Condition" or concept is None:
        return None
    if not isinstance(concept, dict) or not isinstance(concept.get("text", ""), str):
        return "code is no CodeableConcept"
    entries = concept.get("coding", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return "code.coding is no list of Codings"
    if any(not isinstance(entry.get(name, ""), str) for entry in entries for name in ("system", "code", "display")):
        return "code.coding holds what is no text"
    return None


def subject(resource: Resource) -> dict[str, Any] | None:
    """The Reference to whom a resource is about: `subject`, else `patient`."""
    for name in ("subject", "patient"):
        value = resource.get(name)
        if isinstance(value, dict):
            return value
    return None


def person(key: Key, patient: Resource) -> Person:
    """Read what identifies the person of a Patient resource; identifiers of use `temp` or `old` do not."""
    identifiers = set()
    for item in map(_dict, _list(patient.get("identifier"))):
        system, value = _text(item.get("system")), _text(item.get("value"))
        if system and value and item.get("use") not in _PASSED_USES:
            identifiers.add((system.strip(), value.strip()))
    links = [link.get("other") for link in map(_dict, _list(patient.get("link"))) if link.get("type") in _SAME_PERSON]
    return Person(
        key,
        frozenset(identifiers),
        _text(patient.get("birthDate")) or "",
        _text(patient.get("gender")) or "",
        tuple(links),
    )


def is_replaced_by(patient: Resource, other: object) -> bool:
    """Whether a Patient says that the record `other` refers to has taken its place."""
    return any(
        link.get("type") == "replaced-by" and link.get("other") == other
        for link in map(_dict, _list(patient.get("link")))
    )


def same_person(one: Person, other: Person) -> bool:
    """Whether two records share an identifier and neither birth date nor sex says otherwise (partial dates may agree)."""
    if not one.identifiers & other.identifiers:
        return False
    births = one.birth and other.birth
    if births and not (one.birth.startswith(other.birth) or other.birth.startswith(one.birth)):
        return False
    genders = {one.gender, other.gender} - {"", "unknown"}
    return len(genders) < 2


def wanted(resource: Resource) -> list[dict[str, Any]]:
    """The references of a record to resources of the hydrated types, or by a fullUrl that does not say its type."""
    found = []
    for reference in references_in(resource):
        text = reference["reference"].strip()
        if text.startswith(("urn:", "http:", "https:")) or text.partition("/")[0] in HYDRATED:
            found.append(reference)
    return found


def age(resource: Resource) -> tuple[datetime, int]:
    """What orders two copies of one resource, the newer one larger: `meta.lastUpdated`, then `meta.versionId`."""
    meta = _dict(resource.get("meta"))
    version = meta.get("versionId")
    number = int(version) if isinstance(version, str) and version.isdecimal() and len(version) < 19 else -1
    return instant(meta.get("lastUpdated")), number


def instant(value: object) -> datetime:
    """A FHIR instant as a time; the beginning of time for what is none."""
    try:
        then = datetime.fromisoformat(value) if isinstance(value, str) else _NEVER
    except ValueError:
        return _NEVER
    if then.tzinfo is None:
        return then.replace(tzinfo=UTC)
    try:
        return then.astimezone(UTC)
    except OverflowError:
        return _NEVER


def newer(one: tuple[tuple[datetime, int], str], other: tuple[tuple[datetime, int], str]) -> bool:
    """Whether the copy `one` (its age and text) takes the place of `other`: newer, or of the same age and smaller."""
    return one[0] > other[0] or (one[0] == other[0] and one[1] < other[1])
