"""The types of FHIR elements (`elements.json`), the narrow read schema of a view, and the check a fast read needs.

`elements.json` holds R4B and R5 together, all types of resources (R4 has the same elements for the types a study reads):
per type, per element, the types it may have, `*` after a type where it is a list; `value[x]` is a choice. It is generated
and compared with the fhir.resources models by the tests.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from itertools import repeat
from typing import Any

INTEGERS = frozenset(["integer", "positiveInt", "unsignedInt", "integer64"])
_NUMBERS = INTEGERS | {"decimal"}
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"-?[0-9]{1,18}(\.0+)?")
"""An integer as every engine takes it."""


@functools.cache
def _tables() -> dict[str, dict[str, dict[str, str]]]:
    """Those of the resources, and those of the other types."""
    text = (resources.files("crmo_fhir.mapping") / "elements.json").read_text(encoding="utf-8")
    tables: dict[str, dict[str, dict[str, str]]] = json.loads(text)
    return tables


def beginning_of(types: Iterable[str]) -> str:
    """The signs that the JSON of a value of these types may begin with, apart from true and false."""
    known = {"{" if not is_primitive(one) else "-0123456789" if one in _NUMBERS else '"' for one in types}
    return "".join(sorted(known))


def is_primitive(fhir_type: str) -> bool:
    """Whether values of the type are plain JSON values."""
    return fhir_type[:1].islower()


@functools.cache
def is_element(name: str) -> bool:
    """Whether any type has an element of this name."""
    return any(name in one or f"{name}[x]" in one for table in _tables().values() for one in table.values())


@functools.cache
def elements_of(fhir_type: str) -> Mapping[str, tuple[tuple[str, bool], ...]]:
    """List the elements of a type: {name: ((type, whether it is a list), …)}; empty for a type the table does not hold."""
    if is_primitive(fhir_type):
        return {}
    known, types = _tables()["resources"], _tables()["types"]
    if fhir_type in known:
        elements = {**types["DomainResource"], **known[fhir_type]}
    else:
        elements = {**types["Element"], **types.get(fhir_type, {})}
    return {
        name: tuple((kind.removesuffix("*"), kind.endswith("*")) for kind in kinds.split())
        for name, kinds in elements.items()
    }


RESOURCE_TYPES: tuple[str, ...] = tuple(_tables()["resources"])
"""The resource types of FHIR: those a view can read."""


@dataclass(slots=True)
class Shape:
    """How one JSON field is read: a struct of `fields`, or a leaf ("VARCHAR", "BOOLEAN", "JSON"), alone or in a list.

    `begins`: the signs that the JSON of a leaf may begin with; `whole`: it is an integer.
    """

    leaf: str = "VARCHAR"
    listed: bool = False
    fields: "dict[str, Shape]" = field(default_factory=dict)
    begins: str = '"'
    whole: bool = False

    def column_type(self, *, as_told: bool = False) -> str:
        """Give the type in DuckDB's words; `as_told`: of each leaf the JSON that stands there."""
        if self.leaf == "JSON":
            return "JSON"
        inner = "JSON" if as_told else self.leaf
        if self.fields:
            parts = (f'"{name}" {shape.column_type(as_told=as_told)}' for name, shape in sorted(self.fields.items()))
            inner = f"STRUCT({', '.join(parts)})"
        return f"{inner}[]" if self.listed else inner

    def fits(self, value: str, depth: int = 0) -> str:
        """Give the condition, in DuckDB's words, that a value read `as_told` surely has the shape FHIR gives it.

        What the engine does not take for such a struct or list is an error there. Of a "JSON" leaf nobody can be sure.
        """
        if self.leaf == "JSON":
            return f"{value} IS NULL"
        one = f"item{depth}" if self.listed else value
        if self.fields:
            holds = " AND ".join(
                shape.fits(f'{one}."{name}"', depth + self.listed) for name, shape in sorted(self.fields.items())
            )
        elif self.leaf == "BOOLEAN":
            holds = f"coalesce({one} IN ('true', 'false'), true)"
        elif self.begins == '"':  # most are, and this way is the faster one
            holds = f"""coalesce(starts_with({one}, '"'), true)"""
        elif self.whole:
            holds = f"coalesce(regexp_full_match({one}, '{_WHOLE.pattern}'), true)"
        else:
            holds = f"coalesce(contains('{self.begins}', left({one}, 1)), true)"
        return (
            f"coalesce(list_bool_and(list_transform({value}, lambda {one}: {holds})), true)" if self.listed else holds
        )


