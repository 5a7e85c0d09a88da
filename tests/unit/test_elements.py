"""`mapping/elements.json` is what the fhir.resources models say; run this file as a program to write it anew."""

import json
import typing
from importlib import resources as package_files
from pathlib import Path

import pytest

ABSTRACT = frozenset(["Resource", "DomainResource", "CanonicalResource", "MetadataResource"])
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


def resource_types() -> set[str]:
    """Every type of resource of either version."""
    from fhir.resources import fhirtypes as r5
    from fhir.resources.R4B import fhirtypes as r4b

    found = set()
    for version in (r4b, r5):
        resource = version.ResourceType.get_model_klass()
        for name, kind in vars(version).items():
            if hasattr(kind, "get_model_klass") and issubclass(kind.get_model_klass(), resource):
                found.add(name.removesuffix("Type"))
    return found - ABSTRACT


def generate() -> str:
    """The element tables of R4B and R5 together, of resources and of other types: {type: {element: "Type Type*"}}.

    `*` where the element is a list.
    """
    from fhir.resources import get_fhir_model_class as r5
    from fhir.resources.R4B import get_fhir_model_class as r4b

    table: dict[str, dict[str, set[str]]] = {"DomainResource": {}, "Element": {}}
    resources = resource_types()
    waiting = sorted(resources)
    while waiting:
        name = waiting.pop()
        if name in table or name == "Resource":
            continue
        table[name] = {}
        inherited, parent = (OF_RESOURCE, "DomainResource") if name in resources else (OF_ELEMENT, "Element")
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
        if name in resources:
            table[name]["resourceType"] = {"code"}
    parts = {"resources": sorted(resources), "types": sorted(set(table) - resources)}
    written = (f"{json.dumps(part)}: {{\n{_lines(table, names)}\n}}" for part, names in parts.items())
    return "{\n" + ",\n".join(written) + "\n}\n"


def _lines(table: dict[str, dict[str, set[str]]], names: list[str]) -> str:
    return ",\n".join(
        f"{json.dumps(name)}: {{"
        + ", ".join(
            f"{json.dumps(key)}: {json.dumps(' '.join(sorted(kinds)))}" for key, kinds in sorted(table[name].items())
        )
        + "}"
        for name in names
    )


def test_the_table_is_what_the_models_say() -> None:
    pytest.importorskip("fhir.resources")
    assert (package_files.files("crmo_fhir.mapping") / "elements.json").read_text(encoding="utf-8") == generate()


if __name__ == "__main__":
    target = Path(__file__).parents[2] / "src" / "crmo_fhir" / "mapping" / "elements.json"
    target.write_text(generate(), encoding="utf-8")
