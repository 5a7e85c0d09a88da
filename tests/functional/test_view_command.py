"""`crmo-fhir view`: one ViewDefinition over any source, as a table."""

import csv
import gzip
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support import DEMONSTRATION

from crmo_fhir.source import survey

VIEW = {
    "resourceType": "ViewDefinition",
    "name": "trial",
    "resource": "Patient",
    "select": [
        {
            "column": [
                {"name": "key", "path": "getResourceKey()"},
                {"name": "born", "path": "birthDate"},
                {"name": "active", "path": "active"},
                {"name": "order", "path": "multipleBirth.ofType(integer)"},
                {"name": "given", "path": "name.given", "collection": True},
                {"name": "half", "path": "0.5"},
                {"name": "city", "path": "address.first().city"},
            ]
        }
    ],
}
HEADER = "key,born,active,order,given,half,city\n"


@pytest.fixture
def trial(tmp_path) -> Path:
    path = tmp_path / "trial.json"
    path.write_text(json.dumps(VIEW), encoding="utf-8")
    return path


def patient(key: str, **more: object) -> dict:
    return {"resourceType": "Patient", "id": key, **more}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as text:
        return [*csv.DictReader(text)]


def lines(*resources: dict) -> str:
    return "".join(f"{json.dumps(resource)}\n" for resource in resources)


def bundle(*resources: dict, base: str = "http://own/fhir") -> str:
    entries = [{"fullUrl": f"{base}/{r['resourceType']}/{r['id']}", "resource": r} for r in resources]
    return json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}, indent=1)


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Every kind of file that a source may hold, all in one folder."""
    folder = tmp_path / "records"
    (folder / "deep").mkdir(parents=True)
    full = patient(
        "a", birthDate="2001-02", active=True, multipleBirthInteger=2, name=[{"given": ["Åse", 'B"']}, {"given": ["C"]}]
    )
    (folder / "1.ndjson").write_text(lines(full, patient("b", active=False, address=[{"city": ""}])), encoding="utf-8")
    (folder / "2.ndjson.gz").write_bytes(gzip.compress(lines(patient("c", birthDate="2001")).encode()))
    condition = {"resourceType": "Condition", "id": "x", "subject": {"reference": "Patient/a"}, "code": "wrong"}
    (folder / "3.ndjson").write_text(lines(condition, patient("d"), patient("e")) + "\n \n", encoding="utf-8")
    (folder / "4.json").write_text(bundle(patient("f"), patient("g", active=True)), encoding="utf-8")
    (folder / "deep" / "5.json").write_text(json.dumps(patient("h"), indent=2), encoding="utf-8")
    (folder / "6.ndjson").write_bytes(b"\xef\xbb\xbf" + lines(patient("i")).encode())
    (folder / "notes.txt").write_text("not FHIR", encoding="utf-8")
    return folder


ROWS = [
    'Patient/a,2001-02,true,2,"[""Åse"", ""B\\"""", ""C""]",0.5,',
    "Patient/b,,false,,[],0.5,",
    "Patient/c,2001,,,[],0.5,",
    "Patient/d,,,,[],0.5,",
    "Patient/e,,,,[],0.5,",
    "Patient/f,,,,[],0.5,",
    "Patient/g,,true,,[],0.5,",
    "Patient/i,,,,[],0.5,",
    "Patient/h,,,,[],0.5,",
]


def test_a_folder_in_any_mix_gives_a_table(crmo, trial, mixed, tmp_path):
    out = tmp_path / "out.csv"
    before = sorted(tmp_path.rglob("*"))
    ran = crmo("view", trial, mixed, "-o", out)
    assert (ran.code, ran.out, ran.err) == (0, f"9 rows of 9 records in {out}\n", "")
    assert out.read_text(encoding="utf-8") == HEADER + "".join(f"{row}\n" for row in ROWS)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, out])
    assert out.stat().st_mode & 0o777 == 0o600


def test_a_file_whose_name_is_no_text_is_read_and_a_place_that_is_none_is_refused(crmo, trial, tmp_path):
    odd = tmp_path / os.fsdecode(b"b\xf8rn")
    odd.mkdir()
    for place in (odd, tmp_path / "source"):
        place.mkdir(exist_ok=True)
        (place / os.fsdecode(b"b\xf8rn.ndjson")).write_text(lines(patient("a")), encoding="utf-8")
        assert crmo("view", trial, place, "-o", tmp_path / "out.csv").code == 0
        assert [row["key"] for row in table(tmp_path / "out.csv")] == ["Patient/a"]
    ran = crmo("view", trial, odd, "-o", odd / "out.csv")
    assert ran.code == 2
    assert "no UTF-8 text" in ran.err


