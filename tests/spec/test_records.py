"""How the records tell of the edge cases that begin before the facts: codes, statuses, dates, references, words."""

from zoneinfo import ZoneInfo

import pandas as pd
import pytest
from promises.records import about, diagnosis, drug, effect, files, patient
from story import expect, rows_of

from crmo_fhir import pipeline
from crmo_fhir.fhir.dates import parse_date
from crmo_fhir.model.parameters import Parameters

ATC = "http://www.whocc.no/atc"
SKS = "urn:oid:1.2.208.176.2.4"
CRMO = (patient("p1"), diagnosis("c1", "p1"))
SEEN = about(
    "Encounter",
    "e1",
    "p1",
    **{"status": "finished", "class": {"code": "AMB"}, "period": {"start": "2013-01-01", "end": "2013-01-01"}},
)


def coded(code: str, text: str | None = None, system: str = ATC) -> dict:
    return {"coding": [{"system": system, "code": code}], **({"text": text} if text else {})}


def tables(tmp_path, *records, parameters: Parameters | None = None) -> dict[str, pd.DataFrame]:
    """The cohort of these records, with `unmapped` and `attrition` beside its tables."""
    study = tmp_path / "study"
    pipeline.extract(str(files(tmp_path / "records", *records)), study, parameters or Parameters())
    found = {path.stem: pd.read_parquet(path) for path in (study / "cohort").glob("*.parquet")}
    found = {name: frame.astype(object).where(frame.notna(), None) for name, frame in found.items()}
    for frame in found.values():
        for name in frame.columns:
            frame[name] = [list(v) if hasattr(v, "tolist") and not isinstance(v, str) else v for v in frame[name]]
    for name in ("unmapped", "attrition"):
        found[name] = pd.read_csv(study / "cohort" / f"{name}.csv", keep_default_na=False)
    return found


def dosed(amount: float, unit: str, period: int) -> list[dict]:
    return [
        {
            "timing": {"repeat": {"frequency": 1, "period": period, "periodUnit": "wk"}},
            "doseAndRate": [{"doseQuantity": {"value": amount, "unit": unit}}],
        }
    ]


def test_e07_another_dose_or_interval_is_the_same_course_with_its_history(tmp_path):
    def record(number, start, end, dosage):
        return drug(
            number, "p1", effectivePeriod={"start": start, "end": end}, dosage=dosage, medicationCodeableConcept=coded("L04AX03")
        )  # fmt: skip

    found = tables(
        tmp_path,
        *CRMO,
        record("m1", "2005-02-01", "2005-06-01", dosed(10, "mg", 1)),
        record("m2", "2005-06-01", "2005-09-01", dosed(15, "mg", 1)),
        record("m3", "2005-09-01", "2005-12-01", dosed(15, "mg", 1)),
        record("m4", "2005-12-01", "2006-03-01", dosed(15, "mg", 2)),
        record("m5", "2006-03-01", "2006-06-01", [{"text": "20 mg  ugentlig"}]),
    )
    expect(
        found["courses"],
        """
        start      | end        | course_no | doses
        2005-02-01 | 2006-06-01 | 1         | 2005-02-01: 10 mg 1 x / 1 wk, 2005-06-01: 15 mg 1 x / 1 wk, 2005-12-01: 15 mg 1 x / 2 wk, 2006-03-01: 20 mg ugentlig
        """,
    )


def test_e08_a_biosimilar_is_the_same_agent_and_a_non_medical_switch(tmp_path):
    inside = {"resourceType": "Medication", "id": "x", "code": coded("L04AB02", "Inflectra 100 mg")}
    found = tables(
        tmp_path,
        *CRMO,
        drug("m1", "p1", medicationCodeableConcept=coded("L04AB02", "Remicade pulver")),
        drug(
            "m2",
            "p1",
            effectivePeriod={"start": "2006-02-10", "end": "2007-01-01"},
            medicationCodeableConcept=None,
            medicationReference={"reference": "#x"},
            contained=[inside],
        ),
    )
    expect(
        found["courses"],
        """
        agent      | course_no | line_no | products            | flags
        infliximab | 1         | 1       | Remicade, Inflectra | indication not recorded, non-medical switch
        """,
    )


