"""Two small children with CRMO, as records and as files, for the promises' tests."""

import json
from pathlib import Path
from typing import Any

Resource = dict[str, Any]
ICD10 = "http://hl7.org/fhir/sid/icd-10"
ATC = "http://www.whocc.no/atc"


def patient(identity: str, **more: Any) -> Resource:
    return {"resourceType": "Patient", "id": identity, "gender": "female", "birthDate": "1996-01-01", **more}


def about(kind: str, identity: str, who: str, **more: Any) -> Resource:
    return {"resourceType": kind, "id": identity, "subject": {"reference": f"Patient/{who}"}, **more}


def diagnosis(identity: str, who: str, **more: Any) -> Resource:
    code = {"coding": [{"system": ICD10, "code": "M86.3"}]}
    return about("Condition", identity, who, **{"code": code, "recordedDate": "2005-01-01", **more})


def drug(identity: str, who: str, **more: Any) -> Resource:
    return about(
        "MedicationStatement",
        identity,
        who,
        **{
            "status": "completed",
            "medicationCodeableConcept": {"coding": [{"system": ATC, "code": "L04AB04"}]},
            "effectivePeriod": {"start": "2005-02-01", "end": "2006-02-01"},
            **more,
        },
    )


def effect(identity: str, who: str, part: str, **more: Any) -> Resource:
    return about(
        "Observation",
        identity,
        who,
        **{
            "status": "final",
            "code": {"coding": [{"system": "https://crmo-fhir.org/CodeSystem/assessment", "code": "treatment-effect"}]},
            "valueCodeableConcept": {"coding": [{"system": "http://snomed.info/sct", "code": "268910001"}]},
            "effectiveDateTime": "2005-07-01",
            "partOf": [{"reference": f"MedicationStatement/{part}"}],
            **more,
        },
    )


COHORT = (
    patient("p1"),
    patient("p2", gender="male"),
    diagnosis("c1", "p1"),
    diagnosis("c2", "p2"),
    drug("m1", "p1"),
    drug("m2", "p2"),
    effect("o1", "p1", "m1"),
)


def lines(*resources: Resource | str) -> bytes:
    """NDJSON of resources, or of texts as they are."""
    return "".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in resources).encode()


def files(folder: Path, *resources: Resource | str, **more: bytes) -> Path:
    """A folder of NDJSON, and other files by name (`__` stands for a dot)."""
    folder.mkdir(parents=True)
    (folder / "all.ndjson").write_bytes(lines(*resources))
    for name, content in more.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


OUTPUTS = ("results.csv", "statistics.csv", "table1.csv", "measure.json", "measure-report.json")


def figures(study: Path) -> dict[str, bytes]:
    """The bytes that nothing of how the records came may change."""
    return {name: (study / name).read_bytes() for name in OUTPUTS}


def raw(study: Path) -> dict[str, bytes]:
    """The landed records."""
    return {path.name: path.read_bytes() for path in sorted((study / "raw").glob("[A-Z]*.ndjson"))}


def counted(study: Path, group: str) -> tuple[str, str]:
    """n and N of the overall row of a group."""
    rows = [line.split(",") for line in (study / "results.csv").read_text().splitlines()]
    return next((row[4], row[5]) for row in rows if row[:3] == [group, "", ""])


def attrition(study: Path) -> str:
    """The attrition table."""
    return (study / "cohort" / "attrition.csv").read_text()


def quarantined(study: Path) -> list[Resource]:
    """The rows of the quarantine."""
    return [json.loads(line) for line in (study / "raw" / "quarantine.ndjson").read_text().splitlines()]


def assert_loud(ran: Any, study: Path, code: int, *words: str) -> None:
    """The documented exit code, one line on stderr, no traceback, nothing that passes for whole."""
    assert ran.code == code, (ran.code, ran.err)
    said = [line for line in ran.err.strip().splitlines() if "warning" not in line]
    assert len(said) == 1, ran.err
    assert "Traceback" not in ran.err
    for word in words:
        assert word.lower() in said[0].lower(), (word, said[0])
    assert not (study / "results.csv").exists()
    manifest = study / "raw" / "manifest.json"
    assert not manifest.exists() or json.loads(manifest.read_text())["complete"] is False
