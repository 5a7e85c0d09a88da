"""What the views of this project need beyond the official suite: both FHIR versions, contained, references, errors."""

import gzip
import json
from decimal import Decimal
from pathlib import Path

import pytest

from crmo_fhir.engine import Engine, open_duckdb, open_engine
from crmo_fhir.errors import IncompleteError, UsageError
from crmo_fhir.mapping.fhirpath import PathError, parse
from crmo_fhir.mapping.schema import find_misfit
from crmo_fhir.mapping.view import compile_view, run_view

VIEWS = sorted((Path(__file__).parents[2] / "mappings" / "views").glob("*.json"))


@pytest.fixture
def engine(any_engine: Engine) -> Engine:
    return any_engine


def view_of(resource: str, *select: dict, **more: object) -> dict:
    return {"resourceType": "ViewDefinition", "name": "trial", "resource": resource, "select": list(select), **more}


def columns(**paths: str) -> dict:
    return {"column": [{"name": name, "path": path} for name, path in paths.items()]}


def write(path: Path, *resources: dict | str) -> Path:
    lines = [each if isinstance(each, str) else json.dumps(each) for each in resources]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def rows(engine: Engine, folder: Path, view: dict, *resources: dict | str, base: str | None = None) -> list[dict]:
    file = write(folder / f"{view['resource']}.ndjson", *resources)
    return run_view(engine, compile_view(view), [(file, base)]).to_dict("records")


@pytest.mark.parametrize("path", VIEWS, ids=lambda path: path.stem)
def test_every_shipped_view_compiles_and_reads_an_empty_file(path: Path, engine: Engine, tmp_path: Path) -> None:
    view = json.loads(path.read_text(encoding="utf-8"))
    compiled = compile_view(view)
    frame = run_view(engine, compiled, [(write(tmp_path / "empty.ndjson"), None)])
    assert tuple(frame.columns) == compiled.columns
    assert frame.empty


def test_no_file_gives_the_columns_and_no_row(engine: Engine) -> None:
    frame = run_view(engine, compile_view(view_of("Patient", columns(a="id", b="active"))), [])
    assert list(frame.columns) == ["a", "b"]
    assert frame.empty


def test_r4_and_r5_names_of_one_element_stand_in_one_view(engine: Engine, tmp_path: Path) -> None:
    view = view_of(
        "MedicationStatement",
        columns(
            r4="medication.ofType(CodeableConcept).text",
            r5="medication.concept.text",
            reference_r4="medication.ofType(Reference).reference",
            reference_r5="medication.reference.reference",
        ),
    )
    found = rows(
        engine,
        tmp_path,
        view,
        {"resourceType": "MedicationStatement", "id": "1", "medicationCodeableConcept": {"text": "a"}},
        {"resourceType": "MedicationStatement", "id": "2", "medication": {"concept": {"text": "b"}}},
        {"resourceType": "MedicationStatement", "id": "3", "medicationReference": {"reference": "Medication/c"}},
        {"resourceType": "MedicationStatement", "id": "4", "medication": {"reference": {"reference": "Medication/d"}}},
    )
    assert [tuple(row.values()) for row in found] == [
        ("a", None, None, None),
        (None, "b", None, None),
        (None, None, "Medication/c", None),
        (None, None, None, "Medication/d"),
    ]


def test_an_element_with_two_type_families_is_read_either_way(engine: Engine, tmp_path: Path) -> None:
    paths = {"coding": "series.modality.code", "concept": "series.modality.coding.code"}
    view = view_of(
        "ImagingStudy",
        {"column": [{"name": name, "path": path, "collection": True} for name, path in paths.items()]},
    )
    found = rows(
        engine,
        tmp_path,
        view,
        {"resourceType": "ImagingStudy", "series": [{"modality": {"code": "MR"}}]},
        {"resourceType": "ImagingStudy", "series": [{"modality": {"coding": [{"code": "CT"}]}}]},
    )
    assert found == [{"coding": ["MR"], "concept": []}, {"coding": [], "concept": ["CT"]}]


def test_an_element_single_in_r4_and_a_list_in_r5_is_read_either_way(engine: Engine, tmp_path: Path) -> None:
    paths = {"r4": "class.code", "r5": "class.coding.code"}
    view = view_of("Encounter", {"column": [{"name": n, "path": p, "collection": True} for n, p in paths.items()]})
    found = rows(
        engine,
        tmp_path,
        view,
        {"resourceType": "Encounter", "class": {"code": "IMP"}},
        {"resourceType": "Encounter", "class": [{"coding": [{"code": "AMB"}]}, {"text": "other"}]},
        {"resourceType": "Encounter"},
        {"resourceType": "Encounter", "class": None},
        {"resourceType": "Encounter", "class": [None, {"coding": [None, {"code": None}]}]},
    )
    assert [(row["r4"], row["r5"]) for row in found] == [(["IMP"], []), ([], ["AMB"]), ([], []), ([], []), ([], [])]


