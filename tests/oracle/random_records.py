"""Small random records of any type, out of the elements that a view reads; and the same with one element spoiled.

What is drawn is what real data hold: elements in any version's shape, missing ones, nulls, empty lists, primitives with
extensions, one record with twenty elements and the next with none.
"""

import random
from typing import Any

from crmo_fhir.mapping.schema import RESOURCE_TYPES, _json_fields, elements_of, is_primitive

WORDS = ("official", "usual", "phone", "Medication", "text/plain", "final", "mg", "æ\"'\n", "", "http://loinc.org")
NO_DATES = (
    "unknown",
    "",
    "2004-13",
    "2004-02-30",
    "1900-02-29",
    "2004-2-1",
    "2004-13-45T25:00:00Z",
    "2004-02-29T12:30:00+14:30",
    "noonZ",
    "20040229",
    " 2004",
    "2004\n",
    "0000",
    "T12:30:00",
)
NO_TIMES = ("24:00:00", "12:60:00", "12.30", "noon", "12:30:00Z", "12:30:00\n")
YEARS = ("0001", "1900", "1999", "2000", "2003", "2004", "2004", "2004", "2005", "2100", "9999")
ZONES = ("Z", "Z", "+00:00", "+01:00", "-05:30", "+14:00", "-12:00")
NUMBERS = (
    0,
    7,
    -3,
    1.5,
    0.25,
    350000.0,
    0.0001,
    12345678.5,
    -0.0,
    0.1,
    1e-05,
    -2.5e-07,
    1e16,
    1e22,
    12345678901234567890,
    1234567890123456789012345678901234567890,
)
REFERENCES = (
    "Patient/1",
    "Patient/1/_history/2",
    "#a",
    "urn:uuid:5",
    "http://elsewhere/fhir/Patient/1",
    "Group/g-1",
    "Patient/1\n",
)
CONTAINED = ("Medication", "Patient", "Organization")
INSIDE = ("id", "resourceType", "code", "coding", "system", "text", "value", "reference", "display", "item", "answer")
"""Names that are drawn where what is read has no shape of its own (contained resources, elements of two shapes)."""
UNSPOILED = ("resourceType", "id", "verificationStatus", "clinicalStatus")
"""The last two are of FHIR DSTU2 where they are texts, and a source of that ends the run."""
UNREAD = {"extension": [{"url": "http://absent", "valueCode": "unknown"}]}
"""What stands beside an element where no view reads what does, so that a fault in it is none to the engine."""

Json = dict[str, Any]


def draw_record(rng: random.Random, kind: str, names: dict[str, Any], number: int) -> Json:
    """A record of a type; `names` are the elements that are read, each with those read of it ({} for a plain value)."""
    record = draw_element(rng, kind, without(names, rng.choice(("instance", "instanceReference"))), 0)
    return {"resourceType": kind, **record, "id": f"{kind.lower()}-{number}"}


def without(names: dict[str, Any], other: str) -> dict[str, Any]:
    """The names less one: a record is of FHIR R4 or of R5, which spell an element in one way each."""
    return {name: without(inner, other) for name, inner in names.items() if name != other}


def draw_element(rng: random.Random, owner: str, names: dict[str, Any], depth: int) -> Json:
    fields, drawn = _json_fields(owner), {}
    chance = rng.choice((0.2, 0.6, 0.95))
    for name, inner in names.items():
        primitive = name.removeprefix("_")
        if primitive not in fields or name == "resourceType":
            continue
        if rng.random() > chance:
            continue
        if name.startswith("_"):
            drawn[name] = {"extension": [draw_element(rng, "Extension", inner.get("extension", {}), depth + 1)]}
            continue
        kind, listed = rng.choice(fields[name])
        drawn[name] = draw_value(rng, kind, listed, inner, depth)
        if is_primitive(kind) and not listed and rng.random() < 0.1 and f"_{name}" not in names:
            drawn[f"_{name}"] = UNREAD
            if rng.random() < 0.5:
                del drawn[name]
    return drawn


def draw_value(rng: random.Random, kind: str, listed: bool, inner: dict[str, Any], depth: int) -> Any:
    if rng.random() < 0.04:
        return None
    if not listed:
        return draw_one(rng, kind, inner, depth)
    count = rng.choice((0, 1, 1, 2, 3))
    return [None if rng.random() < 0.05 else draw_one(rng, kind, inner, depth) for _ in range(count)]


