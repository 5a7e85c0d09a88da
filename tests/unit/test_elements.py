"""`mapping/elements.json` is what the fhir.resources models say; run this file as a program to write it anew."""

import json
import typing
from importlib import resources as package_files
from pathlib import Path

import pytest

from crmo_fhir.model.records import READ_TYPES

OFFICIAL_CASES = (
    "ClaimResponse",
    "DetectedIssue",
    "Device",
    "Measure",
    "Organization",
    "Questionnaire",
    "QuestionnaireResponse",
    "Task",
)
"""Resource types that only the official SQL-on-FHIR cases read."""

OF_RESOURCE = frozenset(
    ["id", "meta", "implicitRules", "language", "text", "contained", "extension", "modifierExtension"]
)
OF_ELEMENT = frozenset(["id", "extension", "modifierExtension"])
NAMES_IN_THE_MODELS = {"uuidVersion": "uuid"}


def _type_of(annotation: object) -> tuple[str, bool]:
    """The FHIR type behind a field's annotation, and whether it is a list."""
    if hasattr(annotation, "__metadata__"):
        name = type(annotation.__metadata__[-1]).__name__
        name = name[0].lower() + name[1:]
        return NAMES_IN_THE_MODELS.get(name, name), False
    if type(annotation).__name__ == "UnionType" or typing.get_origin(annotation) is typing.Union:
        (inner,) = (part for part in typing.get_args(annotation) if part is not type(None))
        return _type_of(inner)
    if typing.get_origin(annotation) is list:
        return _type_of(typing.get_args(annotation)[0])[0], True
    if annotation is bool:
        return "boolean", False
    name = getattr(annotation, "__name__", str(annotation))
    if not name.endswith("Type"):
        raise TypeError(name)
    return name.removesuffix("Type"), False


def generate() -> str:
    """The element table of R4B and R5 together: {type: {element: "Type Type*"}}, `*` where the element is a list."""
    from fhir.resources import get_fhir_model_class as r5
    from fhir.resources.R4B import get_fhir_model_class as r4b

    table: dict[str, dict[str, set[str]]] = {"DomainResource": {}, "Element": {}}
    waiting = [*READ_TYPES, *OFFICIAL_CASES]
    resource_types = set(waiting)
    while waiting:
        name = waiting.pop()
        if name in table or name == "Resource":
            continue
        table[name] = {}
        inherited, parent = (OF_RESOURCE, "DomainResource") if name in resource_types else (OF_ELEMENT, "Element")
        for version in (r4b, r5):
            try:
                model = version(name)
            except ValueError:  # the type exists in the other version only
                continue
            for field in model.model_fields.values():
                if field.alias.startswith(("_", "fhir_comments")):
                    continue
                fhir_type, many = _type_of(field.annotation)
                choice = (field.json_schema_extra or {}).get("one_of_many")
                key = f"{choice}[x]" if choice else field.alias
                owner = parent if key in inherited else name
                table[owner].setdefault(key, set()).add(fhir_type + "*" * many)
                if fhir_type[0].isupper():
                    waiting.append(fhir_type)
        if name in resource_types:
            table[name]["resourceType"] = {"code"}
    lines = (
        f"{json.dumps(name)}: {{"
        + ", ".join(
            f"{json.dumps(key)}: {json.dumps(' '.join(sorted(kinds)))}" for key, kinds in sorted(fields.items())
        )
        + "}"
        for name, fields in sorted(table.items())
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def test_the_table_is_what_the_models_say() -> None:
    pytest.importorskip("fhir.resources")
    assert (package_files.files("crmo_fhir.mapping") / "elements.json").read_text(encoding="utf-8") == generate()


if __name__ == "__main__":
    target = Path(__file__).parents[2] / "src" / "crmo_fhir" / "mapping" / "elements.json"
    target.write_text(generate(), encoding="utf-8")