def test_e08_one_product_is_no_switch(tmp_path):
    found = tables(tmp_path, *CRMO, drug("m1", "p1", medicationCodeableConcept=coded("L04AB04", "Humira")))
    expect(found["courses"], "products | flags\nHumira | indication not recorded")


def test_e09_another_route_is_the_same_course(tmp_path):
    def route(code):
        return [{"route": {"coding": [{"system": "http://snomed.info/sct", "code": code}]}}]

    mtx = coded("L04AX03")
    found = tables(
        tmp_path,
        *CRMO,
        drug("m1", "p1", medicationCodeableConcept=mtx, dosage=route("26643006")),
        drug("m2", "p1", medicationCodeableConcept=mtx, dosage=route("34206005"), effectivePeriod={"start": "2006-02-01", "end": "2006-08-01"}),
    )  # fmt: skip
    expect(found["courses"], "course_no | start | end\n1 | 2005-02-01 | 2006-08-01")


@pytest.mark.parametrize(
    ("status", "courses"), [("completed", 1), ("in-progress", 1), ("not-done", 0), ("on-hold", 0), ("stopped", 0)]
)
def test_e10_e12_only_infusions_that_were_given_make_a_course(tmp_path, status, courses):
    infusion = about(
        "MedicationAdministration",
        "a1",
        "p1",
        status=status,
        medicationCodeableConcept=coded("L04AB02"),
        effectiveDateTime="2005-02-01",
    )
    found = tables(tmp_path, *CRMO, SEEN, infusion)
    assert len(found["courses"]) == courses
    if courses:
        expect(found["courses"], "start | end | exposure_days | rung\n2005-02-01 | 2005-03-29 | 56 | administration")
    else:
        assert f"status {status}" in found["attrition"]["reason"].tolist()


R5 = "http://hl7.org/fhir/CodeSystem/medication-statement-adherence"


@pytest.mark.parametrize(
    ("adherence", "spans"),
    [
        (None, ["2005-02-01 2006-02-01"]),
        ("taking", ["2005-02-01 2006-02-01"]),
        ("taking-not-as-directed", ["2005-02-01 2006-02-01"]),
        ("stopped", ["2005-02-01 2006-02-01"]),
        ("stopped-not-as-directed", ["2005-02-01 2006-02-01"]),
        ("unknown", ["2005-02-01 2006-02-01"]),
        ("not-taking", []),
    ],
)
def test_e14_recorded_in_r5_is_taken_unless_the_adherence_says_not(tmp_path, adherence, spans):
    more = {"adherence": {"code": {"coding": [{"system": R5, "code": adherence}]}}} if adherence else {}
    statement = drug("m1", "p1", status="recorded", **more)
    statement["medication"] = {"concept": statement.pop("medicationCodeableConcept")}
    courses = tables(tmp_path, *CRMO, statement)["courses"]
    assert [f"{c.start} {c.end}" for c in courses.itertuples()] == spans


def test_e13_e14_on_hold_in_r5_is_a_break(tmp_path):
    hold = drug(
        "m2",
        "p1",
        status="recorded",
        adherence={"code": {"coding": [{"system": R5, "code": "on-hold"}]}},
        effectivePeriod={"start": "2005-05-01", "end": "2005-09-01"},
    )
    records = [drug("m1", "p1", status="recorded"), hold]
    for record in records:
        record["medication"] = {"concept": record.pop("medicationCodeableConcept")}
    expect(
        tables(tmp_path, *CRMO, *records)["courses"],
        "start | end\n2005-02-01 | 2005-05-01\n2005-09-01 | 2006-02-01",
    )


