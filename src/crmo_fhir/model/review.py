"""The review: what a clinician is asked about a course, and what the answer becomes.

The worksheet has one row a course and kind of answer. Its columns are those of `COLUMNS`, in this order and by these names,
in XLSX and CSV alike.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

ASSESSMENT = "https://crmo-fhir.org/CodeSystem/assessment"
WRITTEN = ("attributed-effect", "reviewed-effect")
"""Codes of that system under which `publish` writes effects: a pull reads them neither as a judgement nor as a contact."""
ANSWERS = {
    "clinical": ("sufficient", "insufficient", "not-evaluable"),
    "mri": ("regression", "no-regression", "not-evaluable"),
}
"""What may be answered, by kind."""
KNOWN = {
    "course": "name of the course",
    "child": "key of the child in the records",
    "kind": "what is asked: the clinical effect, or the change of the lesions on MRI (mri)",
    "class": "treatment class",
    "agent": "generic name",
    "line": "ordinal of the agent in its class",
    "start": "first day of the course",
    "end": "last day; empty while ongoing",
    "exposure_days": "days of exposure",
    "stop_reason": "class of the recorded reason",
    "flags": "what to know about the course",
    "values_before": "last laboratory values and scores around the start, with their days",
    "values_after": "last laboratory values and scores during the course, with their days",
    "mri_before": "days of the MR studies around the start",
    "mri_after": "days of the MR studies from 12 weeks after the start on",
    "mri_reports": "texts of the MR reports, cut where they are long; preliminary ones say so",
}
"""The evidence, by column: it is shown and not to be changed."""
ASKED = {
    "answer": "one of the answers that the list of the cell offers; empty leaves the row open",
    "judged_on": "day on which the child was seen as judged (2026-01-31, or a date cell)",
    "reviewer": "who judges",
    "reviewed_on": "day of this judgement",
    "comment": "anything to keep with it; stays in the study",
}
"""What the clinician fills in, by column."""
MARKS = ("fingerprint", "study")
"""Columns for the program: the course as it was asked about, and the study it is of."""
COLUMNS = (*KNOWN, *ASKED, *MARKS)
DATES = ("judged_on", "reviewed_on")


@dataclass(frozen=True, slots=True)
class Judgement:
    """One answer taken in: the course it is of (as it was then), the answer, and who gave it.

    `review` and `row` say where it stood: the number of the review and the row of its worksheet (the header is row 1).
    `evidence` are the keys of the observations and MR studies that the worksheet showed.
    """

    review: int
    row: int
    person: str
    drug_class: str
    agent: str
    start: date
    sources: tuple[str, ...]
    kind: str
    answer: str
    judged_on: date
    reviewer: str
    reviewed_on: date
    comment: str = ""
    evidence: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the assessment it becomes."""
        return f"review/{self.review:04}/{self.row}"

    def plain(self) -> dict[str, Any]:
        """The judgement as JSON holds it."""
        return {k: v.isoformat() if isinstance(v, date) else v for k, v in asdict(self).items()}


def judgement_of(plain: Mapping[str, Any]) -> Judgement:
    """The judgement from what JSON holds."""
    days = {name: date.fromisoformat(plain[name]) for name in ("start", *DATES)}
    lists = {name: tuple(plain[name]) for name in ("sources", "evidence")}
    return Judgement(**{**plain, **days, **lists})
