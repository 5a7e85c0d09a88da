"""Scores and MRI indices from the records to a derived effect, by the program as it is used."""

import csv

import pandas as pd
import pytest
from test_configuration import CONDITION, EFFECT, PATIENT, STATEMENT, counted, folder

ASSESSMENT = "https://crmo-fhir.org/CodeSystem/assessment"


def score(identity, code, value, when, unit="{score}", system=ASSESSMENT, **more):
    return {
        "resourceType": "Observation",
        "id": identity,
        "status": "final",
        "code": {"coding": [{"system": system, "code": code}]},
        "subject": {"reference": f"Patient/{PATIENT['id']}"},
        "effectiveDateTime": when,
        "valueQuantity": {"value": value, "system": "http://unitsofmeasure.org", "code": unit},
        **more,
    }


def study_of(identity, when):
    return {
        "resourceType": "ImagingStudy",
        "id": identity,
        "status": "available",
        "subject": {"reference": f"Patient/{PATIENT['id']}"},
        "started": when,
        "modality": [{"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "MR"}],
    }


BEFORE, AFTER = "2005-05-20", "2005-12-01"
SCORES = (
    *(
        score(f"{code}-{when}", code, value, when, unit, system)
        for code, values, unit, system in (
            ("30341-2", (40, 8), "mm/h", "http://loinc.org"),
            ("physician-global", (6, 1), "{score}", ASSESSMENT),
            ("patient-global", (60, 10), "mm", ASSESSMENT),
            ("chaq", (1.5, 0), "{score}", ASSESSMENT),
            ("72514-3", (7, 2), "{score}", "http://loinc.org"),
            ("clinical-lesion-count", (3, 1), "{score}", ASSESSMENT),
        )
        for when, value in zip((BEFORE, AFTER), values, strict=True)
    ),
    study_of("s1", BEFORE),
    study_of("s2", AFTER),
    score("r1", "rai-cromris", 17, BEFORE, derivedFrom=[{"reference": "ImagingStudy/s1"}]),
    score("r2", "rai-cromris", 12, AFTER, derivedFrom=[{"reference": "ImagingStudy/s2"}]),
    score("r3", "rai-cromris", 4, "2005-12-02", bodySite={"text": "left tibia"}),
    score("r4", "rinbo", -1, AFTER),
    score("v1", "38214-3", 8, AFTER, system="http://loinc.org", referenceRange=[{"high": {"value": 100}}]),
    score("r5", "72514-3", 70, AFTER, system="http://loinc.org"),
)
LONG = {**STATEMENT, "effectivePeriod": {"start": "2005-06-01", "end": "2006-06-01"}}


@pytest.fixture
def source(tmp_path):
    return folder(tmp_path / "s", PATIENT, CONDITION, LONG, EFFECT, *SCORES)


def test_scores_give_an_effect_that_stands_beside_the_judged_one(crmo, source, tmp_path):
    study = tmp_path / "study"
    assert crmo("run", source, "-o", study).code == 0
    assert counted(study, "tnfi-clinical-derived") == ("1", "1")
    assert counted(study, "tnfi-mri-derived") == ("1", "1")
    assert counted(study, "tnfi-mri") == ("0", "0")
    (course,) = pd.read_parquet(study / "cohort" / "courses.parquet").to_dict("records")
    assert (course["pedcno"], course["derived"], course["mri_derived"]) == (70, "sufficient", "regression")
    assert pd.isna(course["cdas_change"]), "a global in millimetres is on another scale"
    labs = pd.read_parquet(study / "cohort" / "labs.parquet").set_index("lab")
    assert labs.loc["Observation/v1", "unit"] == "{score}/100"
    assert list(labs.loc["Observation/r1", "studies"]) == ["ImagingStudy/s1"]
    assert not {"Observation/r3", "Observation/r4", "Observation/r5"} & set(labs.index)
    with (study / "cohort" / "attrition.csv").open(encoding="utf-8") as text:
        reasons = {row["reason"] for row in csv.DictReader(text)}
    assert {"rai-cromris of one site, not of all", "rinbo outside its scale", "pain-nrs outside its scale"} <= reasons


def test_a_study_can_count_the_derived_effect_and_says_what_it_rests_on(crmo, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crmo-fhir.toml").write_text(
        '[parameters]\neffect_source = "derived"\npedcno_zero_steps = { chaq = 0.25 }\n'
    )
    assert crmo("run", source, "-o", "study").code == 0
    assert crmo("measure", "study", "--individual").code == 0
    assert crmo("verify", "study").code == 0
    study = tmp_path / "study"
    assert counted(study, "tnfi-clinical") == counted(study, "tnfi-clinical-derived") == ("1", "1")
    assert counted(study, "tnfi-mri") == ("1", "1")
    report = (study / "individual-reports.ndjson").read_text()
    assert "Observation/chaq-2005-12-01" in report
    assert "Observation/r2" in report
    assert '"effect_source"' in (study / "measure-report.json").read_text()
