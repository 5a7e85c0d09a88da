"""Attributed effects as Observations on the patients: what the study adds to a judgement that nothing linked to a treatment.

A judged effect that the record links to its treatment stands in the EHR already, and is not written a second time. One that
the study attributed to a course by its time window gets an Observation that says to which, beside the judgement it is derived
from. Its code is none that a pull counts as a judgement, so that no study reads its own conclusions as evidence. What the
study derived from scores is no judgement, and is not written.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Json = dict[str, Any]

ASSESSMENT = "https://crmo-fhir.org/CodeSystem/assessment"
IDENTIFIER_SYSTEM = "https://crmo-fhir.org/attributed-effect"
_CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
_LOCAL = re.compile(r"[A-Z][A-Za-z]+/[A-Za-z0-9.-]{1,64}")
_PART_OF = ("MedicationAdministration", "MedicationDispense", "MedicationStatement", "Procedure")
"""What R4 lets an Observation be part of, of all that a course may come of."""
_SAID = {"clinical": "Effect of a treatment course", "mri": "Change of the lesions on MRI during a treatment course"}


def build_attributed_effects(tables: Mapping[str, "pd.DataFrame"]) -> list[Json]:
    """One Observation for each primary judgement that was attributed by its window, by identifier.

    `tables` are those of STUDY/cohort; records of another service base than the study's own are left out.
    """
    courses = {row.course: row for row in tables["courses"].itertuples()}
    built = [
        _observation(row, courses[row.course])
        for row in tables["assessments"].itertuples()
        if row.origin == "judged" and row.attribution == "window" and row.primary and row.course in courses
    ]
    return sorted((one for one in built if one), key=lambda one: str(one["identifier"][0]["value"]))


def _observation(judged: Any, course: Any) -> Json:
    """The Observation; empty where it would name a record of another base."""
    sources = [str(key) for key in course.sources]
    if not all(_LOCAL.fullmatch(key) for key in (judged.person, judged.assessment, *sources)):
        return {}
    digest = hashlib.sha256(f"{course.course}|{judged.assessment}".encode()).hexdigest()
    parts = [{"reference": key} for key in sources if key.partition("/")[0] in _PART_OF]
    others = [{"reference": key} for key in sources if key.partition("/")[0] not in _PART_OF]
    text = f"{_SAID[judged.kind]}, attributed to it by its time window"
    return {
        "resourceType": "Observation",
        "identifier": [{"system": IDENTIFIER_SYSTEM, "value": digest}],
        **({"partOf": parts} if parts else {}),
        "status": "final",
        "category": [{"coding": [{"system": _CATEGORY, "code": "therapy"}]}],
        "code": {"coding": [{"system": ASSESSMENT, "code": "attributed-effect"}], "text": text},
        "subject": {"reference": judged.person},
        **({"focus": others} if others else {}),
        **({"effectiveDateTime": judged.date.isoformat()} if judged.date is not None else {}),
        "valueCodeableConcept": {"coding": [{"system": ASSESSMENT, "code": judged.value}]},
        "method": {"text": "Attributed by crmo-fhir; the judgement itself is what this is derived from"},
        "derivedFrom": [{"reference": judged.assessment}],
    }
