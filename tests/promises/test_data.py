"""Promises 40-52: faults of the data themselves, in files and from a server."""

import json
import random
import time

import pytest
from fake_server import FakeServer, Fault

from promises.records import (
    COHORT,
    about,
    assert_loud,
    attrition,
    counted,
    diagnosis,
    drug,
    effect,
    figures,
    files,
    lines,
    patient,
    quarantined,
    raw,
)

BAD_LINES = {
    "NaN": '{"resourceType":"Condition","id":"x","n":NaN}',
    "Infinity": '{"resourceType":"Condition","id":"x","n":-Infinity}',
    "1e999": '{"resourceType":"Condition","id":"x","n":1e999}',
    "a member twice": '{"resourceType":"Condition","id":"a","id":"b"}',
    "5,000 digits": '{"resourceType":"Condition","id":"x","n":' + "7" * 5000 + "}",
}


@pytest.fixture
def clean(crmo, tmp_path):
    """The figures of the cohort without any fault."""
    assert crmo("run", files(tmp_path / "clean-source", *COHORT), "-o", tmp_path / "clean").code == 0
    return figures(tmp_path / "clean")


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\u0085"], ids=["U+2028", "U+2029", "U+0085"])
@pytest.mark.parametrize("served", [False, True], ids=["file", "server"])
def test_promise_40_line_separators_stand_inside_a_line(crmo, tmp_path, sign, served):
    note = json.dumps(drug("m9", "p1", note=[{"text": f"one{sign}two"}]), ensure_ascii=False)
    study = tmp_path / "study"
    if served:
        with FakeServer([*COHORT, note]) as fake:
            assert crmo("run", fake.base, "-o", study).code == 0
    else:
        assert crmo("run", files(tmp_path / "s", *COHORT, note), "-o", study).code == 0
    kept = (study / "raw" / "MedicationStatement.ndjson").read_bytes().split(b"\n")
    assert len(kept) == 4
    assert any(f"one{sign}two".encode() in line for line in kept)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b"\n", b"\n\n \n"),
        lambda data: data.rstrip(b"\n"),
    ],
    ids=["BOM", "CRLF", "blank lines", "no last newline"],
)
def test_promise_41_marks_and_line_ends_change_nothing(crmo, tmp_path, clean, change):
    source = tmp_path / "s"
    source.mkdir()
    (source / "all.ndjson").write_bytes(change(lines(*COHORT)))
    (source / "empty.ndjson").write_bytes(b"")
    assert crmo("run", source, "-o", tmp_path / "study").code == 0
    assert figures(tmp_path / "study") == clean


@pytest.mark.parametrize(
    "bad",
    [b'{"resourceType":"Condition","id":"\xff"}', rb'{"resourceType":"Condition","id":"x","n":"\ud800"}'],
    ids=["invalid UTF-8", "half a character"],
)
def test_promise_41_what_is_no_text_is_quarantined_and_loud(crmo, tmp_path, bad):
    study = tmp_path / "study"
    ran = crmo("run", files(tmp_path / "s", *COHORT, bad__ndjson=bad + b"\n"), "-o", study)
    assert_loud(ran, study, 3, "bad.ndjson:1")
    assert [(row["file"], row["place"]) for row in quarantined(study)] == [("bad.ndjson", "line 1")]


def test_promise_42_a_wrong_charset_does_not_spoil_names(crmo, tmp_path):
    named = patient("p1", name=[{"family": "Sørensen-Łukasiewicz"}])
    with FakeServer([named, *COHORT[1:]]) as fake:
        fake.faults.append(Fault("charset", times=99))
        assert crmo("run", fake.base, "-o", tmp_path / "study").code == 0
    assert "Sørensen-Łukasiewicz" in (tmp_path / "study" / "raw" / "Patient.ndjson").read_text(encoding="utf-8")


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES)
def test_promise_43_numbers_and_members_that_are_no_json_are_quarantined(crmo, tmp_path, bad):
    study = tmp_path / "study"
    ran = crmo("run", files(tmp_path / "s", *COHORT, bad__ndjson=b"\n" + bad.encode() + b"\n"), "-o", study)
    assert_loud(ran, study, 3, "bad.ndjson:2")
    assert [row["place"] for row in quarantined(study)] == ["line 2"]


@pytest.mark.parametrize("number", ["1.10", "0.010", "1234567890.123456789"])
@pytest.mark.parametrize("served", [False, True], ids=["file", "server"])
def test_promise_44_decimals_keep_their_text(crmo, tmp_path, number, served):
    lab = (
        '{"resourceType":"Observation","id":"o9","status":"final","subject":{"reference":"Patient/p1"},'
        f'"code":{{"coding":[{{"system":"http://loinc.org","code":"1988-5"}}]}},"valueQuantity":{{"value":{number}}}}}'
    )
    study = tmp_path / "study"
    if served:
        with FakeServer([*COHORT, lab]) as fake:
            assert crmo("run", fake.base, "-o", study).code == 0
    else:
        assert crmo("run", files(tmp_path / "s", *COHORT, lab), "-o", study).code == 0
    assert f'"value":{number}}}' in (study / "raw" / "Observation.ndjson").read_text()