def test_an_element_that_is_plain_in_one_version_and_an_element_in_the_other(engine: Engine, tmp_path: Path) -> None:
    found = rows(
        engine,
        tmp_path,
        view_of(
            "AllergyIntolerance",
            columns(
                r4="type",
                r5="type.coding.code.first()",
                there="type.exists()",
                same="type = 'allergy'",
                code="type.ofType(code)",
            ),
        ),
        {"resourceType": "AllergyIntolerance", "type": "allergy"},
        {"resourceType": "AllergyIntolerance", "type": {"coding": [{"code": "a"}]}},
        {"resourceType": "AllergyIntolerance"},
    )
    assert [tuple(row.values()) for row in found] == [
        ("allergy", None, True, True, "allergy"),
        (None, "a", True, None, None),
        (None, None, False, None, None),
    ]
    appointments = [{"resourceType": "Appointment", "priority": each} for each in (3, "4", {"text": "soon"}, None)]
    view = view_of("Appointment", columns(priority="priority", high="priority > 3"))
    assert [tuple(row.values()) for row in rows(engine, tmp_path, view, *appointments)] == [
        (3, False),
        (4, True),
        (None, None),
        (None, None),
    ]


def test_null_in_json_is_nothing(engine: Engine, tmp_path: Path) -> None:
    view = view_of(
        "Encounter",
        columns(any="class.exists()", coding="class.coding.exists()", selected="class.coding.userSelected.first()"),
    )
    found = rows(
        engine,
        tmp_path,
        view,
        {"resourceType": "Encounter", "class": None},
        {"resourceType": "Encounter", "class": [None]},
        {"resourceType": "Encounter", "class": [{"coding": [None], "text": "x"}]},
        {"resourceType": "Encounter", "class": [{"coding": [{"userSelected": True}]}]},
    )
    assert [tuple(row.values()) for row in found] == [
        (False, False, None),
        (False, False, None),
        (True, False, None),
        (True, True, True),
    ]


def test_contained_resources_of_other_types_do_not_disturb(engine: Engine, tmp_path: Path) -> None:
    view = view_of(
        "MedicationRequest",
        {"column": [{"name": "key", "path": "getResourceKey()"}]},
        {
            "forEach": "contained.where(resourceType = 'Medication')",
            "column": [{"name": "id", "path": "id"}],
            "select": [{"forEachOrNull": "code.coding", **columns(code="code")}],
        },
    )
    found = rows(
        engine,
        tmp_path,
        view,
        {
            "resourceType": "MedicationRequest",
            "id": "m",
            "contained": [
                {"resourceType": "Questionnaire", "id": "q", "code": [{"code": "no"}]},
                {"resourceType": "Library", "id": "l", "code": "no"},
                {"resourceType": "Medication", "id": "a", "code": {"coding": [{"code": "L04AB04"}, {"code": "x"}]}},
                {"resourceType": "Medication", "id": "b"},
            ],
        },
        {"resourceType": "MedicationRequest", "id": "n"},
    )
    assert [tuple(row.values()) for row in found] == [
        ("MedicationRequest/m", "a", "L04AB04"),
        ("MedicationRequest/m", "a", "x"),
        ("MedicationRequest/m", "b", None),
    ]


def test_of_type_narrows_a_contained_resource(engine: Engine, tmp_path: Path) -> None:
    view = view_of("Observation", {"forEach": "contained.ofType(Patient)", **columns(birth="birthDate")})
    contained = [{"resourceType": "Patient", "birthDate": "2001"}, {"resourceType": "Device", "birthDate": "2"}]
    assert rows(engine, tmp_path, view, {"resourceType": "Observation", "contained": contained}) == [{"birth": "2001"}]


@pytest.mark.parametrize(
    ("reference", "key"),
    [
        ("Patient/1", "Patient/1"),
        ("Patient/1/_history/3", "Patient/1"),
        ("http://own/fhir/Patient/1", "Patient/1"),
        ("http://own/fhir/Patient/1/_history/2", "Patient/1"),
        ("http://foreign/fhir/Patient/1", None),
        ("http://own/fhirx/Patient/1", None),
        ("http://ownxfhir/Patient/1", None),
        ("urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6e0", None),
        ("#contained", None),
        ("Patient?identifier=x", None),
        (None, None),
    ],
)
def test_reference_key(reference: str | None, key: str | None, engine: Engine, tmp_path: Path) -> None:
    view = view_of(
        "Condition",
        columns(any="subject.getReferenceKey()", own="subject.getReferenceKey(Patient)"),
        columns(other="subject.getReferenceKey(Group)"),
    )
    condition = {"resourceType": "Condition", "subject": {"reference": reference}}
    found = rows(engine, tmp_path, view, condition, base="http://own/fhir/")
    assert found == [{"any": key, "own": key, "other": None}]


