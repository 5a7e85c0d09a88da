"""What two pulls of a cohort hold differently: records new, changed and vanished, and patients merged (pure)."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from crmo_fhir.fhir import references
from crmo_fhir.fhir.references import Key

State = Literal["new", "changed", "vanished", "merged"]
_OF_THE_SERVER = ("versionId", "lastUpdated")


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """One record that the later pull holds differently; `into` is the id a merged patient is replaced by."""

    type: str
    state: State
    id: str
    base: str
    into: str = ""


def compute_changes(earlier: Iterable[tuple[Key, str]], later: Iterable[tuple[Key, str]]) -> list[Change]:
    """Compare two pulls, each as pairs of key and JSON text, record by record.

    A record is changed where anything but `meta.versionId` and `meta.lastUpdated` differs, whatever the order of members.
    A patient is merged where the later pull says `replaced-by` of it, or another one says that it `replaces` it, and the
    earlier pull did not; such a patient is neither changed nor vanished as well.
    """
    before, merged_before = _read(earlier)
    after, merged_after = _read(later)
    merged = {key: into for key, into in merged_after.items() if merged_before.get(key) != into and key in before}
    changes = [Change("Patient", "merged", key.id, key.base or "", into.id) for key, into in merged.items()]
    for key in {*before, *after} - set(merged):
        if before.get(key) != after.get(key):
            state: State = "new" if key not in before else "vanished" if key not in after else "changed"
            changes.append(Change(key.type, state, key.id, key.base or ""))
    return sorted(changes)


def _read(records: Iterable[tuple[Key, str]]) -> tuple[dict[Key, str], dict[Key, Key]]:
    """The fingerprint of each record, and which patient is replaced by which."""
    prints: dict[Key, str] = {}
    replaced: dict[Key, Key] = {}
    for key, text in records:
        resource = json.loads(text, parse_float=str, parse_int=str)
        prints[key] = _fingerprint(resource)
        links = resource.get("link") if key.type == "Patient" else None
        for link in links if isinstance(links, list) else ():
            other = _other(link, key.base)
            if other is not None and link.get("type") == "replaced-by":
                replaced[key] = other
            elif other is not None and link.get("type") == "replaces":
                replaced.setdefault(other, key)
    return prints, replaced


def _other(link: object, base: str | None) -> Key | None:
    said = references.parse(link.get("other") if isinstance(link, Mapping) else None, base)
    return Key(said.base, said.type, said.id) if said.kind in ("own", "foreign") else None


def _fingerprint(resource: dict[str, Any]) -> str:
    meta = resource.get("meta")
    if isinstance(meta, dict):
        rest = {name: value for name, value in meta.items() if name not in _OF_THE_SERVER}
        resource = {**resource, "meta": rest} if rest else {k: v for k, v in resource.items() if k != "meta"}
    return hashlib.sha256(json.dumps(resource, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