@pytest.mark.parametrize(
    ("reason", "stop_reason", "rest"),
    [
        ([{"text": "Stoppet pga. bivirkninger"}], "adverse_event", []),
        ([{"text": "Overflyttet til voksenafdelingen; overgang til voksen"}], "other", []),
        ([coded("105480006", system="http://snomed.info/sct"), {"text": "manglende effekt"}], "patient_choice", ["inefficacy"]),
        ([coded("266721009", system="http://snomed.info/sct"), {"text": "bivirkninger"}], "both", []),
    ],
    ids=["words", "transfer to adult care", "the first stands", "both"],
)  # fmt: skip
def test_e29_e35_codes_go_before_words_and_the_first_reason_stands(tmp_path, reason, stop_reason, rest):
    (course,) = tables(tmp_path, *CRMO, drug("m1", "p1", status="stopped", statusReason=reason))["courses"].to_dict(
        "records"
    )
    assert course["stop_reason"] == stop_reason
    assert [flag for flag in course["flags"] if "reason" in flag] == [f"another stop reason: {r}" for r in rest]


@pytest.mark.parametrize(("stated", "reason"), [("2006-07-31", "inefficacy"), ("2006-08-01", "unknown")])
def test_e29_a_reason_stated_up_to_180_days_after_the_stop_counts(tmp_path, stated, reason):
    statement = drug("m1", "p1", status="stopped", dateAsserted=stated, statusReason=[{"text": "manglende effekt"}])
    assert tables(tmp_path, *CRMO, statement)["courses"]["stop_reason"].tolist() == [reason]


@pytest.mark.parametrize(
    ("dates", "diagnosis_low", "source", "delay"),
    [
        ({"recordedDate": "2005-01-01", "onsetDateTime": "2004-09-03"}, "2005-01-01", "recordedDate", 120),
        ({"encounter": {"reference": "Encounter/v"}, "onsetDateTime": "2004-09-03"}, "2005-01-11", "encounter", 130),
        ({"onsetDateTime": "2004-09-03"}, "2004-09-03", "onset", 0),
        ({"onsetPeriod": {"start": "2004-09-03"}, "recordedDate": "2005-01-01"}, "2005-01-01", "recordedDate", 120),
        ({"recordedDate": "2005-01-01"}, "2005-01-01", "recordedDate", None),
    ],
)
def test_e38_recorded_date_before_the_visit_before_onset_and_the_delay(tmp_path, dates, diagnosis_low, source, delay):
    condition = diagnosis("c1", "p1")
    del condition["recordedDate"]
    visit = about("Encounter", "v", "p1", status="finished", period={"start": "2005-01-11", "end": "2005-01-11"})
    visit["class"] = {"code": "AMB"}
    (child,) = tables(tmp_path, patient("p1"), {**condition, **dates}, visit)["patients"].to_dict("records")
    assert (str(child["diagnosis_low"])[:10], child["diagnosis_source"]) == (diagnosis_low, source)
    assert child["delay_days"] == delay


@pytest.mark.parametrize("status", ["active", "remission", "resolved", "inactive"])
def test_e41_a_resolved_disease_stays_in_the_cohort(tmp_path, status):
    system = "http://terminology.hl7.org/CodeSystem/condition-clinical"
    condition = diagnosis("c1", "p1", clinicalStatus=coded(status, system=system))
    assert tables(tmp_path, patient("p1"), condition)["patients"]["person"].tolist() == ["Patient/p1"]


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2005-03-31T22:30:00Z", "2005-04-01"),
        ("2005-03-31T21:30:00Z", "2005-03-31"),
        ("2005-12-31T23:30:00Z", "2006-01-01"),
        ("2005-12-31T22:59:59.999Z", "2005-12-31"),
        ("2005-04-01T03:00:00+09:00", "2005-03-31"),
        ("2005-03-31T20:00:00-05:00", "2005-04-01"),
        ("2005-03-31", "2005-03-31"),
    ],
)
def test_e48_an_instant_is_the_day_it_was_in_copenhagen(text, day):
    when = parse_date(text, ZoneInfo("Europe/Copenhagen"))
    assert when is not None
    assert (when.low.isoformat(), when.high.isoformat()) == (day, day)