def test_an_absolute_reference_is_foreign_where_no_base_is_known(engine: Engine, tmp_path: Path) -> None:
    first = write(
        tmp_path / "a.ndjson", {"resourceType": "Condition", "subject": {"reference": "http://own/fhir/Patient/1"}}
    )
    compiled = compile_view(view_of("Condition", columns(subject="subject.getReferenceKey()")))
    frame = run_view(engine, compiled, [(first, None), (first, "http://own/fhir"), (first, "http://b")])
    assert list(frame["subject"]) == [None, "Patient/1", None]


def test_dates_and_text_come_back_as_written(engine: Engine, tmp_path: Path) -> None:
    view = view_of(
        "Observation",
        columns(
            when="effective.ofType(dateTime)",
            number="value.ofType(integer)",
            flag="value.ofType(boolean)",
            quantity="value.ofType(Quantity).value",
        ),
    )
    found = rows(
        engine,
        tmp_path,
        view,
        {"resourceType": "Observation", "effectiveDateTime": "2005-03", "valueInteger": 7},
        {"resourceType": "Observation", "effectiveDateTime": "2005-03-04T23:30:00+02:00", "valueBoolean": False},
        '{"resourceType": "Observation", "valueQuantity": {"value": 0.1}}',
    )
    assert [tuple(row.values()) for row in found] == [
        ("2005-03", 7, None, None),
        ("2005-03-04T23:30:00+02:00", None, False, None),
        (None, None, None, "0.1"),
    ]
    assert type(found[0]["number"]) is int
    assert type(found[1]["flag"]) is bool


def test_nulls_in_lists_are_not_items(engine: Engine, tmp_path: Path) -> None:
    view = view_of(
        "Patient",
        {"column": [{"name": "given", "path": "name.given", "collection": True}]},
        columns(first="name.given.first()", odd="name.where(family.empty()).exists()"),
    )
    patient = '{"resourceType": "Patient", "name": [null, {"family": "f", "given": [null, "g", null]}]}'
    assert rows(engine, tmp_path, view, patient) == [{"given": ["g"], "first": "g", "odd": False}]


def test_several_values_stop_the_run_naming_the_column_and_no_value(engine: Engine, tmp_path: Path) -> None:
    view = view_of("Patient", columns(family="name.family"))
    patient = {"resourceType": "Patient", "name": [{"family": "Secret"}, {"family": "Hidden"}]}
    with pytest.raises(IncompleteError, match="column family of the view trial gives several values") as caught:
        rows(engine, tmp_path, view, patient)
    assert "Secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        '{"resourceType": "Patient", "id": "Secret", "name": {"family": "Secret"}}',
        '{"resourceType": "Patient", "id": "Secret", "active": "Secret"}',
    ],
)
def test_a_wrong_shape_names_file_and_line_and_no_value(line: str, engine: Engine, tmp_path: Path) -> None:
    view = view_of("Patient", columns(family="name.family.first()", active="active"))
    with pytest.raises(IncompleteError) as caught:
        rows(engine, tmp_path, view, {"resourceType": "Patient"}, line)
    message = str(caught.value)
    assert "Patient.ndjson" in message
    assert "line 2" in message
    assert "Secret" not in message


