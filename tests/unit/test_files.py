"""Folders and files in every mix: the same records come out whatever they are packed in, and nothing is lost silently."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crmo_fhir.artifacts import Artifacts
from crmo_fhir.errors import IncompleteError, UsageError
from crmo_fhir.model.records import READ_TYPES, Pull
from crmo_fhir.source import files, pieces
from crmo_fhir.source.files import select_candidates

Resource = dict[str, Any]
ICD10 = "http://hl7.org/fhir/sid/icd-10"
BASE = "https://a.example/fhir"
ARTIFACTS = Artifacts.load()
CRMO, TEXT = ARTIFACTS.value_set("crmo"), ARTIFACTS.value_set("crmo-text")


def pull_of(path: Path) -> Pull:
    return select_candidates(path, CRMO, TEXT)


def patient(identity: str, **more: Any) -> Resource:
    return {"resourceType": "Patient", "id": identity, **more}


def condition(identity: str, subject: Any, code: str = "M86.3", **more: Any) -> Resource:
    concept = {"coding": [{"system": ICD10, "code": code}]}
    about = {"reference": subject} if isinstance(subject, str) else subject
    return {"resourceType": "Condition", "id": identity, "subject": about, "code": concept, **more}


def about(kind: str, identity: str, subject: str, **more: Any) -> Resource:
    return {"resourceType": kind, "id": identity, "subject": {"reference": subject}, **more}


COHORT = [
    patient("p1", gender="female"),
    patient("p2"),
    patient("other"),
    condition("c1", "Patient/p1"),
    condition("c2", "Patient/p2/_history/4"),
    condition("c3", "Patient/other", code="J45"),
    about("Encounter", "e1", "Patient/p1"),
    about("Observation", "o1", "Patient/p1", encounter={"reference": "Encounter/e1"}),
    about("Observation", "o2", "Patient/other"),
    about("MedicationStatement", "s1", "Patient/p1", medicationReference={"reference": "Medication/m1"}),
    {"resourceType": "Medication", "id": "m1", "ingredient": [{"itemReference": {"reference": "Medication/m2"}}]},
    {"resourceType": "Medication", "id": "m2"},
    {"resourceType": "Medication", "id": "m3"},
    {"resourceType": "Organization", "id": "g1"},
]
KEPT = ["c1", "c2", "e1", "m1", "m2", "o1", "p1", "p2", "s1"]


def ndjson(resources: list[Resource]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in resources)


def bundle(resources: list[Resource], base: str | None = None, kind: str = "collection") -> Resource:
    entries: list[Resource] = [{"resource": one} for one in resources]
    for entry in entries:
        if base:
            entry["fullUrl"] = f"{base}/{entry['resource']['resourceType']}/{entry['resource']['id']}"
    return {"resourceType": "Bundle", "type": kind, "entry": entries}


def ids(pull: Pull) -> list[str]:
    return sorted(record.id for record in pull.records)


def as_lines(folder: Path, resources: list[Resource]) -> None:
    (folder / "all.ndjson").write_bytes(ndjson(resources))


def as_windows_lines(folder: Path, resources: list[Resource]) -> None:
    text = b"\xef\xbb\xbf" + ndjson(resources).replace(b"\n", b"\r\n\r\n")
    (folder / "all.jsonl").write_bytes(text.rstrip())


def as_members(folder: Path, resources: list[Resource]) -> None:
    half = len(resources) // 2
    (folder / "x.ndjson.gz").write_bytes(
        gzip.compress(ndjson(resources[:half])) + gzip.compress(ndjson(resources[half:]))
    )


def as_misnamed_gzip(folder: Path, resources: list[Resource]) -> None:
    (folder / "export.dat").write_bytes(gzip.compress(ndjson(resources)))


def as_single_files(folder: Path, resources: list[Resource]) -> None:
    for one in resources:
        deep = folder / one["resourceType"] / "deep"
        deep.mkdir(parents=True, exist_ok=True)
        (deep / f"{one['id']}.json").write_text(json.dumps(one, indent=2))


def as_pretty_bundle(folder: Path, resources: list[Resource]) -> None:
    (folder / "b.json").write_text(json.dumps(bundle(resources, BASE), indent=2))


def as_bundle_with_type_last(folder: Path, resources: list[Resource]) -> None:
    whole = bundle(resources)
    (folder / "b.json").write_text(json.dumps({"entry": whole["entry"], "type": "batch", "resourceType": "Bundle"}))


def as_bundle_lines(folder: Path, resources: list[Resource]) -> None:
    (folder / "b.ndjson").write_bytes(ndjson([bundle(resources[:4]), bundle(resources[4:])]))


def as_array(folder: Path, resources: list[Resource]) -> None:
    (folder / "a.json").write_text("[\n" + ",\n".join(json.dumps(one) for one in resources) + "\n]")


def as_nested_bundle(folder: Path, resources: list[Resource]) -> None:
    (folder / "b.json").write_text(json.dumps(bundle([bundle(resources)])))


def as_mix(folder: Path, resources: list[Resource]) -> None:
    as_single_files(folder, resources[:5])
    (folder / "rest.json").write_text(json.dumps(bundle(resources[4:9])))
    (folder / "n").mkdir()
    (folder / "n" / "1.ndjson").write_bytes(ndjson(resources[8:]))


FORMS = [
    as_lines,
    as_windows_lines,
    as_members,
    as_misnamed_gzip,
    as_single_files,
    as_pretty_bundle,
    as_bundle_with_type_last,
    as_bundle_lines,
    as_array,
    as_nested_bundle,
    as_mix,
]


@pytest.mark.parametrize("form", FORMS)
def test_the_form_makes_no_difference(tmp_path: Path, form: Callable[[Path, list[Resource]], None]) -> None:
    form(tmp_path, COHORT)
    pull = pull_of(tmp_path)
    assert ids(pull) == KEPT
    assert pull.broken == []
    expected = {one["id"]: json.dumps(one, separators=(",", ":")) for one in COHORT}
    assert {record.id: record.text for record in pull.records} == {one: expected[one] for one in KEPT}
    assert pull.type_counts["Medication"] == 3
    assert pull.type_counts["Organization"] == 1
    assert all(file.read for file in pull.files)


def test_the_account(tmp_path: Path) -> None:
    as_lines(tmp_path, COHORT)
    pull = pull_of(tmp_path)
    rows = {(row.patient, row.type): (row.state, row.count) for row in pull.ledger}
    assert len(rows) == 2 * len(READ_TYPES)
    assert rows["p1", "Medication"] == ("complete", 2)
    assert rows["p1", "Observation"] == ("complete", 1)
    assert rows["p2", "Observation"] == ("empty", 0)
    (file,) = pull.files
    assert (file.name, file.size) == ("all.ndjson", (tmp_path / "all.ndjson").stat().st_size)
    assert pull.records[0].origin.startswith("all.ndjson:")


def test_the_order_makes_no_difference(tmp_path: Path) -> None:
    resources = [*COHORT, *COHORT, {**COHORT[7], "status": "final"}, {**COHORT[7], "status": "amended"}]
    texts = set()
    for seed in range(5):
        folder = tmp_path / str(seed)
        folder.mkdir()
        random.Random(seed).shuffle(resources)
        as_lines(folder, resources)
        texts.add(tuple(record.text for record in pull_of(folder).records))
    assert len(texts) == 1


def test_one_file(tmp_path: Path) -> None:
    as_pretty_bundle(tmp_path, COHORT)
    pull = pull_of(tmp_path / "b.json")
    assert ids(pull) == KEPT
    assert {record.base for record in pull.records} == {BASE}
    assert pull.records[0].origin.startswith("b.json#")


def test_numbers_and_strange_line_ends_stay(tmp_path: Path) -> None:
    strange = '{"resourceType":"Observation","id":"o9","subject":{"reference":"Patient/p1"},"valueQuantity":{"value":0.010},"note":[{"text":"a\u2028b\u0085c"}]}'
    (tmp_path / "x.ndjson").write_bytes(ndjson(COHORT) + strange.encode())
    (record,) = (record for record in pull_of(tmp_path).records if record.id == "o9")
    assert record.text == strange


BAD = {
    "nan": ('{"resourceType":"Observation","id":"x","v":NaN}', "NaN"),
    "infinity": ('{"resourceType":"Observation","id":"x","v":-Infinity}', "NaN"),
    "range": ('{"resourceType":"Observation","id":"x","v":1e999}', "out of range"),
    "twice": ('{"resourceType":"Observation","id":"a","id":"b"}', "twice"),
    "digits": ('{"resourceType":"Observation","id":"x","v":' + "1" * 5000 + "}", "digits"),
    "surrogate": ('{"resourceType":"Observation","id":"x","v":"\\ud800"}', "surrogate"),
    "deep": ('{"resourceType":"Observation","id":"x","v":' + "[" * 100_000 + "]" * 100_000 + "}", "deep"),
    "deepish": ('{"resourceType":"Observation","id":"x","v":' + "[" * 300 + "]" * 300 + "}", "deep"),
    "cut": ('{"resourceType":"Observation","id":"x"', "too early"),
    "text": ("Observation", "not valid JSON"),
    "type": ('{"id":"x"}', "no resourceType"),
    "scalar": ("17", "no JSON object"),
    "id": ('{"resourceType":"Observation","id":17}', "id is no text"),
    "utf8": (b'{"resourceType":"Observation","id":"x","v":"\xff"}', "UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_line_is_set_aside_with_its_place(tmp_path: Path, name: str) -> None:
    raw, reason = BAD[name]
    line = raw if isinstance(raw, bytes) else raw.encode()
    (tmp_path / "x.ndjson").write_bytes(ndjson(COHORT[:3]) + line + b"\n" + ndjson(COHORT[3:]))
    pull = pull_of(tmp_path)
    assert ids(pull) == KEPT
    (broken,) = pull.broken
    assert (broken.file, broken.place, broken.matters) == ("x.ndjson", "line 4", True)
    assert reason in broken.reason
    broken.text.encode()


@pytest.mark.parametrize("name", [name for name in BAD if name not in ("cut", "text", "scalar", "deep")])
def test_a_broken_entry_does_not_take_its_bundle_along(tmp_path: Path, name: str) -> None:
    raw, reason = BAD[name]
    line = raw if isinstance(raw, bytes) else raw.encode()
    text = json.dumps(bundle([*COHORT, patient("MARK")])).encode()
    (tmp_path / "b.json").write_bytes(text.replace(json.dumps(patient("MARK")).encode(), line))
    pull = pull_of(tmp_path)
    assert ids(pull) == KEPT
    (broken,) = pull.broken
    assert broken.place.endswith(f"entry {len(COHORT) + 1}")
    assert reason in broken.reason


def test_a_member_named_twice_around_the_resources_is_seen(tmp_path: Path) -> None:
    as_lines(tmp_path, COHORT)
    text = json.dumps(bundle([condition("c9", "Patient/other")]))
    (tmp_path / "b.json").write_text(
        text.replace('"resource": {', '"resource": {"resourceType": "Patient"}, "resource": {')
    )
    pull = pull_of(tmp_path)
    assert [broken.file for broken in pull.broken] == ["b.json"]
    assert "twice" in pull.broken[0].reason


def test_what_is_broken_in_types_not_read_does_not_matter(tmp_path: Path) -> None:
    as_lines(tmp_path, COHORT)
    (tmp_path / "Claim.ndjson").write_text(
        '{"resourceType":"Claim","id":"a"}\n{"resourceType":"Claim","id":\n{"id":"b"}\n'
    )
    assert [broken.matters for broken in pull_of(tmp_path).broken] == [False, False]
    (tmp_path / "mixed.ndjson").write_text(
        '{"resourceType":"Patient","id":"a"}\n{"resourceType":"Claim","id":\n{"id":"b"}\n'
    )
    assert [broken.matters for broken in pull_of(tmp_path).broken][2:] == [False, True]


def test_ndjson_that_begins_broken(tmp_path: Path) -> None:
    (tmp_path / "x.ndjson").write_bytes(b'{"resourceType":"Pat\n' + ndjson(COHORT))
    (tmp_path / "y.json").write_bytes(b'{"resourceType":"Pat\n' + ndjson(COHORT))
    pull = pull_of(tmp_path)
    assert ids(pull) == KEPT
    assert [(broken.file, broken.place) for broken in pull.broken] == [("x.ndjson", "line 1"), ("y.json", "line 1")]


def test_an_error_page_in_the_place_of_data_is_seen(tmp_path: Path) -> None:
    as_lines(tmp_path, COHORT)
    (tmp_path / "Observation.ndjson").write_text("<html>\n<body>\n")
    assert len(pull_of(tmp_path).broken) == 2
    (tmp_path / "wide.json").write_bytes(json.dumps(COHORT[0]).encode("utf-16"))
    assert "UTF-16" in pull_of(tmp_path).broken[-1].reason


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("readme.txt", "Exported by the hospital".encode("utf-16")),
        ("list.csv", "a;b".encode("utf-16")),
        ("index.html", b"<html><a href='http://hl7.org/fhir'>FHIR</a></html>"),
    ],
    ids=["UTF-16 text", "UTF-16 table", "a page about FHIR"],
)
def test_a_file_beside_the_data_is_no_fault_of_theirs(tmp_path: Path, name: str, data: bytes) -> None:
    as_lines(tmp_path, COHORT)
    (tmp_path / name).write_bytes(data)
    pull = pull_of(tmp_path)
    assert ids(pull) == KEPT
    assert pull.broken == []


def test_utf_16_without_a_telling_name_is_seen(tmp_path: Path) -> None:
    as_lines(tmp_path, COHORT)
    (tmp_path / "Condition").write_bytes(json.dumps(condition("c9", "Patient/p1")).encode("utf-16"))
    assert [broken.file for broken in pull_of(tmp_path).broken] == ["Condition"]


@pytest.mark.parametrize("form", ["deep Bundles", "Parameters", "Parameters with a Bundle"])
def test_records_where_none_are_looked_for_are_not_lost_in_silence(tmp_path: Path, form: str) -> None:
    as_lines(tmp_path, COHORT)
    held: Resource = condition("c9", "Patient/other")
    for _ in range({"deep Bundles": 6, "Parameters": 0}.get(form, 1)):
        held = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": held}]}
    if form.startswith("Parameters"):
        held = {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": held}]}
    (tmp_path / "held.json").write_text(json.dumps(held))
    settings = {"resourceType": "Parameters", "parameter": [{"name": "_type", "valueString": "Patient"}]}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    assert [(broken.file, broken.matters) for broken in pull_of(tmp_path).broken] == [("held.json", True)]


def test_a_search_without_its_next_page_is_told_of(tmp_path: Path) -> None:
    def page(number: int, *, last: bool) -> Resource:
        links = [{"relation": "self", "url": f"{BASE}?page={number}"}]
        links += [] if last else [{"relation": "next", "url": f"{BASE}?page={number + 1}"}]
        return {**bundle(COHORT[number::2], BASE), "type": "searchset", "link": links}

    (tmp_path / "0.json").write_text(json.dumps(page(0, last=False)))
    (tmp_path / "1.json").write_text(json.dumps(page(1, last=True)))
    assert not any("next page" in warning for warning in pull_of(tmp_path).warnings)
    (tmp_path / "1.json").write_text(json.dumps(page(1, last=False)))
    assert any("next page of 1 searches" in warning for warning in pull_of(tmp_path).warnings)


@pytest.mark.parametrize(("severity", "told"), [("fatal", True), ("error", True), ("warning", False)])
def test_errors_that_an_export_tells_of_are_told_on(tmp_path: Path, severity: str, *, told: bool) -> None:
    outcome = {"resourceType": "OperationOutcome", "issue": [{"severity": severity, "code": "exception"}]}
    as_lines(tmp_path, [*COHORT, outcome])
    pull = pull_of(tmp_path)
    assert ids(pull) == KEPT
    assert ("1 OperationOutcomes in the source tell of errors; it may be incomplete" in pull.warnings) is told


def test_other_files_are_listed_and_not_read(tmp_path: Path) -> None:
    as_lines(tmp_path, COHORT)
    (tmp_path / "README.md").write_text("[a link](x)")
    (tmp_path / "data.csv").write_text("a,b")
    (tmp_path / ".hidden.ndjson").write_text("{")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "x.json").write_text("{")
    export = {"transactionTime": "2026", "request": f"{BASE}/Group/g/$export?_type=Patient", "output": [], "error": []}
    (tmp_path / "manifest.json").write_text(json.dumps(export))
    pull = pull_of(tmp_path)
    assert {file.name: file.read for file in pull.files} == {
        "README.md": False,
        "all.ndjson": True,
        "data.csv": False,
        "manifest.json": False,
    }
    assert pull.broken == []
    assert {record.base for record in pull.records} == {BASE}


def test_links_out_of_the_source_are_not_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    as_lines(inside, COHORT)
    (outside / "x.ndjson").write_bytes(ndjson([condition("c9", "Patient/other")]))
    (inside / "folder").symlink_to(outside)
    (inside / "file.ndjson").symlink_to(outside / "x.ndjson")
    pull = pull_of(inside)
    assert ids(pull) == KEPT
    assert any("2 symbolic links" in warning for warning in pull.warnings)


def test_foreign_bases_are_kept_apart(tmp_path: Path) -> None:
    here = [patient("1", gender="male"), condition("c", "Patient/1"), about("Observation", "o", "Patient/1")]
    there = [patient("1", gender="female"), about("Observation", "o", "Patient/1")]
    (tmp_path / "a.json").write_text(json.dumps(bundle(here, BASE)))
    (tmp_path / "b.json").write_text(json.dumps(bundle(there, "https://b.example/fhir")))
    pull = pull_of(tmp_path)
    assert [(record.type, record.base) for record in pull.records] == [
        ("Condition", BASE),
        ("Observation", BASE),
        ("Patient", BASE),
    ]
    (tmp_path / "c.json").write_text(
        json.dumps(bundle([condition("d", f"{BASE}/Patient/1")], "https://b.example/fhir"))
    )
    assert ("d", "https://b.example/fhir") in {(record.id, record.base) for record in pull_of(tmp_path).records}
    (tmp_path / "e.json").write_text(json.dumps(bundle([condition("e", "Patient/1")], "https://b.example/fhir")))
    assert len([record for record in pull_of(tmp_path).records if record.id == "1"]) == 2


def test_the_one_base_of_all_references_is_the_own(tmp_path: Path) -> None:
    resources = [patient("1"), condition("c", f"{BASE}/Patient/1"), about("Observation", "o", f"{BASE}/Patient/1")]
    as_lines(tmp_path, resources)
    pull = pull_of(tmp_path)
    assert ids(pull) == ["1", "c", "o"]
    assert pull.base == BASE
    assert any(BASE in warning for warning in pull.warnings)


def test_a_foreign_reference_among_own_ones_is_not_joined(tmp_path: Path) -> None:
    as_lines(
        tmp_path,
        [patient("1"), patient("2"), condition("c", f"{BASE}/Patient/1"), about("Observation", "o", "Patient/2")],
    )
    pull = pull_of(tmp_path)
    assert ids(pull) == ["c"]
    assert any("1 kept resources refer to a patient" in warning for warning in pull.warnings)


def test_entries_without_id(tmp_path: Path) -> None:
    urn = "urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6e0"
    entries = [
        {"fullUrl": urn, "resource": {"resourceType": "Patient"}},
        {"resource": {"resourceType": "Condition", "code": {"text": "CRMO"}, "subject": {"reference": urn}}},
    ]
    (tmp_path / "b.json").write_text(json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries}))
    found, person = pull_of(tmp_path).records
    assert (person.id, person.id_assigned, person.full_url) == (urn.removeprefix("urn:uuid:"), True, urn)
    assert json.loads(person.text)["id"] == person.id
    assert found.id.startswith("sha-")
    assert len(found.id) == 20


def test_one_urn_for_two_resources_is_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        entry = {"fullUrl": "urn:uuid:patient", "resource": {"resourceType": "Patient", "birthDate": f"200{number}"}}
        text = json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": [entry]})
        (tmp_path / f"{number}.json").write_text(text)
    with pytest.raises(IncompleteError, match="fullUrl of another"):
        pull_of(tmp_path)


def test_the_same_urn_in_two_bundles_with_ids_means_the_own_entry(tmp_path: Path) -> None:
    for number in ("1", "2"):
        entries = [
            {"fullUrl": "urn:uuid:x", "resource": patient(f"p{number}")},
            {"resource": condition(f"c{number}", "urn:uuid:x", code="M86.3" if number == "1" else "J45")},
        ]
        text = json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}, indent=1)
        (tmp_path / f"{number}.json").write_text(text)
    assert ids(pull_of(tmp_path)) == ["c1", "p1"]


def identified(identity: str, value: str, **more: Any) -> Resource:
    return patient(identity, identifier=[{"system": "urn:mrn", "value": value, **more.pop("identifier", {})}], **more)


@pytest.mark.parametrize(
    ("others", "kept"),
    [
        ([identified("p2", "7")], True),
        ([identified("p2", "7", birthDate="2001")], True),
        ([identified("p2", "7", birthDate="2001-03-05")], False),
        ([identified("p2", "7", gender="male")], False),
        ([identified("p2", "7", gender="unknown")], True),
        ([identified("p2", "7", identifier={"use": "old"})], False),
        ([identified("p2", "8")], False),
        ([patient("p2", link=[{"type": "replaced-by", "other": {"reference": "Patient/p1"}}])], True),
        ([patient("p2", link=[{"type": "replaces", "other": {"reference": f"{BASE}/Patient/p1"}}])], False),
        ([patient("p2", link=[{"type": "seealso", "other": {"reference": "Patient/p1"}}])], False),
    ],
)
def test_other_records_of_the_same_person(tmp_path: Path, others: list[Resource], kept: bool) -> None:
    first = identified("p1", "7", birthDate="2001-03-04", gender="female")
    as_lines(tmp_path, [about("Observation", "o2", "Patient/p2"), *others, first, condition("c", "Patient/p1")])
    assert ("o2" in ids(pull_of(tmp_path))) is kept


def test_a_chain_of_merged_records_is_followed_to_its_end(tmp_path: Path) -> None:
    chain = [
        patient(f"p{n}", link=[{"type": "replaced-by", "other": {"reference": f"Patient/p{n + 1}"}}]) for n in range(5)
    ]
    as_lines(tmp_path, [*chain, patient("p5"), condition("c", "Patient/p3")])
    assert ids(pull_of(tmp_path)) == ["c", "p0", "p1", "p2", "p3", "p4", "p5"]


def test_an_identifier_for_a_reference(tmp_path: Path) -> None:
    reference = {"identifier": {"system": "urn:mrn", "value": "7"}}
    observation = {"resourceType": "Observation", "id": "o", "subject": reference}
    as_lines(tmp_path, [identified("p1", "7"), identified("p2", "8"), condition("c", reference), observation])
    assert ids(pull_of(tmp_path)) == ["c", "o", "p1"]


def test_the_newest_copy_counts(tmp_path: Path) -> None:
    def copy(version: str, when: str, **more: Any) -> Resource:
        return about("Observation", "o", "Patient/p1", meta={"versionId": version, "lastUpdated": when}, **more)

    newest = copy("3", "2020-01-01T12:00:00+00:00", status="amended")
    as_lines(tmp_path, [newest, copy("9", "2020-01-01T13:00:00+02:00", status="final"), *COHORT])
    (record,) = (record for record in pull_of(tmp_path).records if record.id == "o")
    assert json.loads(record.text) == newest
    moved = {**copy("4", "2021-01-01T00:00:00Z"), "subject": {"reference": "Patient/other"}}
    (tmp_path / "more.ndjson").write_bytes(ndjson([moved]))
    assert "o" not in ids(pull_of(tmp_path))


def test_what_was_deleted_is_gone(tmp_path: Path) -> None:
    as_lines(tmp_path, COHORT)
    entry = {"request": {"method": "DELETE", "url": "Observation/o1"}}
    (tmp_path / "deleted.ndjson").write_bytes(
        ndjson([{"resourceType": "Bundle", "type": "transaction", "entry": [entry]}])
    )
    assert ids(pull_of(tmp_path)) == [one for one in KEPT if one != "o1"]


@pytest.mark.parametrize(("updated", "there"), [("2024-06-01T00:00:00Z", True), ("2019-06-01T00:00:00Z", False)])
def test_what_was_made_again_after_a_deletion_stays(tmp_path: Path, updated: str, *, there: bool) -> None:
    made = about("Observation", "o9", "Patient/p1", meta={"lastUpdated": updated})
    as_lines(tmp_path, [*COHORT, made])
    entry = {"request": {"method": "DELETE", "url": "Observation/o9"}}
    deleted = {"resourceType": "Bundle", "type": "transaction", "meta": {"lastUpdated": "2020-04-27T02:56:00Z"}}
    (tmp_path / "deleted.ndjson").write_bytes(ndjson([{**deleted, "entry": [entry]}]))
    assert ("o9" in ids(pull_of(tmp_path))) is there


def test_somebody_elses_record_is_not_fetched_by_a_reference(tmp_path: Path) -> None:
    as_lines(
        tmp_path,
        [
            *COHORT,
            about("Encounter", "e9", "Patient/other"),
            about("Procedure", "x", "Patient/p1", encounter={"reference": "Encounter/e9"}),
        ],
    )
    pull = pull_of(tmp_path)
    assert "e9" not in ids(pull)
    assert any("1 Encounter" in warning for warning in pull.warnings)


@pytest.mark.parametrize(
    "code",
    [
        {"text": "Chronic recurrent multifocal osteomyelitis"},
        {"coding": [{"display": "CRMO"}]},
        {"coding": [{"system": "urn:oid:1.2.208.176.2.4.12", "code": "DM863+TUL1"}]},
        {"coding": [{"system": ICD10, "code": "J45"}, {"system": "http://snomed.info/sct", "code": "240151005"}]},
    ],
)
def test_what_makes_a_candidate(tmp_path: Path, code: Resource) -> None:
    as_lines(tmp_path, [patient("p1"), {**condition("c", "Patient/p1"), "code": code}])
    assert ids(pull_of(tmp_path)) == ["c", "p1"]


def test_without_candidates_nothing_is_kept(tmp_path: Path) -> None:
    as_lines(tmp_path, [patient("p1"), condition("c", "Patient/p1", code="J45")])
    pull = pull_of(tmp_path)
    assert (pull.records, pull.ledger) == ([], [])


def write(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


ZIPPED = gzip.compress(ndjson(COHORT * 20))


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.ndjson.gz", ZIPPED[:-20], "x.ndjson.gz"),
        ("x.ndjson.gz", ZIPPED[:200] + b"\0\0\0\0" + ZIPPED[204:], "x.ndjson.gz"),
        ("x.ndjson.gz", ZIPPED[:-6] + b"\1" + ZIPPED[-5:], "x.ndjson.gz"),
        ("p.xml", b'<?xml version="1.0"?><Patient xmlns="http://hl7.org/fhir"/>', "XML is not read"),
        ("x.txt", b"hello", "no FHIR resource"),
        ("x.ndjson", ndjson([patient("1")]), "no Condition"),
        ("x.ndjson", ndjson([condition("1", "Patient/1")]), "no Patient"),
        ("x.ndjson", ndjson([{"resourceType": "Organization"}]), "no Patient and no Condition"),
        ("x.ndjson", ndjson([*COHORT, {"resourceType": "MedicationOrder"}]), "DSTU2"),
        ("x.ndjson", ndjson([*COHORT, condition("9", "Patient/1", verificationStatus="confirmed")]), "line 15.*STU3"),
        ("x.ndjson", ndjson([*COHORT, condition("9", "Patient/1", assertedDate="2001")]), "STU3"),
        ("x.ndjson", ndjson([*COHORT, about("MedicationStatement", "9", "Patient/1", taken="y")]), "STU3"),
    ],
)
def test_sources_refused(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    write(tmp_path, name, data)
    with pytest.raises(IncompleteError, match=said):
        pull_of(tmp_path)


def test_a_file_that_comes_while_the_source_is_read_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_lines(tmp_path, COHORT)
    keep = files._keep

    def meanwhile(*arguments: Any) -> Any:
        (tmp_path / "late.ndjson").write_bytes(ndjson([patient("p9"), condition("c9", "Patient/p9")]))
        return keep(*arguments)

    monkeypatch.setattr(files, "_keep", meanwhile)
    with pytest.raises(IncompleteError, match="came or went"):
        pull_of(tmp_path)
    monkeypatch.undo()
    assert "c9" in ids(pull_of(tmp_path))


def test_a_file_that_goes_while_the_source_is_read_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_lines(tmp_path, COHORT)
    report = files._report

    def meanwhile(*arguments: Any) -> None:
        report(*arguments)
        (tmp_path / "all.ndjson").unlink()

    monkeypatch.setattr(files, "_report", meanwhile)
    with pytest.raises(IncompleteError, match="changed while it was read"):
        pull_of(tmp_path)


def test_a_file_that_goes_before_it_is_read_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_lines(tmp_path, COHORT)
    look_over = files.look_over

    def and_gone(*arguments: Any) -> pieces.Source:
        source = look_over(*arguments)
        (tmp_path / "all.ndjson").unlink()
        return source

    monkeypatch.setattr(files, "look_over", and_gone)
    with pytest.raises(IncompleteError, match="ndjson changed while it was read"):
        pull_of(tmp_path)


def test_a_source_of_links_alone(tmp_path: Path) -> None:
    (tmp_path / "Patient.ndjson").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IncompleteError, match="not followed"):
        pull_of(tmp_path)


def test_no_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        pull_of(tmp_path / "none")
    with pytest.raises(IncompleteError, match="empty"):
        pull_of(tmp_path)


def test_a_line_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MAX_DOCUMENT", 1000)
    as_lines(tmp_path, [*COHORT, patient("x", name=[{"text": "x" * 2000}])])
    with pytest.raises(IncompleteError, match="line 15"):
        pull_of(tmp_path)


def test_versions_are_recognised(tmp_path: Path) -> None:
    as_lines(tmp_path, COHORT)
    assert pull_of(tmp_path).fhir_versions == ["4.0"]
    r5 = about("MedicationStatement", "s", "Patient/p1", medication={"reference": {"reference": "Medication/m3"}})
    as_lines(tmp_path, [*COHORT[:9], *COHORT[10:], r5])
    pull = pull_of(tmp_path)
    assert pull.fhir_versions == ["5.0"]
    assert "m3" in ids(pull)


def test_nesting_bombs_are_set_aside(tmp_path: Path) -> None:
    as_lines(tmp_path, COHORT)
    (tmp_path / "a.json").write_text("[" * 100_000 + "]" * 100_000)
    start = '{"resourceType":"Bundle","type":"batch","entry":[{"resource":'
    (tmp_path / "b.json").write_text(start + '{"resourceType":"Patient","a":' * 100_000)
    pull = pull_of(tmp_path)
    assert ids(pull) == KEPT
    assert {broken.file for broken in pull.broken} == {"a.json", "b.json"}


def test_what_refers_to_nobody_is_counted(tmp_path: Path) -> None:
    more = [
        about("Observation", "o8", "Patient/gone"),
        {"resourceType": "Procedure", "id": "x"},
        about("Observation", "o7", "Group/g"),
    ]
    as_lines(tmp_path, [*COHORT, *more])
    warnings = pull_of(tmp_path).warnings
    assert [warning[:15] for warning in warnings] == ["1 Observation r", "1 Procedure res"]