def find_misfit(resource: Mapping[str, Any], resource_type: str) -> str | None:
    """Find the first element whose JSON shape does not fit the element table: its path, None when all fit.

    Only elements the table knows are looked at, and what stands beside plain ones (`_birthDate`): an object where a list
    or a plain value is declared, a list where one item is, a plain value where an object is, text for true or false, text
    for a number unless it reads as one, a number that is no integer for one. A field the table declares both ways (R4 one
    item, R5 a list) may stand either way.
    """
    # The path of a misfit is only made where there is one: most resources fit.
    return None if _fits(resource, resource_type) else _misfit(resource, resource_type, resource_type)


def _fits(item: Mapping[str, Any], owner: str) -> bool:
    """Whether `_misfit` would find nothing."""
    known = _shapes(owner)
    for name, value in item.items():
        if value is None or (shapes := known.get(name)) is None:
            continue
        if isinstance(value, list):
            if not shapes[1] or not all(
                each is None or any(map(_fits_type, repeat(each), shapes[1])) for each in value
            ):
                return False
        elif not any(map(_fits_type, repeat(value), shapes[0])):
            return False
    return True


def _fits_type(value: object, fhir_type: str) -> bool:
    if not is_primitive(fhir_type):
        return isinstance(value, dict) and (
            _misfit_of_item(value, fhir_type, "") is None if fhir_type == "Resource" else _fits(value, fhir_type)
        )
    if isinstance(value, str):
        return fhir_type != "boolean" and (fhir_type not in _NUMBERS or _reads_as(value, fhir_type))
    return _misfit_of_item(value, fhir_type, "") is None


@functools.cache
def _shapes(owner: str) -> Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """The types of each JSON field as a single value, and as items of a list."""
    return {
        name: (tuple(kind for kind, many in kinds if not many), tuple(kind for kind, many in kinds if many))
        for name, kinds in _json_fields(owner).items()
    }


def _misfit(item: Mapping[str, Any], owner: str, path: str) -> str | None:
    known = _json_fields(owner)
    for name, value in item.items():
        if value is None or (kinds := known.get(name)) is None:
            continue
        place = f"{path}.{name}"
        if found := _misfit_of_field(value, kinds, place):
            return found
    return None


def _misfit_of_field(value: object, kinds: tuple[tuple[str, bool], ...], place: str) -> str | None:
    listed = {many for _, many in kinds}
    if (isinstance(value, list) and True not in listed) or (not isinstance(value, list) and False not in listed):
        return place
    types = [name for name, many in kinds if many == isinstance(value, list)]
    for position, each in enumerate(value if isinstance(value, list) else [value]):
        if each is None:
            continue
        where = f"{place}[{position}]" if isinstance(value, list) else place
        outcomes = [_misfit_of_item(each, fhir_type, where) for fhir_type in types]
        if None not in outcomes:
            return max((outcome for outcome in outcomes if outcome), key=len)
    return None


def _misfit_of_item(value: object, fhir_type: str, place: str) -> str | None:
    if fhir_type == "Resource":
        inner = value.get("resourceType") if isinstance(value, dict) else None
        return (
            None
            if isinstance(value, dict) and inner not in RESOURCE_TYPES
            else (_misfit(value, str(inner), place) if isinstance(value, dict) else place)
        )
    if not is_primitive(fhir_type):
        return _misfit(value, fhir_type, place) if isinstance(value, dict) else place
    if isinstance(value, (dict, list)) or isinstance(value, bool) != (fhir_type == "boolean"):
        return place
    return place if fhir_type in _NUMBERS and not _reads_as(str(value), fhir_type) else None


def _reads_as(text: str, number_type: str) -> bool:
    return (_WHOLE if number_type in INTEGERS else NUMBER).fullmatch(text) is not None


@functools.cache
def _json_fields(owner: str) -> Mapping[str, tuple[tuple[str, bool], ...]]:
    """List the JSON fields of a type, choices spelled out."""
    found: dict[str, tuple[tuple[str, bool], ...]] = {}
    for name, kinds in elements_of(owner).items():
        if not name.endswith("[x]"):
            found[name] = found.get(name, ()) + kinds
            continue
        for fhir_type, listed in kinds:
            spelled = name[:-3] + fhir_type[0].upper() + fhir_type[1:]
            found[spelled] = (*found.get(spelled, ()), (fhir_type, listed))
    for name, kinds in list(found.items()):
        if beside := tuple(("Element", listed) for fhir_type, listed in kinds if is_primitive(fhir_type)):
            found[f"_{name}"] = beside
    return found