def test_a_cut_line_names_the_file_and_no_value(engine: Engine, tmp_path: Path) -> None:
    line = '{"resourceType": "Patient", "id": "Secret", "name": [{"family": "Secret"}'
    with pytest.raises(IncompleteError, match=r"Patient\.ndjson is no JSON") as caught:
        rows(engine, tmp_path, view_of("Patient", columns(id="id")), line, {"resourceType": "Patient"})
    assert "Secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nme.family", "there is no element nme in Patient"),
        ("name.value", "there is no element value in HumanName"),
        (
            "deceasedDateTime",
            "there is no element deceasedDateTime in Patient (FHIR R4 to R5); it is deceased.ofType(dateTime)",
        ),
        ("name", "gives HumanName, not a plain value"),
        ("deceased.ofType(Quantity)", "never of type Quantity"),
        ("active > 1", "compares boolean with integer"),
        ("name.family.lower()", "there is no function lower"),
        ("name.where(family)", "the condition must give true or false"),
        ("name.family = %x", "the constant %x is not defined"),
        ("name.family |", "operator '|' is not supported"),
        ("name.", "a name is missing"),
        ("name.first(", "the path ends too early"),
        ("'open", "cannot read the path"),
        ("9223372036854775808", "is too large"),
        ("(" * 2000 + "active" + ")" * 2000, "too long or too deep"),
        ("name.first().getResourceKey()", "getResourceKey"),
        ("name.family.lowBoundary()", "a boundary is that of a decimal, date, dateTime, instant or time"),
        ("(1.5 * 2).lowBoundary()", "a boundary is that of a value as it is written"),
        ("(1.5 * 2).where($this > 1).first().highBoundary()", "a boundary is that of a value as it is written"),
    ],
)
def test_a_wrong_path_is_refused_naming_view_column_and_path(path: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        compile_view(view_of("Patient", columns(family=path)))
    message = str(caught.value)
    assert words in message
    assert "view trial, column family" in message
    assert path in message


@pytest.mark.parametrize(
    "view",
    [
        {"resource": "Patient"},
        view_of("Patient"),
        view_of("Patiens", columns(a="id")),
        view_of("Patient", columns(a="id"), columns(a="id")),
        view_of("Patient", {"column": [{"path": "id"}]}),
        view_of("Patient", {"column": [{"name": "a b", "path": "id"}]}),
        view_of("Patient", {"forEach": "name", "forEachOrNull": "name", **columns(a="family")}),
        view_of("Patient", {"foreach": "name", **columns(a="id")}),
        view_of("Patient", {"forEach": "multipleBirth.extension.value", **columns(a="id")}),
        view_of("Patient", {"repeat": "link", **columns(a="id")}),
        view_of("Patient", {"repeat": ["$this"], **columns(a="id")}),
        view_of("Patient", {"forEach": "where(active)", **columns(a="id")}),
        view_of("Patient", {"column": [{"name": "a", "path": "id", "collection": "true"}]}),
        view_of("Patient", columns(a="id"), where=[{}]),
        view_of("Patient", columns(a="id"), where={"path": "active"}),
        view_of("Patient", {"select": "id"}),
    ],
)
def test_a_wrong_structure_is_refused(view: dict) -> None:
    with pytest.raises(UsageError):
        compile_view(view)


def test_column_names_may_differ_in_case_or_be_key_words(engine: Engine, tmp_path: Path) -> None:
    view = view_of(
        "Patient", columns(a="id", A="gender", select="active"), {"forEachOrNull": "name", **columns(end="use")}
    )
    patient = {"resourceType": "Patient", "id": "1", "gender": "female", "active": True}
    assert rows(engine, tmp_path, view, patient) == [{"a": "1", "A": "female", "select": True, "end": None}]


def test_extension_of_an_element_and_of_a_primitive(engine: Engine, tmp_path: Path) -> None:
    view = view_of(
        "Patient",
        columns(
            outer="extension('http://a').value.ofType(string)",
            inner="birthDate.extension('http://t').value.ofType(dateTime)",
        ),
    )
    patient = {
        "resourceType": "Patient",
        "extension": [{"url": "http://b", "valueString": "no"}, {"url": "http://a", "valueString": "yes"}],
        "birthDate": "2001-02-03",
        "_birthDate": {"extension": [{"url": "http://t", "valueDateTime": "2001-02-03T04:05:00Z"}]},
    }
    assert rows(engine, tmp_path, view, patient, {"resourceType": "Patient"}) == [
        {"outer": "yes", "inner": "2001-02-03T04:05:00Z"},
        {"outer": None, "inner": None},
    ]


def test_extension_and_id_beside_a_list_of_primitives(engine: Engine, tmp_path: Path) -> None:
    view = view_of(
        "Patient",
        columns(
            masked="name.given.extension('http://m').value.ofType(code)",
            any="name.given.extension.exists()",
            id="birthDate.id",
        ),
    )
    beside = [None, {"extension": [{"url": "http://m", "valueCode": "masked"}]}]
    patient = {"resourceType": "Patient", "name": [{"given": ["a", None], "_given": beside}], "_birthDate": {"id": "b"}}
    assert rows(engine, tmp_path, view, patient, {"resourceType": "Patient"}) == [
        {"masked": "masked", "any": True, "id": "b"},
        {"masked": None, "any": False, "id": None},
    ]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("gender = {}", None),
        ("gender != {}", None),
        ("{} = {}", None),
        ("gender[1] = 'male'", None),
        ("gender[1] != 'male'", None),
        ("active[1] = true", None),
        ("birthDate[1] != @2000", None),
        ("active and {}", None),
        ("{} and active.not()", False),
        ("{} or active", True),
        ("{} or {}", None),
        ("{}.not()", None),
        ("(active and {}).not()", None),
        ("name.exists({})", False),
        ("name.where(family != {}).exists()", False),
        ("name.where({}).empty()", True),
    ],
)
def test_nothing_in_a_condition_is_neither_true_nor_false(
    path: str, expected: object, engine: Engine, tmp_path: Path
) -> None:
    patient = {
        "resourceType": "Patient",
        "gender": "male",
        "active": True,
        "birthDate": "2001",
        "name": [{"family": "f"}],
    }
    assert rows(engine, tmp_path, view_of("Patient", columns(it=path)), patient) == [{"it": expected}]
    assert rows(engine, tmp_path, view_of("Patient", columns(id="id"), where=[{"path": path}]), patient) == (
        [{"id": None}] if expected else []
    )


