"""The records of the benchmark: 500 children with CRMO and 11,000 resources in all, the same every time.

Only of types that each of the tools compared can fetch: smart-fetch knows neither MedicationStatement nor ImagingStudy.
"""

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

Resource = dict[str, Any]

PATIENTS = 500
EACH = {"Condition": 1, "Encounter": 4, "MedicationRequest": 3, "Observation": 9, "DiagnosticReport": 2, "Procedure": 2}
"""How many of a type each child has: 21, and the Patient."""

_FIRST = date(2004, 1, 5)
_DRUGS = (("M01AE02", "naproxen"), ("L04AX03", "methotrexate"), ("L04AB04", "adalimumab"))
_ANALYTES = (("1988-5", "C-reactive protein", "mg/L"), ("30341-2", "Erythrocyte sedimentation rate", "mm/h"))


def _concept(system: str, code: str, display: str) -> Resource:
    return {"coding": [{"system": system, "code": code, "display": display}], "text": display}


def identity(child: int) -> str:
    """The id of a child's Patient."""
    return f"bench-{child:04d}"


def records() -> Iterator[Resource]:
    """Every resource; what is referred to comes first."""
    for child in range(PATIENTS):
        yield {
            "resourceType": "Patient",
            "id": identity(child),
            "identifier": [{"system": "https://ehr.example/NamingSystem/bench", "value": f"B-{child:06d}"}],
            "gender": ("female", "male")[child % 2],
            "birthDate": str(_FIRST - timedelta(days=3000 + child)),
        }
    for kind, each in EACH.items():
        for child in range(PATIENTS):
            for number in range(each):
                yield _record(kind, child, number)


def _record(kind: str, child: int, number: int) -> Resource:
    day = str(_FIRST + timedelta(days=child + 30 * number))
    text = f"Entry {number} of {kind}: seen in the clinic for pain of the bone, no fever, plan unchanged. " * 3
    common: Resource = {
        "resourceType": kind,
        "id": f"{identity(child)}-{kind.lower()}-{number}",
        "subject": {"reference": f"Patient/{identity(child)}"},
    }
    return {**common, **_content(kind, number, day, text)}


def _content(kind: str, number: int, day: str, text: str) -> Resource:
    match kind:
        case "Condition":
            status = "http://terminology.hl7.org/CodeSystem/condition-"
            return {
                "clinicalStatus": {"coding": [{"system": f"{status}clinical", "code": "active"}]},
                "verificationStatus": {"coding": [{"system": f"{status}ver-status", "code": "confirmed"}]},
                "code": _concept("http://hl7.org/fhir/sid/icd-10", "M86.3", "Chronic multifocal osteomyelitis"),
                "recordedDate": day,
                "note": [{"text": text}],
            }
        case "Encounter":
            ambulatory = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"}
            return {
                "status": "finished",
                "class": ambulatory,
                "period": {"start": day, "end": day},
                "reasonCode": [{"text": text}],
            }
        case "MedicationRequest":
            code, name = _DRUGS[number]
            return {
                "status": "active",
                "intent": "order",
                "medicationCodeableConcept": _concept("http://www.whocc.no/atc", code, name),
                "authoredOn": day,
                "note": [{"text": text}],
            }
        case "Observation":
            code, name, unit = _ANALYTES[number % 2]
            return {
                "status": "final",
                "code": _concept("http://loinc.org", code, name),
                "effectiveDateTime": day,
                "valueQuantity": {
                    "value": 4 + number,
                    "unit": unit,
                    "system": "http://unitsofmeasure.org",
                    "code": unit,
                },
                "note": [{"text": text}],
            }
        case "DiagnosticReport":
            whole_body = _concept("http://loinc.org", "46358-8", "MR Whole body")
            return {"status": "final", "code": whole_body, "effectiveDateTime": day, "conclusion": text}
        case _:
            biopsy = _concept("http://snomed.info/sct", "274317003", "Biopsy of bone")
            return {"status": "completed", "code": biopsy, "performedDateTime": day, "note": [{"text": text}]}
