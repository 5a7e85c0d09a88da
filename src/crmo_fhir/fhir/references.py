"""References between resources (FHIR R4 references.html): what they say, and what they mean where they stand.

A resource is known by its key: the service base it lives under (None where the source names none), its type, its id.
An id means nothing outside its base, so a reference into a foreign base never meets a local record of the same id.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, urlsplit

type_name = r"[A-Z][A-Za-z]{2,63}"
_REST = re.compile(rf"(?:(https?://\S+?)/)?({type_name})/([^/?#|\s]+)(?:/_history/[^/?#|\s]+)?")
_CONDITIONAL = re.compile(rf"({type_name})\?(\S+)")
_PORTS = {"http": 80, "https": 443}

Kind = Literal["own", "foreign", "urn", "contained", "identifier", "unknown"]
Identifier = tuple[str, str]


class Key(NamedTuple):
    """What a resource is known by."""

    base: str | None
    type: str
    id: str


class Reference(NamedTuple):
    """What a reference says: `own` (same base) and `foreign` have base, type and id; `urn` and `contained` only an id.

    For `identifier`, `base` is the system and `id` the value. `unknown` can be resolved by nobody.
    """

    kind: Kind
    base: str | None = None
    type: str = ""
    id: str = ""


def is_id(value: object) -> bool:
    """Whether a value is an id that a reference can name; wider than FHIR's own rule, which real servers break."""
    return isinstance(value, str) and re.fullmatch(r"[^\s/?#|]{1,256}", value) is not None and value.isprintable()


def same_base(url: str) -> str:
    """Spell a service base in the one way it is compared: scheme and host in lower case, no default port, no last slash."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        return url.rstrip("/")
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    shown = f":{port}" if port is not None and port != _PORTS.get(parts.scheme.lower()) else ""
    return f"{parts.scheme.lower()}://{host}{shown}{parts.path.rstrip('/')}"


def split_url(url: str) -> Key | None:
    """Read the key out of a RESTful URL (`https://host/fhir/Patient/1`); None where it is not of that form."""
    match = _REST.fullmatch(url.strip())
    if match is None or match[1] is None:
        return None
    return Key(same_base(match[1]), match[2], match[3])


def parse(reference: object, base: str | None) -> Reference:
    """Say what a reference means in a resource under `base`.

    `reference` is the string, or the Reference element with `reference`, else `identifier` (R4) in it.
    """
    if isinstance(reference, dict):
        text = reference.get("reference")
        if isinstance(text, str) and text.strip():
            return parse(text, base)
        identifier = reference.get("identifier")
        if isinstance(identifier, dict):
            system, value = identifier.get("system"), identifier.get("value")
            if isinstance(system, str) and isinstance(value, str) and system.strip() and value.strip():
                kind = reference.get("type")
                return Reference("identifier", system.strip(), kind if isinstance(kind, str) else "", value.strip())
        return Reference("unknown")
    if not isinstance(reference, str):
        return Reference("unknown")
    text = reference.strip()
    if text.startswith("#"):
        return Reference("contained", base, "", text[1:])
    if text.lower().startswith(("urn:uuid:", "urn:oid:")):
        return Reference("urn", None, "", text)
    if match := _REST.fullmatch(text):
        own = base if match[1] is None else same_base(match[1])
        return Reference("own" if own == base else "foreign", own, match[2], match[3])
    if match := _CONDITIONAL.fullmatch(text):  # the conditional reference of a transaction Bundle
        query = parse_qsl(match[2])
        if len(query) == 1 and query[0][0] == "identifier" and "|" in query[0][1]:
            system, _, value = query[0][1].partition("|")
            if system and value:
                return Reference("identifier", system, match[1], value)
    return Reference("unknown")


def resolve(
    reference: object,
    base: str | None,
    known: Collection[Key],
    aliases: Mapping[str, Key],
    identifiers: Mapping[Identifier, Key] | None = None,
) -> Key | None:
    """Find the record a reference means among the `known` keys, or None.

    `aliases` maps a Bundle entry's fullUrl to its record; `identifiers` a business identifier to the one record with it.
    """
    said = parse(reference, base)
    if said.kind in ("own", "foreign"):
        key = Key(said.base, said.type, said.id)
        if key in known:
            return key
        text = reference.get("reference") if isinstance(reference, dict) else reference
        return aliases.get(text.strip()) if isinstance(text, str) else None
    if said.kind == "identifier":
        return (identifiers or {}).get((said.base or "", said.id))
    text = reference.get("reference") if isinstance(reference, dict) else reference
    return aliases.get(text.strip()) if isinstance(text, str) and said.kind != "contained" else None


def references_in(node: Any) -> list[dict[str, Any]]:
    """All Reference elements with a `reference` in a resource, contained ones too, in the order they stand in."""
    found: list[dict[str, Any]] = []
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if isinstance(item.get("reference"), str):
                found.append(item)
            stack.extend(reversed(list(item.values())))
        elif isinstance(item, list):
            stack.extend(reversed(item))
    return found