def test_a_list_of_many_codes_in_one_path_is_no_deep_query(engine: Engine, tmp_path: Path) -> None:
    codes = " or ".join(f"$this = '{code}'" for code in range(400))
    view = view_of("Patient", columns(given=f"name.given.where({codes}).first()"))
    assert rows(engine, tmp_path, view, {"resourceType": "Patient", "name": [{"given": ["x", "399"]}]}) == [
        {"given": "399"}
    ]


def test_an_iteration_over_the_resource_is_one_row(engine: Engine, tmp_path: Path) -> None:
    view = view_of(
        "Patient",
        {
            "forEach": "$this",
            **columns(key="getResourceKey()", at="%rowIndex"),
            "select": [
                {
                    "forEach": "name",
                    **columns(family="family"),
                    "select": [{"forEach": "%resource", **columns(id="id")}],
                }
            ],
        },
    )
    patient = {"resourceType": "Patient", "id": "1", "name": [{"family": "a"}, {"family": "b"}]}
    assert rows(engine, tmp_path, view, patient) == [
        {"key": "Patient/1", "at": 0, "family": family, "id": "1"} for family in "ab"
    ]


def test_for_each_or_null_over_nothing_is_one_row_of_nothing(engine: Engine, tmp_path: Path) -> None:
    view = view_of(
        "Patient",
        columns(id="id"),
        {
            "forEachOrNull": "contact",
            **columns(named="name.exists()", kind="'contact'", half="0.5", at="%rowIndex", whose="%resource.id"),
            "select": [
                {
                    "forEach": "telecom",
                    "column": [
                        {"name": "value", "path": "value"},
                        {"name": "place", "path": "%rowIndex"},
                        {"name": "systems", "path": "system", "collection": True},
                    ],
                },
                {"unionAll": [columns(is_one="gender"), columns(is_one="name.family")]},
            ],
        },
    )
    contact = {"gender": "male", "telecom": [{"value": "1", "system": "phone"}]}
    found = rows(
        engine,
        tmp_path,
        view,
        {"resourceType": "Patient", "id": "none"},
        {"resourceType": "Patient", "id": "silent", "contact": [{"gender": "male"}]},
        {"resourceType": "Patient", "id": "one", "contact": [contact]},
    )
    nothing = dict.fromkeys(["named", "kind", "half", "at", "whose", "value", "place", "systems", "is_one"])
    there = {"named": False, "kind": "contact", "half": 0.5, "at": 0, "whose": "one", "value": "1", "place": 0}
    assert found == [
        {"id": "none", **nothing, "at": 0, "place": 0, "systems": []},
        {"id": "one", **there, "systems": ["phone"], "is_one": "male"},
        {"id": "one", **there, "systems": ["phone"], "is_one": None},
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"valueInteger64": "9007199254740993"}, 9007199254740993),
        ({"valueInteger": -1}, -1),
        ({"valueInteger": "5"}, 5),
        ({"valueDecimal": 2}, 2),
        ({"valueBoolean": False}, False),
        ({"valueTime": "10:00:00"}, "10:00:00"),
    ],
)
def test_a_constant_is_the_value_of_its_type(value: dict, expected: object, engine: Engine, tmp_path: Path) -> None:
    view = view_of("Patient", columns(it="%c"), constant=[{"name": "c", **value}])
    assert rows(engine, tmp_path, view, {"resourceType": "Patient"}) == [{"it": expected}]


@pytest.mark.parametrize(
    "value",
    [
        {"valueInteger": "five"},
        {"valueInteger": True},
        {"valueInteger": 1.5},
        {"valueInteger": 2**63},
        {"valueInteger64": "five"},
        {"valueBoolean": "true"},
        {"valueBoolean": 1},
        {"valueDecimal": "1,5"},
        {"valueDecimal": float("nan")},
        {"valueDate": 2005},
        {"valueString": None},
        {"valueCoding": {"code": "x"}},
    ],
)
def test_a_constant_that_is_not_of_its_type_is_refused(value: dict) -> None:
    with pytest.raises(UsageError, match="the constant c must hold a plain value of the type"):
        compile_view(view_of("Patient", columns(a="%c"), constant=[{"name": "c", **value}]))


