"""Views in plain Python over plain JSON, one record at a time: what the engines are held against.

It knows no types, no schema and no engine. A path is read by the program's own parser, and what it means is written here
anew (FHIRPath N1; SQL on FHIR v2, processing). A value is a list of items; what stands in `_name` goes with each primitive.
"""

import itertools
import operator
import re
from dataclasses import dataclass
from typing import Any

from crmo_fhir.mapping.fhirpath import (
    CallSyntax,
    IndexSyntax,
    LiteralSyntax,
    OperatorSyntax,
    Syntax,
    VariableSyntax,
    parse,
)

ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
SUMS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@dataclass(frozen=True)
class Item:
    """One item: its JSON value, what stands beside it in `_name`, and the name under which it stood."""

    value: Any
    beside: Any = None
    name: str = ""


@dataclass(frozen=True)
class Place:
    """Where a path begins: the item, the record, and the number of the row."""

    item: Item
    record: Item
    row: int = 0


def children(item: Item, name: str) -> list[Item]:
    """The items under a name; a list gives each of its own, null is nothing.

    What FHIR R4 holds as `instance`, R5 holds as `instanceReference`: the path is `instance` in both.
    """
    if name == "extension" and not isinstance(item.value, dict):
        holder = item.beside if isinstance(item.beside, dict) else {}
    else:
        holder = item.value if isinstance(item.value, dict) else {}
    name = f"{name}Reference" if name not in holder and f"_{name}" not in holder else name
    found, beside = holder.get(name), holder.get(f"_{name}")
    if not isinstance(found, list):
        found, beside = [found], [beside]
    beside = beside if isinstance(beside, list) else []
    pairs = itertools.zip_longest(found, beside)
    return [Item(value, extra, name) for value, extra in pairs if value is not None or isinstance(extra, dict)]


def there(items: list[Item]) -> list[Item]:
    return [item for item in items if item.value is not None]


def evaluate(path: Syntax, place: Place) -> list[Item]:
    match path:
        case LiteralSyntax(value):
            return [] if value is None else [Item(value)]
        case VariableSyntax("$this"):
            return [place.item]
        case VariableSyntax("%rowIndex"):
            return [Item(place.row)]
        case IndexSyntax(source, index):
            number = evaluate(index, place)[0].value
            return there(evaluate(source, place))[number : number + 1]
        case OperatorSyntax(name, left, right):
            return operation(name, [] if left is None else there(evaluate(left, place)), there(evaluate(right, place)))
        case CallSyntax(source, name, None):
            return [each for item in focus(source, place) for each in children(item, name)]
        case CallSyntax(source, name, arguments):
            return called(source, name, arguments or (), place)
    raise AssertionError(path)


def focus(source: Syntax | None, place: Place) -> list[Item]:
    return [place.item] if source is None else evaluate(source, place)


def called(source: Syntax | None, name: str, arguments: tuple[Syntax, ...], place: Place) -> list[Item]:
    if name == "ofType":
        return of_type(source, arguments[0], place)
    items = focus(source, place)
    if name == "extension":
        url = evaluate(arguments[0], place)[0].value
        found = [each for item in items for each in children(item, "extension")]
        return [each for each in found if [one.value for one in children(each, "url")] == [url]]
    items = there(items)
    match name:
        case "where":
            return [item for item in items if truth(arguments[0], Place(item, place.record, place.row))]
        case "exists":
            items = [i for i in items if not arguments or truth(arguments[0], Place(i, place.record, place.row))]
            return [Item(bool(items))]
        case "empty":
            return [Item(not items)]
        case "first":
            return items[:1]
        case "not":
            return [Item(not items[0].value)] if items else []
        case "join":
            separator = evaluate(arguments[0], place)[0].value if arguments else ""
            return [Item(separator.join(item.value for item in items))]
        case "getResourceKey":
            value = place.record.value
            return [Item(f"{value['resourceType']}/{value['id']}")] if value.get("id") is not None else []
        case "getReferenceKey":
            wanted = arguments[0].name if arguments else "[A-Z][A-Za-z]+"
            texts = [each.value for item in items for each in there(children(item, "reference"))]
            keys = [re.fullmatch(rf"({wanted}/[A-Za-z0-9.-]+)(?:/_history/[^/]+)?", text) for text in texts]
            return [Item(key[1]) for key in keys if key]
    raise AssertionError(name)


