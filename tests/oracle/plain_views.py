"""Views in plain Python over plain JSON, one record at a time: what the engines are held against.

It knows no types, no schema and no engine. A path is read by the program's own parser, and what it means is written here
anew (FHIRPath N1; SQL on FHIR v2, processing). A value is a list of items; what stands in `_name` goes with each primitive.
"""

import calendar
import datetime as dt
import itertools
import operator
import re
from dataclasses import dataclass, field, replace
from decimal import Decimal
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
DATES = ("date", "birthDate", "valueDate")
DATE_TIMES = (
    "dateTime",
    "issued",
    "start",
    "end",
    "valueDateTime",
    "deceasedDateTime",
    "effectiveDateTime",
    "effectiveInstant",
)
TIMES = ("time", "valueTime")
"""The names under which dates and times stand in a record; those of their literals."""


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
    constants: dict[str, LiteralSyntax] = field(default_factory=dict)


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
        case LiteralSyntax(value, kind):
            return [] if value is None else [Item(value, name=kind)]
        case VariableSyntax("%resource" | "%rootResource"):
            return [place.record]
        case VariableSyntax("$this"):
            return [place.item]
        case VariableSyntax("%rowIndex"):
            return [Item(place.row)]
        case IndexSyntax(source, index):
            number = evaluate(index, place)[0].value
            return there(evaluate(source, place))[number : number + 1]
        case OperatorSyntax(name, left, right):
            first = [Item(0)] if left is None else there(evaluate(left, place))  # a sign
            return operation(name, first, there(evaluate(right, place)))
        case CallSyntax(None, name, None) if place.item == place.record and name == place.record.value["resourceType"]:
            return [place.record]
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
            return [item for item in items if truth(arguments[0], replace(place, item=item))]
        case "exists":
            items = [i for i in items if not arguments or truth(arguments[0], replace(place, item=i))]
            return [Item(bool(items))]
        case "empty":
            return [Item(not items)]
        case "first":
            return items[:1]
        case "lowBoundary" | "highBoundary":
            assert len(items) < 2
            return [each for item in items for each in boundary(item, high=name == "highBoundary")]
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
    kind = wanted.name  # of FHIR.Patient too
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
    for group in (DATES + DATE_TIMES, TIMES):
        if left and left[0].name in group and right[0].name in group and name in ("=", "!=", *ORDER):
            return compared(name, left[0], right[0])
    kinds = {type(one[0]), type(other[0])}
    if float in kinds or (str in kinds and kinds & {int, Decimal}):  # a decimal may stand as text
        one, other = [float(one[0])], [float(other[0])]
    if name in ("=", "!="):
        return [Item((one == other) == (name == "="))]
    assert len(one) == len(other) == 1
    if name in ORDER:
        return [Item(ORDER[name](one[0], other[0]))]
    if name == "/":
        return [Item(round(one[0] / other[0], 8))] if other[0] else []
    return [Item(SUMS[name](one[0], other[0]))]


def logic(name: str, one: object, other: object) -> list[Item]:
    """Three-valued logic: what decides alone decides, whatever the other side is."""
    decides = name == "or"
    if decides in (one, other):
        return [Item(decides)]
    return [] if one is None or other is None else [Item(not decides)]


# --- dates, times and the boundaries of what is not exact ----------------------------------------------------------


def boundary(item: Item, *, high: bool) -> list[Item]:
    """Everything that the item may stand for has an end at each side: this is one of them (FHIRPath, lowBoundary)."""
    if item.name in DATES + DATE_TIMES:
        ends = days_of(item.value) if item.name in DATES else moments_of(item.value)
    elif item.name in TIMES:
        ends = clock_of(item.value)
    elif item.name == "exact":
        return [item]
    else:
        number = Decimal(str(item.value))
        half = Decimal(f"0.{'0' * max(0, -int(number.as_tuple().exponent))}5")
        return [Item(float(number + half if high else number - half), name="exact")]
    return [] if ends is None else [Item(ends[high], name=item.name)]


def days_of(text: str) -> tuple[str, str] | None:
    """The first day and the last; None for what is no date."""
    if not re.fullmatch("[0-9]{4}(-[0-9]{2}){0,2}", text):
        return None
    year, month, day = (*map(int, text.split("-")), None, None)[:3]
    try:
        last = day or calendar.monthrange(year, month or 12)[1]
        return str(dt.date(year, month or 1, day or 1)), str(dt.date(year, month or 12, last))
    except ValueError:
        return None


def clock_of(text: str) -> tuple[str, str] | None:
    """The first millisecond (or finer, where finer was written) and the last; None for what is no time of day."""
    if not re.fullmatch("[0-9]{2}(:[0-9]{2}(:[0-9]{2}([.][0-9]+)?)?)?", text):
        return None
    written = [part for colons in text.split(":") for part in colons.split(".")]
    if any(int(part) > most for part, most in zip(written, (23, 59, 60), strict=False)):
        return None
    least, most = ["00", "00", "00", "000"], ["23", "59", "59", "999"]
    for place, part in enumerate(written):
        least[place], most[place] = part + least[place][len(part) :], part + most[place][len(part) :]
    return tuple(":".join(end[:3]) + "." + end[3] for end in (least, most))  # type: ignore[return-value]


