"""crmo-fhir.toml and a hospital's own mappings."""

import json

import pytest
from test_bad_input import CONDITION, PATIENT, STATEMENT, folder, refused

from crmo_fhir import landing

LOCAL = {"coding": [{"system": "https://hospital.example/drugs", "code": "LM-0042", "display": "Humira"}]}
EFFECT = {
    "resourceType": "Observation",
    "id": "o1",
    "status": "final",
    "subject": {"reference": "Patient/p1"},
    "code": {"coding": [{"system": "https://crmo-fhir.org/CodeSystem/assessment", "code": "treatment-effect"}]},
    "valueCodeableConcept": {"coding": [{"system": "http://snomed.info/sct", "code": "268910001"}]},
    "effectiveDateTime": "2005-07-01",
    "partOf": [{"reference": "MedicationStatement/m1"}],
}


def counted(study, group):
    rows = [line.split(",") for line in (study / "results.csv").read_text().splitlines()]
    return next((row[4], row[5]) for row in rows if row[:3] == [group, "", ""])


def test_a_site_adds_its_codes_without_touching_code(crmo, tmp_path):
    source = folder(tmp_path / "s", PATIENT, CONDITION, {**STATEMENT, "medicationCodeableConcept": LOCAL}, EFFECT)
    assert crmo("run", source, "-o", tmp_path / "without").code == 0
    assert counted(tmp_path / "without", "tnfi-clinical") == ("0", "0")
    assert (
        "https://hospital.example/drugs,LM-0042,Humira,MedicationStatement,1"
        in (tmp_path / "without" / "cohort" / "unmapped.csv").read_text()
    )

    own = {
        "resourceType": "ConceptMap",
        "url": "https://hospital.example/ConceptMap/drugs",
        "status": "active",
        "extension": [
            {
                "url": "https://crmo-fhir.org/StructureDefinition/extends",
                "valueCanonical": "https://crmo-fhir.org/ConceptMap/agent",
            }
        ],
        "group": [
            {
                "source": "https://hospital.example/drugs",
                "target": "https://crmo-fhir.org/CodeSystem/agent",
                "element": [{"code": "LM-0042", "target": [{"code": "adalimumab", "equivalence": "equivalent"}]}],
            }
        ],
    }
    site = folder(tmp_path / "site", drugs__json=json.dumps(own))
    assert crmo("run", source, "--mappings", site, "-o", tmp_path / "with").code == 0
    assert counted(tmp_path / "with", "tnfi-clinical") == ("1", "1")
    refused(crmo("build", tmp_path / "with"), 2, "mappings")


def test_parameters_and_server_come_from_the_configuration(crmo, tmp_path, monkeypatch):
    source = folder(
        tmp_path / "s",
        PATIENT,
        CONDITION,
        {**STATEMENT, "effectivePeriod": {"start": "2005-06-01", "end": "2005-07-01"}},
        EFFECT,
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crmo-fhir.toml").write_text(
        f'server = "{source}"\nreporter = "Example Hospital"\n[parameters]\nmin_exposure_days = 30\n'
    )
    assert crmo("run", "-o", "study").code == 0
    assert counted(tmp_path / "study", "tnfi-clinical") == ("1", "1")
    assert "Example Hospital" in (tmp_path / "study" / "measure-report.json").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "[parameters]\ngap = 90",
        '[parameters]\ngap_days = "90"',
        "[parameters]\ngap_days = -1",
        '[parameters]\neffect_source = "judge"',
        "[parameters]\npedcno_percent = 60",
        '[parameters]\npartial_dates = "first"',
        '[parameters]\npedcno_zero_steps = { chaq = "little" }',
        "[parameters]\npedcno_zero_steps = { ers = 5 }",
        "parameters = 3",
        "[parameters]\ncarry_over_months = 30000",
        "not toml",
        "reporter = 7",
        'reporter_reference = "Ward 7"',
    ],
    ids=[
        "unknown name",
        "text for a number",
        "negative",
        "no such source",
        "no such level",
        "no such word",
        "text for a step",
        "unknown item",
        "no table",
        "more than dates hold",
        "no TOML",
        "reporter no text",
        "no reference",
    ],
)
def test_a_wrong_configuration_is_one_line(crmo, tmp_path, monkeypatch, text):
    monkeypatch.setenv("CRMO_FHIR_CONFIG", str(tmp_path / "c.toml"))
    (tmp_path / "c.toml").write_text(text)
    refused(crmo("run", folder(tmp_path / "s", PATIENT, CONDITION), "-o", tmp_path / "study"), 2, ".toml")


def test_one_interval_of_infusions_leaves_the_others_as_they_are(crmo, tmp_path, monkeypatch):
    monkeypatch.setenv("CRMO_FHIR_CONFIG", str(tmp_path / "c.toml"))
    (tmp_path / "c.toml").write_text("[parameters.infusion_interval_days]\nadalimumab = 14\n")
    assert crmo("extract", folder(tmp_path / "s", PATIENT, CONDITION), "-o", tmp_path / "study").code == 0
    request = json.loads((tmp_path / "study" / "raw" / "manifest.json").read_text())["request"]
    assert request["infusion_interval_days"] == {"adalimumab": 14, "infliximab": 56}


def test_a_cohort_of_another_version_is_built_again(crmo, tmp_path):
    assert crmo("run", folder(tmp_path / "s", PATIENT, CONDITION), "-o", tmp_path / "study").code == 0
    path = tmp_path / "study" / "cohort" / "build.json"
    build = json.loads(path.read_text())
    del build["reviews"]
    path.write_text(landing._sealed(build))
    refused(crmo("measure", tmp_path / "study"), 6, "crmo-fhir build")