def test_promise_45_a_malformed_deciding_record_is_loud_and_kept_apart(crmo, tmp_path):
    study = tmp_path / "study"
    broken = '{"resourceType":"Condition","id":"c9","subject":"p1"}'
    ran = crmo("run", files(tmp_path / "s", *COHORT, bad__ndjson=broken.encode()), "-o", study)
    assert_loud(ran, study, 3, "bad.ndjson:1")
    (row,) = quarantined(study)
    assert (row["file"], row["place"], row["text"]) == ("bad.ndjson", "line 1", broken)
    assert row["reason"]


def test_promise_45_a_malformed_record_of_another_type_does_not_stop_the_run(crmo, tmp_path, clean):
    study = tmp_path / "study"
    bad = b'{"resourceType":"Claim","id":"x"}\n{"resourceType":"Claim","id":\n'
    assert crmo("run", files(tmp_path / "s", *COHORT, claims__ndjson=bad), "-o", study).code == 0
    assert [row["place"] for row in quarantined(study)] == ["line 2"]
    assert figures(study) == clean


BASE = "https://fhir.example.org/r4"


@pytest.mark.parametrize(
    "reference",
    [
        {"reference": "Patient/p1"},
        {"reference": f"{BASE}/Patient/p1"},
        {"reference": "Patient/p1/_history/3"},
        {"reference": "urn:uuid:2b2c2f6e-0000-4000-8000-000000000001"},
        {"identifier": {"system": "urn:mrn", "value": "7"}},
    ],
    ids=["relative", "absolute", "version", "urn", "identifier"],
)
def test_promise_46_every_form_of_a_reference_is_resolved(crmo, tmp_path, reference):
    one = patient("p1", identifier=[{"system": "urn:mrn", "value": "7"}])
    urls = [f"{BASE}/{r['resourceType']}/{r['id']}" for r in COHORT]
    if "urn" in reference.get("reference", ""):
        urls[0] = reference["reference"]
    entries = [
        {"fullUrl": url, "resource": resource}
        for url, resource in zip(urls, (one, *COHORT[1:]), strict=True)
        if resource["id"] in ("p1", "c1", "m1")
    ]
    for entry in entries[1:]:
        entry["resource"] = {**entry["resource"], "subject": reference}
    source = tmp_path / "s"
    source.mkdir()
    (source / "b.json").write_text(json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}))
    assert crmo("run", source, "-o", tmp_path / "study").code == 0
    assert counted(tmp_path / "study", "tnfi-clinical-treated") == ("1", "1")


def test_promise_46_a_foreign_patient_of_the_same_id_is_not_joined(crmo, tmp_path):
    elsewhere = drug("m9", "p2") | {"subject": {"reference": "https://elsewhere.example/fhir/Patient/p2"}}
    records = (*COHORT[:4], elsewhere)
    ran = crmo("run", files(tmp_path / "s", *records), "-o", tmp_path / "study")
    assert ran.code == 0
    assert counted(tmp_path / "study", "tnfi-clinical-treated") == ("0", "0")
    assert "1 MedicationStatement" in ran.err  # counted, and said


@pytest.mark.parametrize(
    "twin",
    [
        patient("p1b", link=[{"type": "replaced-by", "other": {"reference": "Patient/p1"}}]),
        patient("p1b", identifier=[{"system": "urn:mrn", "value": "7"}]),
    ],
    ids=["replaced-by", "same identifier"],
)
@pytest.mark.parametrize("served", [False, True], ids=["file", "server"])
def test_promise_47_one_person_counts_once(crmo, tmp_path, twin, served):
    one = patient("p1", identifier=[{"system": "urn:mrn", "value": "7"}])
    records = (one, *COHORT[1:], twin, diagnosis("c1b", "p1b"))
    study = tmp_path / "study"
    if served:
        with FakeServer(records) as fake:
            assert crmo("run", fake.base, "-o", study).code == 0
    else:
        assert crmo("run", files(tmp_path / "s", *records), "-o", study).code == 0
    assert counted(study, "cohort")[1] == "2"
    assert {"p1", "p1b"} <= {json.loads(line)["id"] for line in raw(study)["Patient.ndjson"].splitlines()}


def test_promise_47_an_identifier_of_a_merged_person_names_that_person(crmo, tmp_path):
    number = {"system": "urn:mrn", "value": "7"}
    one = patient("p1", identifier=[{**number, "value": " 7 "}])
    twin = patient("p1b", identifier=[number], link=[{"type": "replaced-by", "other": {"reference": "Patient/p1"}}])
    named = [
        {**record, "subject": {"identifier": number}}
        for record in (diagnosis("c1", "p1"), drug("m1", "p1"), effect("o1", "p1", "m1"))
    ]
    study = tmp_path / "study"
    assert crmo("run", files(tmp_path / "s", one, twin, *named), "-o", study).code == 0
    assert counted(study, "cohort")[1] == "1"
    assert counted(study, "tnfi-clinical") == ("1", "1")