def test_e48_the_day_in_copenhagen_decides_the_window(tmp_path):
    midnight = diagnosis("c1", "p1", recordedDate="2011-12-31T23:30:00Z")
    window = Parameters(until=parse_date("2011-12-31", ZoneInfo("UTC")).high)
    found = tables(tmp_path, patient("p1"), midnight, parameters=window)
    assert found["patients"].empty
    assert "diagnosed after the window" in found["attrition"]["reason"].tolist()


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("MedicationStatement/m1", "link"),
        ("MedicationStatement/m1/_history/2", "link"),
        ("MedicationStatement/none", "window"),
        ("https://elsewhere.example/fhir/MedicationStatement/m1", "window"),
    ],
)
def test_e49_every_form_of_a_reference_is_resolved_or_listed(tmp_path, reference, found):
    judged = effect("o1", "p1", "m1", partOf=[{"reference": reference}])
    cohort = tables(tmp_path, *CRMO, drug("m1", "p1"), judged)
    assert cohort["assessments"]["attribution"].tolist() == [found]
    listed = [r for r in cohort["attrition"]["reason"] if r.startswith("partOf")]
    assert bool(listed) == (found == "window")


def test_e50_a_drug_nobody_placed_is_listed_and_in_no_class(tmp_path):
    combined = coded("M01AE99X", "naproxen + esomeprazol", system="https://hospital.example/drugs")
    found = tables(tmp_path, *CRMO, drug("m1", "p1", medicationCodeableConcept=combined))
    assert found["courses"].empty
    assert found["unmapped"][["system", "code", "resource_type", "count"]].to_numpy().tolist() == [
        ["https://hospital.example/drugs", "M01AE99X", "MedicationStatement", 1]
    ]


STUDIES = """
code      | site      | whole_body | regions
UXMH00    |           | yes        |
UXMG20    |           | no         | femur
UXMG30    |           | no         | fibula, tibia
113091000 |           | no         |
          | 71341001  | no         | femur
          |           | no         |
"""


@pytest.mark.parametrize("row", rows_of(STUDIES), ids=lambda row: " ".join(row.values()))
@pytest.mark.parametrize("version", ["R4", "R5"])
def test_e34_what_a_study_covers(tmp_path, row, version):
    system = "http://snomed.info/sct" if row.get("code", "").isdigit() else SKS
    code = coded(row["code"], system=system) if "code" in row else None
    modality = {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "MR"}
    site = {"system": "http://snomed.info/sct", "code": row["site"]} if "site" in row else None
    r5 = version == "R5"
    series = {"uid": "1.2", "modality": {"coding": [modality]} if r5 else modality}
    if site:
        series["bodySite"] = {"concept": {"coding": [site]}} if r5 else site
    study = about("ImagingStudy", "i1", "p1", status="available", started="2005-01-01", series=[series])
    if code:
        study |= {"procedure": [{"concept": code}]} if r5 else {"procedureCode": [code]}
    (found,) = tables(tmp_path, *CRMO, study)["imaging"].to_dict("records")
    assert found["whole_body"] == (row["whole_body"] == "yes")
    assert list(found["regions"]) == [r for r in row.get("regions", "").split(", ") if r]


@pytest.mark.parametrize(("status", "studies"), [("final", 1), ("amended", 1), ("preliminary", 0), ("cancelled", 0)])
def test_e32_only_a_final_report_tells_of_a_study(tmp_path, status, studies):
    report = about("DiagnosticReport", "d1", "p1", status=status, code=coded("UXMH00", system=SKS), effectiveDateTime="2005-01-01")  # fmt: skip
    assert len(tables(tmp_path, *CRMO, report)["imaging"]) == studies