@pytest.mark.parametrize(
    ("left", "operator", "right", "expected"),
    [
        ("2005", "=", "@2005", True),
        ("2005", "=", "@2005-01", None),
        ("2005", "!=", "@2006-01", True),
        ("2005-03-01", "<", "@2005-04", True),
        ("2005-03", "<", "@2005-03-02", None),
        ("2005-03-02", ">=", "@2005-03-02", True),
        ("2005-02-29", "<", "@2006", None),
        ("unknown", "!=", "@2006", None),
    ],
)
def test_dates_compare_to_the_precision_both_have(
    left: str, operator: str, right: str, expected: object, engine: Engine, tmp_path: Path
) -> None:
    view = view_of("Patient", columns(is_so=f"birthDate {operator} {right}"))
    assert rows(engine, tmp_path, view, {"resourceType": "Patient", "birthDate": left}) == [{"is_so": expected}]


def test_instants_compare_across_offsets(engine: Engine, tmp_path: Path) -> None:
    view = view_of(
        "Observation",
        columns(
            same="issued = @2005-03-04T10:00:00Z",
            earlier="issued < @2005-03-04T10:00:01Z",
        ),
    )
    observation = {"resourceType": "Observation", "issued": "2005-03-04T12:00:00.000+02:00"}
    assert rows(engine, tmp_path, view, observation) == [{"same": True, "earlier": True}]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("issued > @2016-12-31T23:59:58Z and issued < @2017-01-01T00:00:00Z", True),  # a leap second
        ("value.ofType(time) = @T12:30:00.000", True),
        ("value.ofType(time) < @T12:30:00.001", True),
        ("value.ofType(time) > @T12", None),
        ("value.ofType(time).highBoundary()", "12:30:00.999"),
        ("referenceRange.low.value.highBoundary()", 1.5e-07),
        ("status + bodySite.text", None),
        ("status & bodySite.text", "final"),
        ("status + '.'", "final."),
    ],
)
def test_times_small_numbers_and_texts(path: str, expected: object, engine: Engine, tmp_path: Path) -> None:
    observation = {
        "resourceType": "Observation",
        "status": "final",
        "issued": "2016-12-31T23:59:60Z",
        "valueTime": "12:30:00",
        "referenceRange": [{"low": {"value": 1e-07}}],
    }
    view = view_of("Observation", columns(it=path))
    assert rows(engine, tmp_path, view, observation) == [{"it": expected}]


def test_repeat_refuses_a_record_deeper_than_it_goes(engine: Engine, tmp_path: Path) -> None:
    view = view_of("QuestionnaireResponse", {"repeat": ["item"], **columns(link="linkId")})

    def nested(depth: int) -> dict:
        return {"linkId": str(depth), "item": [nested(depth - 1)]} if depth else {"linkId": "0"}

    found = rows(engine, tmp_path, view, {"resourceType": "QuestionnaireResponse", "item": [nested(9)]})
    assert [row["link"] for row in found] == [str(n) for n in range(9, -1, -1)]
    with pytest.raises(IncompleteError, match="more than 10 levels"):
        rows(engine, tmp_path, view, {"resourceType": "QuestionnaireResponse", "item": [nested(10)]})


def test_rows_stand_in_the_order_of_files_lines_and_lists_whatever_the_threads(tmp_path: Path) -> None:
    files = [
        write(
            tmp_path / f"{part}.ndjson",
            *(
                {"resourceType": "Patient", "id": f"{part}-{n}", "name": [{"use": "a"}, {"use": "b"}]}
                for n in range(50)
            ),
        )
        for part in range(3)
    ]
    compiled = compile_view(view_of("Patient", columns(id="id"), {"forEach": "name", **columns(use="use")}))
    expected = [(f"{part}-{n}", use) for part in range(3) for n in range(50) for use in "ab"]
    for threads in (1, 3):
        with open_duckdb(threads=threads) as opened:
            frame = run_view(opened, compiled, [(file, None) for file in files])
        assert list(frame.itertuples(index=False, name=None)) == expected


def test_names_of_files_are_no_patterns_and_gz_is_read(engine: Engine, tmp_path: Path) -> None:
    odd = write(tmp_path / "a'[1]*?.ndjson", {"resourceType": "Patient", "id": "odd"})
    write(tmp_path / "a'1xx.ndjson", {"resourceType": "Patient", "id": "no"})
    zipped = tmp_path / "z.ndjson.gz"
    zipped.write_bytes(gzip.compress(b'{"resourceType": "Patient", "id": "zipped"}'))
    frame = run_view(engine, compile_view(view_of("Patient", columns(id="id"))), [(odd, None), (zipped, None)])
    assert list(frame["id"]) == ["odd", "zipped"]


