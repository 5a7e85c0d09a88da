"""Strict JSON (RFC 8259 as FHIR narrows it), and the raw text of its parts.

Python's `json` takes `NaN`, `Infinity`, `1e999` and repeated names, and turns `1.10` into `1.1`. Here such input is a
`ValueError` whose message is a reason without any value of the data, and text is only ever cut out, never written anew:
FHIR R4 (datatypes, decimal) says that the precision of a number SHALL be kept.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

MAX_DEPTH = 200
MAX_DIGITS = 64
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]', re.DOTALL)


class _BundleEntry(msgspec.Struct):
    resource: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Bundle(msgspec.Struct):
    entry: list[_BundleEntry] = []


@dataclass(frozen=True, slots=True)
class Entry:
    """One Bundle entry: its members other than the resource, and the resource as it stands in the text."""

    head: dict[str, Any]
    resource: bytes | None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object names a member twice")
    return members


def _float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number is out of range")
    if len(text) > MAX_DIGITS:
        raise ValueError("a number has too many digits")
    return number


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("a number has too many digits")
    return int(text)


def _constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_float=_float, parse_int=_int, parse_constant=_constant, strict=True
)


def _too_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def parse(raw: bytes) -> Any:
    """Parse one JSON text in UTF-8; a ValueError holds the reason in words fit for a user, never a piece of the text."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("it is not valid UTF-8") from error
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        raise ValueError("the JSON ends too early" if cut else "it is not valid JSON") from error
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _too_deep(value):
        raise ValueError("the JSON is nested too deeply")
    if _SURROGATE.search(raw):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError("a string holds half a character (a lone surrogate)") from error
    return value


def compact(raw: bytes) -> str:
    """Put a JSON text that `parse` took on one line: only white space between tokens goes, numbers stay as written."""
    return msgspec.json.format(raw, indent=-1).decode("utf-8")


def _parts(raw: bytes) -> list[tuple[bytes, int, int]]:
    """Cut an object or array into its members: (name in quotes or empty, start, end), by brackets only.

    It reads what no parser takes (a `NaN` deep inside), so that one bad entry does not take its Bundle along.
    """
    parts: list[tuple[bytes, int, int]] = []
    depth, name, start, last = 0, b"", 0, b""
    is_object = raw.lstrip()[:1] == b"{"
    for token in _TOKEN.finditer(raw):
        sign = token.group()
        if sign in b"}]" and depth == 1:
            if raw[start : token.start()].strip():
                parts.append((name, start, token.start()))
            if raw[token.end() :].strip():
                raise ValueError("something follows the end of the JSON")
            return parts
        if sign in b"{[":
            depth += 1
            start = token.end() if depth == 1 else start
        elif sign in b"}]":
            depth -= 1
        elif depth == 1 and sign == b"," and raw[start : token.start()].strip():
            parts.append((name, start, token.start()))
            name, start = b"", token.end()
        elif depth == 1 and sign == b":" and is_object:
            name, start = last, token.end()
        last = sign
    raise ValueError("the JSON ends too early")


def elements(raw: bytes) -> list[bytes]:
    """Cut a JSON array into the texts of its elements."""
    try:
        return [bytes(item) for item in msgspec.json.decode(raw, type=list[msgspec.Raw])]
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return [raw[start:end].strip() for _, start, end in _parts(raw)]


def _entries_by_brackets(raw: bytes) -> list[Entry]:
    entries = []
    for name, start, end in _parts(raw):
        if name != b'"entry"':
            continue
        for element in elements(raw[start:end].strip()):
            resources = [(s, e) for key, s, e in _parts(element) if key == b'"resource"']
            if len(resources) > 1:
                raise ValueError("an object names a member twice")
            rest, resource = element, None
            for s, e in resources:
                rest, resource = element[:s] + b"null" + element[e:], element[s:e].strip()
            head = parse(rest)
            if not isinstance(head, dict):
                raise TypeError("an entry is no object")
            entries.append(Entry(head, resource))
    return entries


def bundle(raw: bytes) -> tuple[dict[str, Any], list[Entry]]:
    """Cut a Bundle into its own members (`entry` without the resources) and its entries with the resources' raw text.

    The resources are not checked here (`parse` each); everything around them is. ValueError says what is wrong.
    """
    try:
        pieces = [
            None if isinstance(entry.resource, msgspec.UnsetType) else bytes(entry.resource)
            for entry in msgspec.json.decode(raw, type=_Bundle).entry
        ]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        try:
            entries = _entries_by_brackets(raw)
        except (TypeError, RecursionError) as error:
            raise ValueError("its entries cannot be read") from error
        return {}, entries
    skeleton, position = [], 0
    for piece in pieces:
        if piece is not None:
            found = raw.index(piece, position)
            skeleton += [raw[position:found], b"null"]
            position = found + len(piece)
    # With the resources cut out, the rest is small; a second `entry` or `resource` of one name is still in it.
    members = parse(b"".join([*skeleton, raw[position:]]))
    heads = members.get("entry") or []
    if len(heads) != len(pieces) or not all(isinstance(head, dict) for head in heads):
        raise ValueError("its entries cannot be read")
    return members, [Entry(head, piece) for head, piece in zip(heads, pieces, strict=True)]


def links(members: Mapping[str, Any]) -> dict[str, str]:
    """The links among a Bundle's members: {relation, such as `self` or `next`: URL}."""
    listed = members.get("link")
    return {
        link["relation"]: link["url"]
        for link in (listed if isinstance(listed, list) else [])
        if isinstance(link, dict) and isinstance(link.get("relation"), str) and isinstance(link.get("url"), str)
    }