def test_bundles_of_two_servers_keep_their_bases_and_their_order(crmo, tmp_path):
    conditions = [
        {"resourceType": "Condition", "id": str(n), "subject": {"reference": f"http://{'ab'[n // 2 % 2]}/Patient/{n}"}}
        for n in range(8)
    ]
    for n, condition in enumerate(conditions):
        (tmp_path / f"{n}.json").write_text(bundle(condition, base=f"http://{'ab'[n % 2]}"), encoding="utf-8")
    view = {"resource": "Condition", "select": [{"column": [{"name": "id", "path": "id"},
            {"name": "own", "path": "subject.getReferenceKey(Patient)"}]}]}  # fmt: skip
    (tmp_path / "view").write_text(json.dumps(view))
    out = tmp_path / "out.csv"
    assert crmo("view", tmp_path / "view", tmp_path, "-o", out).code == 0
    expected = [(str(n), f"Patient/{n}" if n % 2 == n // 2 % 2 else "") for n in range(8)]
    assert [(row["id"], row["own"]) for row in table(out)] == expected


@pytest.mark.spark
def test_spark_gives_the_same_table(crmo, trial, mixed, tmp_path, spark, monkeypatch):
    from contextlib import contextmanager

    from crmo_fhir import engine

    on_duckdb, on_spark = tmp_path / "duckdb.parquet", tmp_path / "spark.parquet"
    assert crmo("view", trial, mixed, "-o", on_duckdb).code == 0

    @contextmanager
    def opened(name: str, **_: object):
        assert name == "spark:local[2]"
        yield spark

    monkeypatch.setattr(engine, "open_engine", opened)
    assert crmo("view", trial, mixed, "-o", on_spark, "--engine", "spark:local[2]").code == 0
    assert on_spark.read_bytes() == on_duckdb.read_bytes()


def test_parquet_has_the_types_of_the_columns(crmo, trial, mixed, tmp_path):
    out = tmp_path / "out.PARQUET"
    assert crmo("view", trial, mixed, "-o", out, "-q").code == 0
    table = pq.read_table(out)
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "key": "string",
        "born": "string",
        "active": "bool",
        "order": "int64",
        "given": "list<element: string>",
        "half": "double",
        "city": "string",
    }
    first, second, *_ = table.to_pylist()
    assert first == {"key": "Patient/a", "born": "2001-02", "active": True, "order": 2, "given": ["Åse", 'B"', "C"],
                     "half": 0.5, "city": None}  # fmt: skip
    assert (second["active"], second["order"], second["given"], second["city"]) == (False, None, [], "")


def test_decimals_are_numbers_in_parquet_and_as_they_are_in_csv(crmo, tmp_path):
    view = {"resource": "Observation", "select": [{"column": [{"name": "v", "path": "value.ofType(Quantity).value"}]}]}
    (tmp_path / "view.json").write_text(json.dumps(view))
    values = [{"resourceType": "Observation", "id": "1", "valueQuantity": {"value": each}} for each in (7, 0.25, None)]
    (tmp_path / "o.ndjson").write_text(lines(*values))
    for name in ("o.csv", "o.parquet"):
        assert crmo("view", tmp_path / "view.json", tmp_path / "o.ndjson", "-o", tmp_path / name).code == 0
    assert (tmp_path / "o.csv").read_text() == 'v\n7\n0.25\n""\n'
    assert pq.read_table(tmp_path / "o.parquet").to_pydict() == {"v": [7.0, 0.25, None]}


def test_a_shipped_view_over_a_study_and_over_its_source(crmo, demo_study, tmp_path):
    for source, name in ((demo_study, "study.csv"), (DEMONSTRATION, "source.csv")):
        ran = crmo("view", "patient", source, "-o", tmp_path / name)
        assert (ran.code, ran.err) == (0, "")
    found = {name: table(tmp_path / f"{name}.csv") for name in ("study", "source")}
    assert [*found["study"][0]] == ["key", "gender", "birth_date", "deceased", "deceased_date"]
    keys = {name: {row["key"] for row in rows} for name, rows in found.items()}
    assert keys["study"] < keys["source"]
    assert not (demo_study / ".spill").exists()


def test_a_type_that_a_study_does_not_hold_is_told_of(crmo, demo_study, tmp_path):
    view = {"resource": "Practitioner", "select": [{"column": [{"name": "id", "path": "id"}]}]}
    (tmp_path / "view").write_text(json.dumps(view))
    ran = crmo("view", tmp_path / "view", demo_study, "-o", tmp_path / "out.csv")
    assert (ran.code, (tmp_path / "out.csv").read_text()) == (0, "id\n")
    assert ran.err == f"crmo-fhir: warning: {demo_study} holds no Practitioner: the table is empty\n"


def test_what_cannot_be_read_ends_the_run_or_is_left_out_and_told_of(crmo, trial, tmp_path):
    source, out = tmp_path / "p.ndjson", tmp_path / "out.csv"
    text = lines(patient("a"), patient("b", birthDate=["Secret"]), {"resourceType": "Group", "id": 1}, patient("c"))
    source.write_text(text + '{"resourceType": "Patient", "id": "Secr', encoding="utf-8")
    out.write_text("as it was")
    ran = crmo("view", trial, source, "-o", out)
    assert (ran.code, ran.out, out.read_text()) == (3, "", "as it was")
    told = "p.ndjson, line 2 (and 1 more): Patient.birthDate has not the shape FHIR gives it"
    assert ran.err == f"crmo-fhir: {told}; correct it at its source, or leave it out with --accept-partial\n"
    ran = crmo("view", trial, source, "-o", out, "--accept-partial")
    assert (ran.code, ran.out) == (0, f"2 rows of 2 records, 2 left out in {out}\n")
    assert ran.err == f"crmo-fhir: warning: 2 records were left out: {told}\n"
    assert [row["key"] for row in table(out)] == ["Patient/a", "Patient/c"]


@pytest.mark.parametrize("least", [0, 1 << 60], ids=["large", "small"])
def test_a_record_that_has_not_its_shape_is_named_however_large_the_source(least, crmo, tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "SURVEYED_FROM", least)
    columns = {
        "id": "id",
        "twin": "multipleBirth.ofType(integer)",
        "why": "birthDate.extension('w').value.ofType(code)",
    }
    view = {"resource": "Patient", "select": [{"column": [{"name": n, "path": p} for n, p in columns.items()]}]}
    (tmp_path / "view").write_text(json.dumps(view))
    beside = {"extension": [{"url": "w", "valueCode": "masked"}]}
    good = [patient("a", multipleBirthInteger=2, _birthDate=beside), patient("b", multipleBirthInteger="3"),
            patient("c", multipleBirthInteger=4.0), patient("d", _birthDate={"id": "x"})]  # fmt: skip
    wrong = {
        "multipleBirthInteger": [patient("v", multipleBirthInteger=each) for each in (3.5, 10**20, True, {})],
        "_birthDate": [patient("w", _birthDate=each) for each in ([None], "masked")],
        "_birthDate.extension[0].valueCode": [patient("x", _birthDate={"extension": [{"url": "w", "valueCode": {}}]})],
    }
    source, out = tmp_path / "source", tmp_path / "out.csv"
    source.mkdir()
    for place, records in wrong.items():
        for record in records:
            (source / "p.ndjson").write_text(lines(*good, record))
            ran = crmo("view", tmp_path / "view", source, "-o", out, "--accept-partial")
            assert (ran.code, ran.out) == (0, f"4 rows of 4 records, 1 left out in {out}\n")
            assert f"p.ndjson, line 5: Patient.{place} has not the shape FHIR gives it" in ran.err
            assert out.read_text() == "id,twin,why\na,2,masked\nb,3,\nc,4,\nd,,\n"


def test_a_type_that_is_not_there_gives_the_header(crmo, trial, tmp_path):
    (tmp_path / "g.ndjson").write_text(lines({"resourceType": "Group", "id": "1"}))
    out = tmp_path / "out.csv"
    ran = crmo("view", trial, tmp_path / "g.ndjson", "-o", out)
    assert (ran.code, out.read_text()) == (0, HEADER)
    assert "holds no Patient that can be read" in ran.err


@pytest.mark.parametrize(
    "kind",
    [
        "https://sql-on-fhir.org/ig/StructureDefinition/ViewDefinition",
        "http://hl7.org/fhir/uv/sql-on-fhir/StructureDefinition/ViewDefinition",
    ],
)
def test_a_view_may_name_its_type_by_url_and_begin_with_a_byte_order_mark(kind, crmo, trial, tmp_path):
    trial.write_text(json.dumps({**VIEW, "resourceType": kind}), encoding="utf-8-sig")
    (tmp_path / "p.ndjson").write_text(lines(patient("a")))
    assert crmo("view", trial, tmp_path / "p.ndjson", "-o", tmp_path / "out.csv").code == 0
    assert [row["key"] for row in table(tmp_path / "out.csv")] == ["Patient/a"]


def test_a_view_may_be_of_any_type_of_resource(crmo, tmp_path):
    view = {"resource": "Practitioner", "select": [{"column": [{"name": "family", "path": "name.family"}]}]}
    (tmp_path / "view").write_text(json.dumps(view))
    practitioner = {"resourceType": "Practitioner", "id": "1", "name": [{"family": "f"}]}
    (tmp_path / "p.ndjson").write_text(lines(practitioner, patient("a"), {**practitioner, "id": "2", "name": {}}))
    ran = crmo("view", tmp_path / "view", tmp_path / "p.ndjson", "-o", tmp_path / "out.csv", "--accept-partial")
    assert (ran.code, ran.out) == (0, f"1 rows of 1 records, 1 left out in {tmp_path / 'out.csv'}\n")
    assert "p.ndjson, line 3: Practitioner.name has not the shape FHIR gives it" in ran.err
    assert [row["family"] for row in table(tmp_path / "out.csv")] == ["f"]


def changed(**column: object) -> dict:
    return {**VIEW, "select": [{"column": [{"name": "a", "path": "id"}, {"name": "b", **column}]}]}


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (changed(path="nme.family"), "view trial, column b, path nme.family: there is no element nme in Patient"),
        ({**VIEW, "resource": "Patiens"}, "Patiens"),
        (changed(name="a", path="gender"), "the column a is there twice"),
        (changed(path="name"), "column b, path name: it gives HumanName, not a plain value"),
        (changed(path="name.family", collection=False), "column b, path name.family: may give several values"),
        ({**VIEW, "resourceType": "Patient"}, "is no ViewDefinition"),
        ([], "is no ViewDefinition"),
        ({**VIEW, "resourceType": "https://hospital.example/ViewDefinition"}, "is no ViewDefinition"),
        ([VIEW], "is no ViewDefinition"),
        ({"resourceType": "Bundle", "entry": [{"resource": VIEW}]}, "is no ViewDefinition"),
        ("{", "the JSON ends too early"),
        ("resourceType: ViewDefinition", "it is not valid JSON"),
        (json.dumps(VIEW)[:-1] + ', "select": []}', "an object names a member twice"),
    ],
)
def test_a_wrong_view_is_one_line_before_any_data_is_read(view, words, crmo, tmp_path):
    file, out = tmp_path / "view.json", tmp_path / "out.csv"
    file.write_text(view if isinstance(view, str) else json.dumps(view))
    ran = crmo("view", file, tmp_path / "no such folder", "-o", out)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert words in ran.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("patien", ".", "-o", "x.csv"), "patien: no view of that name and no such file; views are adverse_event, "),
        (("patient", "nowhere", "-o", "x.csv"), "there is no file or folder nowhere"),
        (("patient", "http://own/fhir", "-o", "x.csv"), "run 'crmo-fhir extract' first"),
        (("patient", ".", "-o", "x.txt"), "x.txt: a table is written as .csv or .parquet"),
        (("patient", ".", "-o", "nowhere/x.csv"), "nowhere: no such folder"),
        (("patient", ".", "-o", "folder.csv"), "folder.csv: is no file"),
        (("patient", "."), "-o"),
        (("patient", ".", "-o", "x.csv", "--engine", "oracle"), "the engine oracle is not there"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, words, crmo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    ran = crmo("view", *arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert words in ran.err
    assert [*tmp_path.iterdir()] == [tmp_path / "folder.csv"]


def test_no_table_comes_among_the_files_of_a_study(crmo, demo_study):
    for name in ("cohort/x.csv", "raw/x.csv", "results.csv"):
        before = sorted(demo_study.rglob("*"))
        ran = crmo("view", "patient", demo_study, "-o", demo_study / name)
        assert ran.code == 2
        assert "that place is the program's own" in ran.err
        assert sorted(demo_study.rglob("*")) == before