def test_a_very_long_line_is_read(engine: Engine, tmp_path: Path) -> None:
    patient = {"resourceType": "Patient", "id": "1", "text": {"div": "x" * (17 * 1024 * 1024)}}
    assert rows(engine, tmp_path, view_of("Patient", columns(id="id")), patient) == [{"id": "1"}]


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UsageError, match="use duckdb"), open_engine("oracle"):
        pass


def test_a_text_of_a_path_is_that_text_on_every_engine(engine: Engine, tmp_path: Path) -> None:
    text = "${env:HOME} $1 {x} %s ? :x -- /* ' \\ \" \n"
    written = text.replace("\\", "\\\\").replace("'", "\\'")
    assert rows(engine, tmp_path, view_of("Patient", columns(it=f"'{written}'")), {"resourceType": "Patient"}) == [
        {"it": text}
    ]


@pytest.mark.parametrize("number", ["3", "3.0", '"3"'])
def test_an_integer_is_one_however_it_is_written(number: str, engine: Engine, tmp_path: Path) -> None:
    view = view_of("Patient", columns(it="multipleBirth.ofType(integer)"))
    patient = f'{{"resourceType": "Patient", "multipleBirthInteger": {number}}}'
    assert rows(engine, tmp_path, view, patient) == [{"it": 3}]


@pytest.mark.parametrize(
    ("text", "value"),
    [(r"'it\'s\n\u00e6'", "it's\næ"), ("1.50", Decimal("1.50")), ("7", 7), ("true", True), ("@2005-03", "2005-03")],
)
def test_literals(text: str, value: object) -> None:
    assert parse(text).value == value  # type: ignore[union-attr]


def test_operators_bind_as_in_fhirpath(engine: Engine, tmp_path: Path) -> None:
    view = view_of(
        "Patient",
        columns(
            a="true or true and false",
            b="(true or true) and false",
            c="2 + 3 * 4",
            d="10 - 3 - 2",
            e="-2 + 5",
            f="1 + 1 = 2",
            g="'a' & {} & 'b'",
            h="1 / 0",
            i="0.1 + 0.2",
        ),
    )
    expected = {"a": True, "b": False, "c": 14, "d": 5, "e": 3, "f": True, "g": "ab", "h": None, "i": 0.3}
    assert rows(engine, tmp_path, view, {"resourceType": "Patient"}) == [expected]


def test_a_path_outside_the_subset_is_no_path() -> None:
    with pytest.raises(PathError):
        parse("name.family as string")


@pytest.mark.parametrize(
    ("resource", "misfit"),
    [
        ({"resourceType": "Patient", "name": [{"given": ["a", None]}], "_birthDate": {"extension": []}}, None),
        ({"resourceType": "Patient", "unknown": {"x": 1}, "name": None}, None),
        ({"resourceType": "Patient", "name": {"family": "x"}}, "Patient.name"),
        ({"resourceType": "Patient", "name": [{"given": "a"}]}, "Patient.name[0].given"),
        ({"resourceType": "Patient", "name": [{}, "x"]}, "Patient.name[1]"),
        ({"resourceType": "Patient", "birthDate": ["2001"]}, "Patient.birthDate"),
        ({"resourceType": "Patient", "birthDate": {"x": 1}}, "Patient.birthDate"),
        ({"resourceType": "Patient", "active": "true"}, "Patient.active"),
        ({"resourceType": "Patient", "gender": True}, "Patient.gender"),
        ({"resourceType": "Observation", "valueQuantity": {"value": "<4"}}, "Observation.valueQuantity.value"),
        ({"resourceType": "Observation", "valueQuantity": {"value": "4.5"}}, None),
        ({"resourceType": "Observation", "valueInteger": 4}, None),
        ({"resourceType": "Observation", "valueInteger": "4"}, None),
        ({"resourceType": "Observation", "valueInteger": 4.0}, None),
        ({"resourceType": "Observation", "valueInteger": 4.5}, "Observation.valueInteger"),
        ({"resourceType": "Observation", "valueInteger": 10**20}, "Observation.valueInteger"),
        ({"resourceType": "Patient", "_birthDate": {"id": "x", "extension": [{"url": "u"}]}}, None),
        ({"resourceType": "Patient", "_birthDate": [None]}, "Patient._birthDate"),
        ({"resourceType": "Patient", "_birthDate": {"extension": {}}}, "Patient._birthDate.extension"),
        ({"resourceType": "Patient", "name": [{"_given": [None, {"extension": []}]}]}, None),
        ({"resourceType": "Patient", "name": [{"_given": {"extension": []}}]}, "Patient.name[0]._given"),
        ({"resourceType": "Observation", "_valueString": []}, "Observation._valueString"),
        ({"resourceType": "Encounter", "class": {"code": "IMP"}}, None),
        ({"resourceType": "Encounter", "class": [{"text": "x"}]}, None),
        ({"resourceType": "Encounter", "class": [{"text": {}}]}, "Encounter.class[0].text"),
        ({"resourceType": "ImagingStudy", "series": [{"modality": {"coding": [{"code": "MR"}]}}]}, None),
        ({"resourceType": "ImagingStudy", "series": [{"modality": "MR"}]}, "ImagingStudy.series[0].modality"),
        ({"resourceType": "MedicationStatement", "medication": {"concept": {"text": "x"}}}, None),
        ({"resourceType": "Condition", "contained": [{"resourceType": "Own", "code": 1}]}, None),
        (
            {"resourceType": "Condition", "contained": [{"resourceType": "Practitioner", "name": {}}]},
            "Condition.contained[0].name",
        ),
        (
            {"resourceType": "Condition", "contained": [{"resourceType": "Patient", "name": 1}]},
            "Condition.contained[0].name",
        ),
        ({"resourceType": "Condition", "contained": {"resourceType": "Patient"}}, "Condition.contained"),
        ({"resourceType": "Own", "code": 1}, None),
    ],
)
def test_find_misfit(resource: dict, misfit: str | None) -> None:
    assert find_misfit(resource, resource["resourceType"]) == misfit