def test_e32_the_reading_issued_last_counts(tmp_path):
    def reading(number, code, issued, status):
        answer = {"coding": [{"system": "https://crmo-fhir.org/CodeSystem/assessment", "code": code}]}
        change = {"coding": [{"system": "https://crmo-fhir.org/CodeSystem/assessment", "code": "mri-change"}]}
        return effect(number, "p1", "m1", code=change, valueCodeableConcept=answer, issued=issued, status=status)

    found = tables(
        tmp_path,
        *CRMO,
        drug("m1", "p1"),
        reading("o1", "no-regression", "2005-07-02T10:00:00+02:00", "final"),
        reading("o2", "regression", "2005-07-20T10:00:00+02:00", "amended"),
        reading("o3", "no-regression", "2005-08-20T10:00:00+02:00", "preliminary"),
    )
    expect(found["courses"], "mri | flags\nregression | indication not recorded, readers disagree")


@pytest.mark.parametrize("kind", ["MedicationAdministration", "Procedure"])
def test_e16_a_period_that_ends_before_it_starts_is_no_infusion_of_hours(tmp_path, kind):
    period = {"start": "2008-11-16T12:00:00+01:00", "end": "2006-05-30"}
    named = {
        "MedicationAdministration": {"medicationCodeableConcept": coded("L04AB02"), "effectivePeriod": period},
        "Procedure": {"code": coded("L04AB02"), "performedPeriod": period},
    }
    found = tables(tmp_path, *CRMO, SEEN, about(kind, "x1", "p1", status="completed", **named[kind]))
    assert found["courses"].empty
    assert "end before start" in found["attrition"]["reason"].tolist()


@pytest.mark.parametrize("end", ["9999-12-30", "9999-12", "9999"])
def test_e17_the_year_9999_is_no_end(tmp_path, end):
    endless = drug("m1", "p1", status="active", effectivePeriod={"start": "2005-02-01", "end": end})
    found = tables(tmp_path, *CRMO, SEEN, endless, effect("o1", "p1", "m1", partOf=[]))
    expect(found["courses"], "end|stop_reason|effect\n|ongoing|sufficient")


@pytest.mark.parametrize("days", [-58, 9999999])
def test_e51_a_supply_that_cannot_be_is_not_known(tmp_path, days):
    dispense = about(
        "MedicationDispense",
        "d1",
        "p1",
        status="completed",
        medicationCodeableConcept=coded("L04AB04"),
        whenHandedOver="2005-01-01",
        daysSupply={"value": days, "unit": "d", "system": "http://unitsofmeasure.org", "code": "d"},
    )
    expect(tables(tmp_path, *CRMO, SEEN, dispense)["courses"], "start|end\n2005-01-01|2005-01-01")


def test_e12_values_and_mr_studies_that_are_none_are_counted(tmp_path):
    code = {"coding": [{"system": "http://loinc.org", "code": "1988-5"}]}
    value = {"value": 4, "unit": "mg/L", "system": "http://unitsofmeasure.org", "code": "mg/L"}
    lab = about("Observation", "l1", "p1", status="entered-in-error", code=code, valueQuantity=value)
    scan = about(
        "ImagingStudy",
        "i1",
        "p1",
        status="cancelled",
        started="2005-01-01",
        modality=[{"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "MR"}],
    )
    found = tables(tmp_path, *CRMO, SEEN, {**lab, "effectiveDateTime": "2005-01-01"}, scan)
    told = {(row.step, row.reason, row.dropped) for row in found["attrition"].itertuples()}
    assert {
        ("records: Observation", "status entered-in-error", 1),
        ("records: ImagingStudy", "status cancelled", 1),
    } <= told


def test_e29_in_r5_the_words_of_the_adherence_tell_of_the_stop_too(tmp_path):
    statement = drug(
        "m1",
        "p1",
        status="recorded",
        adherence={"code": {"coding": [{"system": R5, "code": "stopped"}]}, "reason": {"text": "manglende effekt"}},
    )
    assert tables(tmp_path, *CRMO, statement)["courses"]["stop_reason"].tolist() == ["inefficacy"]
