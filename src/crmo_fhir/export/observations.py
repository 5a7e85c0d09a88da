"""Effects as Observations on the patients: what the study adds to the records.

A judged effect that the record links to its treatment stands in the EHR already, and is not written a second time. One that
the study attributed to a course by its time window gets an Observation that says to which, beside the judgement it is derived
from. A judgement of the review worksheet gets one that names who judged, and what was shown to whom judged. Their codes are
none that a pull counts as a judgement, so that no study reads its own conclusions as evidence. What the study derived from
scores is no judgement, and is not written.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from crmo_fhir.model.review import ASSESSMENT, WRITTEN, Judgement

if TYPE_CHECKING:
    import pandas as pd

Json = dict[str, Any]

_ATTRIBUTED, _REVIEWED = WRITTEN
IDENTIFIER_SYSTEM = "https://crmo-fhir.org/attributed-effect"
REVIEW_SYSTEM = "https://crmo-fhir.org/reviewed-effect"
_CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
_LOCAL = re.compile(r"[A-Z][A-Za-z]+/[A-Za-z0-9.-]{1,64}")
_PART_OF = ("MedicationAdministration", "MedicationDispense", "MedicationStatement", "Procedure")
"""What R4 lets an Observation be part of, of all that a course may come of."""
_DERIVED_FROM = ("ImagingStudy", "Observation")
"""What an Observation may be derived from, of all that a worksheet shows."""
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
    return _effect(
        judged,
        sources,
        identifier=(IDENTIFIER_SYSTEM, hashlib.sha256(f"{course.course}|{judged.assessment}".encode()).hexdigest()),
        code=_ATTRIBUTED,
        text=f"{_SAID[judged.kind]}, attributed to it by its time window",
        method="Attributed by crmo-fhir; the judgement itself is what this is derived from",
        derived_from=[judged.assessment],
    )


def build_reviewed_effects(tables: "Mapping[str, pd.DataFrame]", reviews: Iterable[Judgement]) -> list[Json]:
    """One Observation for each judgement of a review that is a course's, by identifier.

    A later review of the same course is the same Observation, changed. Comments stay in the study; evidence that the records
    no longer hold is left out, and so are records of another service base than the study's own.
    """
    given = {judgement.name: judgement for judgement in reviews}
    courses = {row.course: row for row in tables["courses"].itertuples()}
    known = {*tables["labs"]["lab"], *tables["imaging"]["imaging"]}
    rows = [row for row in tables["assessments"].itertuples() if row.origin == "reviewed" and row.course in courses]
    last = {(row.course, row.kind): row for row in sorted(rows, key=lambda row: (row.date, str(row.assessment)))}
    built = [_reviewed(row, courses[row.course], given[str(row.assessment)], known) for row in last.values()]
    return sorted((one for one in built if one), key=lambda one: str(one["identifier"][0]["value"]))


def _reviewed(row: Any, course: Any, judgement: Judgement, known: set[Any]) -> Json:
    sources = [str(key) for key in course.sources]
    if not all(_LOCAL.fullmatch(key) for key in (row.person, *sources)):
        return {}
    named = (row.person, course.drug_class, course.agent, course.start.isoformat(), row.kind)
    shown = [key for key in judgement.evidence if key in known and _LOCAL.fullmatch(key)]
    built = _effect(
        row,
        sources,
        identifier=(REVIEW_SYSTEM, hashlib.sha256("|".join(named).encode()).hexdigest()),
        code=_REVIEWED,
        text=f"{_SAID[row.kind]}, as a clinician judged it on a review of the records",
        method=f"Review of the records on {judgement.reviewed_on.isoformat()}, by the worksheet of crmo-fhir",
        derived_from=[key for key in shown if key.partition("/")[0] in _DERIVED_FROM],
    )
    return {**built, "performer": [{"display": judgement.reviewer}]}


def _effect(
    row: Any,
    sources: list[str],
    *,
    identifier: tuple[str, str],
    code: str,
    text: str,
    method: str,
    derived_from: list[str],
) -> Json:
    """The Observation of one assessment of a course that comes of `sources`."""
    parts = [{"reference": key} for key in sources if key.partition("/")[0] in _PART_OF]
    others = [{"reference": key} for key in sources if key.partition("/")[0] not in _PART_OF]
    origins = [{"reference": key} for key in derived_from]
    return {
        "resourceType": "Observation",
        "identifier": [{"system": identifier[0], "value": identifier[1]}],
        **({"partOf": parts} if parts else {}),
        "status": "final",
        "category": [{"coding": [{"system": _CATEGORY, "code": "therapy"}]}],
        "code": {"coding": [{"system": ASSESSMENT, "code": code}], "text": text},
        "subject": {"reference": row.person},
        **({"focus": others} if others else {}),
        **({"effectiveDateTime": row.date.isoformat()} if row.date is not None else {}),
        "valueCodeableConcept": {"coding": [{"system": ASSESSMENT, "code": row.value}]},
        "method": {"text": method},
        **({"derivedFrom": origins} if origins else {}),
    }