def moments_of(text: str) -> tuple[str, str] | None:
    """The first moment and the last; where no offset is written, those of the places that have them first and last."""
    found = split(text)
    if found is None:
        return None
    day, clock, zone = found
    days, clocks = days_of(day), clock_of(clock) if clock else ("00:00:00.000", "23:59:59.999")
    assert days is not None
    assert clocks is not None
    return f"{days[0]}T{clocks[0]}{zone or '+14:00'}", f"{days[1]}T{clocks[1]}{zone or '-12:00'}"


def split(text: str) -> tuple[str, str, str] | None:
    """Day, clock and offset of a date or dateTime, empty where not written; None for what is neither."""
    day, mark, rest = text.partition("T")
    if days_of(day) is None or (mark and len(day) < 10):
        return None
    if not mark:
        return day, "", ""
    clock, zone = re.fullmatch("([^Z+-]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    if clock_of(clock) is None or not re.fullmatch("(Z|[+-](0[0-9]|1[0-3]):[0-5][0-9]|[+-]14:00)?", zone):
        return None
    return day, clock, zone


def compared(name: str, left: Item, right: Item) -> list[Item]:
    """From the year (or hour) to the finest both have; nothing where only one goes on, or where one is none.

    With offsets on both sides it is points in time that are compared; with one offset, it is taken for both.
    """
    if left.name in TIMES:
        sides = [("", each.value, "") if clock_of(each.value) else None for each in (left, right)]
    else:
        sides = [split(each.value) for each in (left, right)]
    first, second = sides
    if first is None or second is None:
        return []
    if first[2] and second[2]:
        one, other = [instant(*first)], [instant(*second)]
    else:
        one, other = ([*numbers(day, "-"), *numbers(clock, ":")] for day, clock, _ in (first, second))
    for mine, yours in zip(one, other, strict=False):
        if mine != yours:
            return [Item(name == "!=" if name in ("=", "!=") else ORDER[name](mine, yours))]
    if len(one) != len(other):
        return []
    return [Item(name in ("=", "<=", ">="))]


def numbers(text: str, mark: str) -> list[Decimal]:
    return [Decimal(part) for part in text.split(mark)] if text else []


def instant(day: str, clock: str, zone: str) -> int:
    """Microseconds; a leap second is the one before it."""
    hour, minute, second = [*numbers(clock, ":"), Decimal(0), Decimal(0)][:3]
    ahead = 0 if zone == "Z" else int(f"{zone[0]}1") * (int(zone[1:3]) * 60 + int(zone[4:]))
    minutes = dt.date.fromisoformat(day).toordinal() * 24 * 60 + int(hour) * 60 + int(minute) - ahead
    return int((minutes * 60 + second - (second >= 60)) * 1_000_000)


# --- rows ----------------------------------------------------------------------------------------------------------


def values(path: str, place: Place) -> list[Item]:
    return evaluate(parse(path, place.constants), place)


def rows_of(select: dict, place: Place) -> list[dict]:
    """The rows of one select at one place: its iteration; then columns x selects x unionAll."""
    found = []
    places = iterated(select, place)
    if not places and "forEachOrNull" in select:
        return [blank(select)]
    for here in places:
        parts = [[{column["name"]: cell(column, here) for column in select.get("column", [])}]]
        parts += [rows_of(part, here) for part in select.get("select", [])]
        if "unionAll" in select:
            parts.append([row for part in select["unionAll"] for row in rows_of(part, here)])
        for combination in itertools.product(*parts):
            found.append({name: value for row in combination for name, value in row.items()})
    return found


def blank(select: dict) -> dict:
    """The row of a forEachOrNull that found nothing."""
    row = {}
    for column in select.get("column", []):
        row[column["name"]] = 0 if column["path"] == "%rowIndex" else [] if column.get("collection") else None
    for part in [*select.get("select", []), *select.get("unionAll", [])[:1]]:
        row |= blank(part)
    return row


def iterated(select: dict, place: Place) -> list[Place]:
    if "repeat" in select:
        items = descend(select["repeat"], place)
    elif "forEach" in select:
        items = there(values(select["forEach"], place))
    elif "forEachOrNull" in select:
        items = there(values(select["forEachOrNull"], place))
    else:
        return [place]
    return [replace(place, item=item, row=row) for row, item in enumerate(items)]


def descend(paths: list[str], place: Place) -> list[Item]:
    found = []
    for item in (each for path in paths for each in there(values(path, place))):
        found += [item, *descend(paths, replace(place, item=item, row=0))]
    return found


def cell(column: dict, place: Place) -> object:
    found = [item.value for item in there(values(column["path"], place))]
    if column.get("collection"):
        return found
    assert len(found) < 2, column
    value = found[0] if found else None
    return float(value) if isinstance(value, Decimal) else value


def rows(view: dict, records: list[dict]) -> list[dict]:
    """The rows of a view over records, those of one after those of the other."""
    found = []
    constants = {}
    for constant in view.get("constant", []):
        ((kind, value),) = ((key.removeprefix("value"), value) for key, value in constant.items() if key != "name")
        constants[constant["name"]] = LiteralSyntax(value, kind[0].lower() + kind[1:])
    for record in records:
        place = Place(Item(record), Item(record), constants=constants)
        if record["resourceType"] == view["resource"] and all(
            truth(parse(w["path"], constants), place) for w in view.get("where", [])
        ):
            found += rows_of({"select": view["select"]}, place)
    return found