def of_type(source: Syntax | None, wanted: Syntax, place: Place) -> list[Item]:
    """`value.ofType(Quantity)` is `valueQuantity`; a resource says its type itself; `instance` is a Reference in R4."""
    assert isinstance(wanted, CallSyntax)
    kind = wanted.name
    found: list[Item] = []
    if isinstance(source, CallSyntax) and source.arguments is None:
        spelled = source.name + kind[0].upper() + kind[1:]
        found = [each for item in focus(source.source, place) for each in children(item, spelled)]
    for item in focus(source, place):
        value = item.value
        if isinstance(value, dict) and (
            value.get("resourceType") == kind or (kind, item.name) == ("Reference", "instance")
        ):
            found.append(item)
    return found


def truth(test: Syntax, place: Place) -> bool:
    return [item.value for item in there(evaluate(test, place))] == [True]


def operation(name: str, left: list[Item], right: list[Item]) -> list[Item]:
    one, other = ([item.value for item in items] for items in (left, right))
    if name in ("and", "or"):
        return logic(name, one[0] if one else None, other[0] if other else None)
    if name == "&":
        return [Item("".join(str(value) for value in one + other))]
    if not one or not other:
        return []
    if name in ("=", "!="):
        return [Item((one == other) == (name == "="))]
    assert len(one) == len(other) == 1
    if name in ORDER:
        return [Item(ORDER[name](one[0], other[0]))]
    return [Item(SUMS[name](one[0], other[0]))]


def logic(name: str, one: object, other: object) -> list[Item]:
    """Three-valued logic: what decides alone decides, whatever the other side is."""
    decides = name == "or"
    if decides in (one, other):
        return [Item(decides)]
    return [] if one is None or other is None else [Item(not decides)]


# --- rows ----------------------------------------------------------------------------------------------------------


def values(path: str, place: Place) -> list[Item]:
    return evaluate(parse(path), place)


def rows_of(select: dict, place: Place) -> list[dict]:
    """The rows of one select at one place: its iteration; then columns x selects x unionAll."""
    found = []
    for here in iterated(select, place):
        parts = [[{column["name"]: cell(column, here) for column in select.get("column", [])}]]
        parts += [rows_of(part, here) for part in select.get("select", [])]
        if "unionAll" in select:
            parts.append([row for part in select["unionAll"] for row in rows_of(part, here)])
        for combination in itertools.product(*parts):
            found.append({name: value for row in combination for name, value in row.items()})
    return found


def iterated(select: dict, place: Place) -> list[Place]:
    if "repeat" in select:
        items = descend(select["repeat"], place)
    elif "forEach" in select:
        items = there(values(select["forEach"], place))
    elif "forEachOrNull" in select:
        items = there(values(select["forEachOrNull"], place)) or [Item(None)]
    else:
        return [place]
    return [Place(item, place.record, row) for row, item in enumerate(items)]


def descend(paths: list[str], place: Place) -> list[Item]:
    found = []
    for item in (each for path in paths for each in there(values(path, place))):
        found += [item, *descend(paths, Place(item, place.record))]
    return found


def cell(column: dict, place: Place) -> object:
    found = [item.value for item in there(values(column["path"], place))]
    if column.get("collection"):
        return found
    assert len(found) < 2, column
    return found[0] if found else None


def rows(view: dict, records: list[dict]) -> list[dict]:
    """The rows of a view over records, those of one after those of the other."""
    found = []
    for record in records:
        place = Place(Item(record), Item(record))
        if record["resourceType"] == view["resource"] and all(
            truth(parse(w["path"]), place) for w in view.get("where", [])
        ):
            found += rows_of({"select": view["select"]}, place)
    return found