@pytest.mark.parametrize(
    ("change", "cohort", "treated"),
    [
        ({"c1": {"verificationStatus": {"coding": [{"code": "refuted"}]}}}, "1", "1"),
        ({"c1": {"verificationStatus": {"coding": [{"code": "entered-in-error"}]}}}, "1", "1"),
        ({"m1": {"status": "entered-in-error"}}, "2", "1"),
        ({"m1": {"status": "not-taken"}}, "2", "1"),
    ],
    ids=["refuted", "Condition in error", "statement in error", "not taken"],
)
def test_promise_48_what_did_not_happen_is_out_and_counted(crmo, tmp_path, change, cohort, treated):
    system = "http://terminology.hl7.org/CodeSystem/condition-ver-status"
    for more in change.values():
        for coding in more.get("verificationStatus", {}).get("coding", ()):
            coding["system"] = system
    records = [{**r, **change.get(r["id"], {})} for r in COHORT]
    study = tmp_path / "study"
    assert crmo("run", files(tmp_path / "s", *records), "-o", study).code == 0
    assert counted(study, "cohort")[1] == cohort
    assert counted(study, "tnfi-clinical-treated")[1] == treated
    (changed,) = change
    reason = "entered in error" if "error" in str(change) else "refuted" if changed == "c1" else "not taken"
    dropped = [row for row in attrition(study).splitlines() if reason in row.replace("-", " ")]
    assert dropped, attrition(study)


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Etc/GMT+12"])
def test_promise_49_dates_do_not_follow_the_clock_of_the_machine(crmo, tmp_path, clean, zone, monkeypatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert crmo("run", files(tmp_path / "s", *COHORT), "-o", tmp_path / "study").code == 0
    finally:
        monkeypatch.undo()
        time.tzset()
    assert figures(tmp_path / "study") == clean


@pytest.mark.parametrize("start", ["2005", "2005-02", "0001-01-01", "2999-01-01", None])
def test_promise_49_a_partial_or_absurd_date_invents_no_first_of_january(crmo, tmp_path, start):
    period = {"start": start} if start else {}
    records = (*COHORT[:4], drug("m1", "p1", effectivePeriod=period))
    study = tmp_path / "study"
    assert crmo("run", files(tmp_path / "s", *records), "-o", study).code == 0
    import pandas as pd

    courses = pd.read_parquet(study / "cohort" / "courses.parquet")
    starts = {str(value) for name in courses.columns if "start" in name for value in courses[name]}
    assert start == "0001-01-01" or not any(value.startswith(f"{start}-01-01") for value in starts if start != "2005")


def test_promise_50_order_does_not_matter(crmo, tmp_path, clean):
    shuffled = [json.loads(json.dumps(r)) for r in COHORT]
    random.Random(7).shuffle(shuffled)
    turned = [dict(reversed(list(r.items()))) for r in shuffled]
    assert crmo("run", files(tmp_path / "s", *turned), "-o", tmp_path / "study").code == 0
    assert figures(tmp_path / "study") == clean


def test_promise_50_the_size_of_pages_does_not_matter(crmo, tmp_path, clean):
    for size in (1, 2, 50):
        with FakeServer(COHORT, page_size=size) as fake:
            assert crmo("run", fake.base, "-o", tmp_path / f"study{size}").code == 0
        assert figures(tmp_path / f"study{size}") == clean


def test_promise_51_a_file_twice_changes_nothing(crmo, tmp_path, clean):
    source = files(tmp_path / "s", *COHORT, again__ndjson=lines(*COHORT))
    assert crmo("run", source, "-o", tmp_path / "study").code == 0
    assert figures(tmp_path / "study") == clean


def test_promise_52_units_that_do_not_fit_are_not_mixed_in(crmo, tmp_path):
    def crp(identity, value, **unit):
        code = {"coding": [{"system": "http://loinc.org", "code": "1988-5"}]}
        quantity = {"value": value, **unit}
        return about(
            "Observation",
            identity,
            "p1",
            status="final",
            code=code,
            effectiveDateTime="2005-03-01",
            valueQuantity=quantity,
        )

    ucum = {"system": "http://unitsofmeasure.org"}
    records = (
        *COHORT,
        crp("l1", 12, code="mg/L", **ucum),
        crp("l2", 1.2, code="mg/dL", **ucum),
        crp("l3", 7, code="mm", **ucum),
        crp("l4", 9, unit="flasks"),
    )
    study = tmp_path / "study"
    assert crmo("run", files(tmp_path / "s", *records), "-o", study).code == 0
    import pandas as pd

    labs = pd.read_parquet(study / "cohort" / "labs.parquet")
    values = dict(zip(labs["lab"].astype(str), labs["value"], strict=True))
    assert [v for s, v in values.items() if "l1" in s or "l2" in s] == [12.0, 12.0]
    assert not any(v in (7.0, 9.0) for v in values.values())
    assert "unit" in attrition(study) + (study / "cohort" / "unmapped.csv").read_text()


def test_the_small_cohort_is_one(clean, tmp_path):
    assert counted(tmp_path / "clean", "tnfi-clinical") == ("1", "1")
    assert effect("o1", "p1", "m1") in COHORT
    assert (tmp_path / "clean" / "results.csv").exists()