def draw_one(rng: random.Random, kind: str, inner: dict[str, Any], depth: int) -> Any:
    if kind == "Resource":
        kind = rng.choice(CONTAINED)
        return {"resourceType": kind, **draw_element(rng, kind, {name: {} for name in INSIDE}, depth + 1)}
    if not is_primitive(kind):
        if not inner:
            names = {name: {} for name in INSIDE} if depth < 4 else {}
            return draw_element(rng, kind, names, depth + 1)
        return draw_element(rng, kind, inner, depth + 1)
    match kind:
        case "boolean":
            return rng.random() < 0.5
        case "integer" | "positiveInt" | "unsignedInt":
            return rng.randrange(5)
        case "decimal":
            return draw_number(rng)
        case "date" | "dateTime" | "instant":
            return draw_date(rng, kind if rng.random() < 0.9 else "dateTime")
        case "time":
            return rng.choice(NO_TIMES) if rng.random() < 0.1 else draw_time(rng, seconds=rng.random() < 0.9)
    return rng.choice(REFERENCES if rng.random() < 0.3 else WORDS)


def draw_number(rng: random.Random) -> float | str:
    """A decimal; one that stands as text keeps the zeros that a JSON number loses where it is read as a double."""
    match rng.randrange(4):
        case 0:
            return rng.choice(NUMBERS)
        case 1:
            return round(rng.uniform(-1000, 1000), rng.randrange(7))
        case 2:
            return rng.uniform(-1, 1) * 10.0 ** rng.randrange(-12, 16)
    return f"{rng.uniform(-99, 99):.{rng.choice((0, 1, 2, 5, 20))}f}"


def draw_date(rng: random.Random, kind: str) -> str:
    """A date, dateTime or instant of any precision, some without the offset that FHIR asks for; or none."""
    if rng.random() < 0.1:
        return rng.choice(NO_DATES)
    year, month, day = rng.choice(YEARS), rng.choice((1, 2, 2, 4, 12)), rng.choice((1, 28, 28, 29, 30, 31))
    precision = 3 if kind == "instant" else rng.randrange(3 if kind == "date" else 4)
    text = "-".join((year, f"{month:02}", f"{day:02}")[: precision + 1])
    if precision < 3:
        return text
    return f"{text}T{draw_time(rng, seconds=rng.random() < 0.9)}{rng.choice(ZONES) if rng.random() < 0.8 else ''}"


def draw_time(rng: random.Random, *, seconds: bool) -> str:
    """A time of day; to the hour or minute only where another than FHIR wrote it."""
    text = f"{rng.choice((0, 12, 12, 23)):02}:{rng.choice((0, 30, 59)):02}:{rng.choice((0, 0, 30, 59, 60)):02}"
    if not seconds:
        return text[: rng.choice((2, 5))]
    return text + rng.choice(("", "", ".0", ".5", ".50", ".123", ".999", ".000001", ".123456789"))


def spoiled(rng: random.Random, record: Json) -> Json | None:
    """The record with one element that FHIR gives another shape, in whichever version; None where it has none to spoil."""
    known = _json_fields(record["resourceType"])
    for name in rng.sample(sorted(record), len(record)):
        kinds = known.get(name)
        if kinds is None or name in UNSPOILED or record[name] in (None, UNREAD):
            continue
        listed = kinds[0][1]
        if len({many for _, many in kinds}) == 1 and rng.random() < 0.5:
            return {**record, name: {"x": 1} if listed else [record[name]]}
        if all(is_primitive(each) for each, _ in kinds):
            wrong: Any = {"x": "y"}
        elif not any(is_primitive(each) for each, _ in kinds):
            wrong = "wrong"
        else:
            continue
        return {**record, name: [wrong] if listed else wrong}
    return None


def read_names(schema: dict[str, str]) -> dict[str, Any]:
    """The elements that a read schema (in DuckDB's words) names, each with those inside it."""
    from ibis.backends.sql.datatypes import DuckDBType

    def inside(kind: Any) -> dict[str, Any]:
        if kind.is_array():
            return inside(kind.value_type)
        return {name: inside(each) for name, each in kind.items()} if kind.is_struct() else {}

    return {name: inside(DuckDBType.from_string(kind)) for name, kind in schema.items()}


assert set(CONTAINED) <= set(RESOURCE_TYPES)
assert elements_of("Extension")
