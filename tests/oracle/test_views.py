"""Compiled views against a slow evaluator: fhirpathpy for the paths, plain Python for rows (SQL on FHIR v2, processing)."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import fhirpathpy
import plain_views
import pytest
from fhirpathpy.models import models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crmo_fhir.engine import Engine
from crmo_fhir.mapping.view import compile_view, run_view

# --- the oracle ----------------------------------------------------------------------------------------------------


def evaluate(path: str, item: dict) -> list:
    return fhirpathpy.evaluate(item, path, {}, models["r4"])


def rows_of(select: dict, item: dict) -> list[dict]:
    """The rows of one select on one item: forEach over items; then columns x selects x unionAll."""
    items = [item]
    if "forEach" in select:
        items = evaluate(select["forEach"], item)
    elif "forEachOrNull" in select:
        items = evaluate(select["forEachOrNull"], item)
        if not items:
            return [plain_views.blank(select)]
    found = []
    for each in items:
        parts = [[{column["name"]: cell(column, each) for column in select.get("column", [])}]]
        parts += [rows_of(part, each) for part in select.get("select", [])]
        if "unionAll" in select:
            parts.append([row for part in select["unionAll"] for row in rows_of(part, each)])
        for combination in itertools.product(*parts):
            found.append({name: value for row in combination for name, value in row.items()})
    return found


def cell(column: dict, item: dict) -> object:
    values = evaluate(column["path"], item)
    if column.get("collection"):
        return values
    return values[0] if values else None


def oracle(view: dict, resources: list[dict]) -> list[dict]:
    kept = [each for each in resources if all(evaluate(w["path"], each) == [True] for w in view.get("where", []))]
    return [row for each in kept for row in rows_of({"select": view["select"]}, each)]


# --- what is tried -------------------------------------------------------------------------------------------------

words = st.sampled_from(["a", "b", "c d", "æ"])
period = st.fixed_dictionaries({}, optional={"start": st.sampled_from(["2005", "2006-03"]), "end": st.just("2007")})
human_name = st.fixed_dictionaries(
    {"use": st.sampled_from(["official", "usual"])},
    optional={"family": words, "given": st.lists(words, min_size=1, max_size=3), "period": period},
)
telecom = st.fixed_dictionaries({"system": st.sampled_from(["phone", "email"])}, optional={"value": words})
contact = st.fixed_dictionaries({}, optional={"name": human_name, "telecom": st.lists(telecom, min_size=1, max_size=2)})
patient = st.fixed_dictionaries(
    {"resourceType": st.just("Patient"), "id": st.sampled_from(["p", "q", "r"])},
    optional={
        "active": st.booleans(),
        "gender": st.sampled_from(["female", "male"]),
        "name": st.lists(human_name, min_size=1, max_size=3),
        "contact": st.lists(contact, min_size=1, max_size=2),
        "multipleBirthInteger": st.integers(0, 3),
    },
)

NAME_PATHS = [
    "family",
    "use",
    "given.first()",
    "given[1]",
    "given.exists()",
    "period.start",
    "use = 'official'",
    "family.exists() and use = 'usual'",
    "family = 'a' or given.empty()",
    "given.where($this = 'a').exists()",
]
PATHS = {
    "Patient": [
        "id",
        "active",
        "gender",
        "gender = 'female'",
        "active.not()",
        "name.empty()",
        "name.first().given.first()",
        "name.where(use = 'official').family.first()",
        "name.given[2]",
        "name.where(period.start = '2005').exists()",
        "contact.name.family.first()",
        "contact.where(name.exists() and telecom.empty()).telecom.exists()",
        "multipleBirth.ofType(integer)",
        "multipleBirth.ofType(integer) > 1",
        "multipleBirth.ofType(integer) + 1",
        "multipleBirth.exists()",
    ],
    "HumanName": NAME_PATHS,
    "PatientContact": ["name.family", "telecom.value.first()", "telecom.where(system = 'phone').exists()", "name.use"],
    "ContactPoint": ["system", "value", "value.exists()", "system = value"],
}
LISTS = {
    "Patient": ["name.given", "name.where(use = 'usual').given", "contact.telecom.value", "name.period.start"],
    "HumanName": ["given", "given.where($this != 'a')"],
    "PatientContact": ["telecom.value", "name.given"],
    "ContactPoint": ["value"],
}
STEPS = {
    "Patient": [
        ("name", "HumanName"),
        ("name.where(given.exists())", "HumanName"),
        ("name.first()", "HumanName"),
        ("contact", "PatientContact"),
        ("contact.telecom", "ContactPoint"),
        ("contact.name", "HumanName"),
    ],
    "HumanName": [],
    "PatientContact": [("telecom", "ContactPoint"), ("name", "HumanName"), ("telecom[1]", "ContactPoint")],
    "ContactPoint": [],
}


@st.composite
def selects(draw: st.DrawFn, owner: str, names: Iterator[str], depth: int) -> dict:
    select: dict = {}
    here = owner
    if STEPS[owner] and draw(st.booleans()):
        path, here = draw(st.sampled_from(STEPS[owner]))
        select[draw(st.sampled_from(["forEach", "forEachOrNull"]))] = path
    select["column"] = [
        {"name": next(names), "path": path}
        for path in draw(st.lists(st.sampled_from(PATHS[here]), min_size=1, max_size=3))
    ]
    if draw(st.booleans()):
        select["column"].append({"name": next(names), "path": draw(st.sampled_from(LISTS[here])), "collection": True})
    if depth and draw(st.booleans()):
        select["select"] = [draw(selects(here, names, depth - 1)) for _ in range(draw(st.integers(1, 2)))]
    if depth and STEPS[here] and draw(st.booleans()):
        select["unionAll"] = draw(unions(here, next(names)))
    return select


@st.composite
def unions(draw: st.DrawFn, owner: str, name: str) -> list[dict]:
    parts = []
    for path, here in draw(st.lists(st.sampled_from(STEPS[owner]), min_size=1, max_size=3)):
        inner = draw(st.sampled_from(["use", "family"] if here == "HumanName" else PATHS[here][:1]))
        parts.append(
            {draw(st.sampled_from(["forEach", "forEachOrNull"])): path, "column": [{"name": name, "path": inner}]}
        )
    return parts


@st.composite
def views(draw: st.DrawFn) -> dict:
    names = (f"c{number}" for number in itertools.count())
    view = {
        "resource": "Patient",
        "name": "drawn",
        "select": [draw(selects("Patient", names, 2)) for _ in range(draw(st.integers(1, 2)))],
    }
    if draw(st.booleans()):
        tests = ["active", "name.exists()", "gender = 'male' or active", "name.where(use = 'usual').empty()"]
        view["where"] = [{"path": draw(st.sampled_from(tests))}]
    return view


def tried(examples: int) -> settings:
    unhealthy = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=unhealthy
    )


def agree(view: dict, resources: list[dict], engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "Patient.ndjson"
    file.write_text("".join(f"{json.dumps(each)}\n" for each in resources), encoding="utf-8")
    expected = oracle(view, resources)
    assert run_view(engine, compile_view(view), [(file, None)]).to_dict("records") == expected
    assert plain_views.rows(view, resources) == expected


@tried(60)
@given(view=views(), resources=st.lists(patient, min_size=1, max_size=4))
def test_compiled_views_give_what_the_slow_evaluators_give(
    view: dict, resources: list[dict], duck: Engine, tmp_path: Path
) -> None:
    agree(view, resources, duck, tmp_path)


@pytest.mark.spark
@tried(20)
@given(view=views(), resources=st.lists(patient, min_size=3, max_size=6))
def test_so_they_do_on_spark(view: dict, resources: list[dict], spark: Engine, tmp_path: Path) -> None:
    agree(view, resources, spark, tmp_path)