def test_a_number_is_written_in_the_same_way_whoever_reads_it(engine: Engine, tmp_path: Path) -> None:
    numbers = ["7", "1.50", "1e3", "350000.0", "0.00095", "1e-5", "-1.5e-7", "12345678.5", "1e15", "1.5e16", "-2e100"]
    lines = [f'{{"resourceType": "Observation", "valueQuantity": {{"value": {number}}}}}' for number in numbers]
    shown = ["7", *(repr(float(number)) for number in numbers[1:])]
    view = view_of("Observation", columns(value="value.ofType(Quantity).value"))
    assert [row["value"] for row in rows(engine, tmp_path, view, *lines)] == shown
    usual = {number: text for number, text in zip(numbers, shown, strict=True) if "e" not in text}
    inside = ",".join(f'{{"resourceType": "Observation", "valueQuantity": {{"value": {number}}}}}' for number in usual)
    contained = f'{{"resourceType": "Observation", "contained": [{inside}]}}'
    view = view_of(
        "Observation", {"forEach": "contained.ofType(Observation)", **columns(v="value.ofType(Quantity).value")}
    )
    assert [row["v"] for row in rows(engine, tmp_path, view, contained)] == list(usual.values())


@pytest.mark.parametrize(
    "line",
    [
        '{"resourceType": "Patient", "id": "1"} {"resourceType": "Patient", "id": "2"}',
        '{"resourceType": "Patient", "id": "1"}, {"resourceType": "Patient", "id": "2"}',
        '{"resourceType": "Patient", "id": "1"}]{"resourceType": "Patient", "id": "2"}',
        '{"resourceType": "Patient", "id": "1"} and more',
        '[{"resourceType": "Patient", "id": "1"}]',
        "{'resourceType': 'Patient', 'id': '1'}",
        '"Patient"',
    ],
)
def test_a_line_that_is_not_one_whole_record_stops_the_run(line: str, engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(IncompleteError, match=r"Patient\.ndjson"):
        rows(engine, tmp_path, view_of("Patient", columns(id="id")), {"resourceType": "Patient", "id": "0"}, line)


def test_bytes_that_are_no_utf8_stop_the_run(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "Patient.ndjson"
    file.write_bytes(b'{"resourceType": "Patient", "id": "\xff"}\n')
    with pytest.raises(IncompleteError, match=r"Patient\.ndjson"):
        run_view(engine, compile_view(view_of("Patient", columns(id="id"))), [(file, None)])


def test_files_of_odd_names_are_read(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "[1] {a,b}: 5 %").mkdir()
    names = ["_a.ndjson", ".b.ndjson", "c:d.ndjson", "e\\f.ndjson", "{g,h} *.ndjson", "[1] {a,b}: 5 %/æ.ndjson"]
    files = [write(tmp_path / name, {"resourceType": "Patient", "id": name}) for name in names]
    frame = run_view(engine, compile_view(view_of("Patient", columns(id="id"))), [(file, None) for file in files])
    assert list(frame["id"]) == names


@pytest.mark.spark
def test_spark_reads_many_parts_of_a_file_in_their_order(spark: Engine, tmp_path: Path) -> None:
    long = write(
        tmp_path / "long.ndjson",
        *({"resourceType": "Patient", "id": str(n), "language": "x" * 2000} for n in range(9000)),
    )
    short = write(tmp_path / "short.ndjson", {"resourceType": "Patient", "id": "last"})
    frame = run_view(
        spark, compile_view(view_of("Patient", columns(id="id"))), [(short, None), (long, None), (short, None)]
    )
    assert list(frame["id"]) == ["last", *map(str, range(9000)), "last"]
