"""Declared tables: the one truth for columns, their types, constraints and meaning.

`FACTS` is what `mapping` reads out of the records, `COHORT` what `cohort` derives from it and `STUDY/cohort/` holds.
A partial date stands in two columns, `x_low` and `x_high` (both ends included, equal for an exact day).
Every resource is named by its key, `Type/id`; every derived row names the keys it came from in `sources`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

Type = Literal["text", "texts", "day", "count", "number", "flag"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its type, whether it may be empty, the only values it may hold, and what it means."""

    name: str
    type: Type
    meaning: str
    required: bool = False
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its columns in order and the columns that identify (and sort) a row."""

    name: str
    meaning: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]

    def frame(self, rows: "Iterable[Mapping[str, Any]]") -> "pd.DataFrame":
        """A DataFrame of these columns, sorted by key. Missing values are None; every column has dtype object.

        Raises ValueError for a missing required value, a value outside the declared ones or an undeclared column:
        that is a fault of ours, never of the data.
        """
        import pandas as pd

        names = [column.name for column in self.columns]
        records = []
        for row in rows:
            if extra := set(row) - set(names):
                raise ValueError(f"table {self.name} has no column {sorted(extra)}")
            record = {name: row.get(name) for name in names}
            for column in self.columns:
                value = record[column.name]
                if column.required and value is None:
                    raise ValueError(f"table {self.name}: {column.name} is required")
                if value is not None and column.allowed and value not in column.allowed:
                    raise ValueError(f"table {self.name}: {column.name} may not hold such a value")
            records.append(record)

        def place(record: dict[str, Any], columns: Iterable[str]) -> tuple[tuple[bool, str], ...]:
            return tuple((record[column] is not None, str(record[column])) for column in columns)

        by_key = {place(record, self.key): record for record in records}
        if len(by_key) == len(records):
            records = [by_key[key] for key in sorted(by_key)]
        else:  # rows that share a key are ordered by everything they hold: the order of input never matters
            records.sort(key=lambda record: place(record, (*self.key, *names)))
        return pd.DataFrame({n: pd.Series([r[n] for r in records], dtype=object) for n in names}, columns=names)

    def to_parquet(self, frame: "pd.DataFrame") -> bytes:
        """The table as a Parquet file with the declared types (days as DATE, lists of text as LIST)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {
            "text": pa.string(),
            "texts": pa.list_(pa.string()),
            "day": pa.date32(),
            "count": pa.int64(),
            "number": pa.float64(),
            "flag": pa.bool_(),
        }
        schema = pa.schema([pa.field(column.name, types[column.type]) for column in self.columns])
        arrays = [pa.array(frame[field.name].tolist(), type=field.type) for field in schema]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink)
        return bytes(sink.getvalue())

    def from_parquet(self, content: bytes) -> "pd.DataFrame":
        """The table from such a file, as it was written: its hash was checked, and `frame` has checked and sorted it then."""
        import pandas as pd
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(pa.BufferReader(content))
        names = [column.name for column in self.columns]
        return pd.DataFrame({n: pd.Series(_values(table[n]), dtype=object) for n in names}, columns=names)


def _values(column: Any) -> Any:
    """The values of a pyarrow column as Python has them, None where there is none: what `to_pylist` gives, many times faster."""
    import pyarrow as pa

    if pa.types.is_list(column.type) and not column.null_count:
        lists = column.combine_chunks()
        flat, ends = lists.flatten().to_pylist(), lists.offsets.to_pylist()
        return [flat[begin:end] for begin, end in pairwise(ends)]
    if column.null_count and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return column.to_pylist()  # numpy has no missing integer
    return column.to_numpy().astype(object)


def _dates(name: str, meaning: str) -> tuple[Column, Column]:
    return (
        Column(f"{name}_low", "day", f"{meaning}: first day possible"),
        Column(f"{name}_high", "day", f"{meaning}: last day possible"),
    )


def type_of(key: str) -> str:
    """The resource type in a key (`Type/id`, behind the base for a record of another base)."""
    return key.rsplit("/", 2)[-2]


def rows_of(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """The rows of a declared table as dicts."""
    names = list(frame.columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*(frame[n].tolist() for n in names), strict=True)]


def one_line(text: str) -> str:
    """The text in one line, without control characters or marks that turn the direction of writing."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


SEXES = ("female", "male", "other", "unknown")
FOCALITIES = ("unifocal", "multifocal", "unknown")
RUNGS = ("administration", "dispense", "statement", "order")
EFFECTS = ("sufficient", "insufficient", "regression", "no-regression", "not-evaluable")
UNSPECIFIED = "-unspecified"
"""The end of the name of an agent of which only the class is known (`tnf-unspecified`)."""
FAILURES = frozenset({"inefficacy", "adverse_event", "both"})
"""Classes of a course's stop reason that say that the treatment failed (`both`: inefficacy and an adverse event)."""
REASONS = ("inefficacy", "adverse_event", "remission", "patient_choice", "other")

PATIENT = Table(
    "patient",
    "one Patient resource of a candidate",
    ("patient",),
    (
        Column("patient", "text", "key of the Patient", required=True),
        Column("sex", "text", "administrative gender", required=True, allowed=SEXES),
        *_dates("birth", "date of birth"),
        Column("deceased", "flag", "whether the record says the child died"),
        *_dates("death", "date of death"),
    ),
)
PATIENT_LINK = Table(
    "patient_link",
    "two Patient resources that are one person (Patient.link replaced-by/replaces, or one identifier)",
    ("patient", "other", "type"),
    (
        Column("patient", "text", "key of the Patient that holds the link", required=True),
        Column("other", "text", "key of the Patient linked to", required=True),
        Column("type", "text", "who survives", required=True, allowed=("replaced-by", "replaces", "same-identifier")),
    ),
)
CONDITION = Table(
    "condition",
    "one Condition, once for each disease of interest it codes",
    ("condition", "disease"),
    (
        Column("condition", "text", "key of the Condition", required=True),
        Column("patient", "text", "key of its Patient; empty where the reference could not be resolved"),
        Column("disease", "text", "what it codes", required=True, allowed=("crmo", "sapho", "other")),
        Column("evidence", "text", "found by a code or by free text only", required=True, allowed=("code", "text")),
        Column("verification", "text", "verificationStatus; absent counts as confirmed", required=True),
        *_dates("date", "date of diagnosis"),
        Column("date_source", "text", "where the date stood", allowed=("recordedDate", "encounter", "onset")),
        *_dates("onset", "onset as recorded"),
    ),
)
SITE = Table(
    "site",
    "one bone site named by a CRMO Condition or a lesion finding",
    ("source", "bone", "side"),
    (
        Column("source", "text", "key of the Condition or Observation", required=True),
        Column("patient", "text", "key of its Patient"),
        Column("bone", "text", "bone, by concept map", required=True),
        Column("side", "text", "laterality", allowed=("left", "right", "both")),
        Column("status", "text", "verificationStatus or Observation.status", required=True),
        *_dates("date", "date of the Condition or Observation"),
    ),
)
EXPOSURE = Table(
    "exposure",
    "one medication resource, or Procedure with a drug code, read as exposure to one agent",
    ("source", "agent"),
    (
        Column("source", "text", "key of the resource", required=True),
        Column("patient", "text", "key of its Patient"),
        Column("rung", "text", "kind of evidence, strongest first", required=True, allowed=RUNGS),
        Column("agent", "text", "generic name", required=True),
        Column("drug_class", "text", "treatment class", required=True),
        Column("status", "text", "FHIR status as found", required=True),
        Column(
            "taken",
            "text",
            "what the status (with intent, doNotPerform, adherence) means",
            required=True,
            allowed=("yes", "no", "on-hold"),
        ),
        *_dates("start", "first day"),
        *_dates("end", "last day; empty for ongoing or not recorded"),
        Column("given_once", "flag", "one administration, not a period", required=True),
        Column("supply_days", "number", "days of supply of a dispense"),
        Column("intra_articular", "flag", "given into a joint, so not systemic", required=True),
        Column("indications", "texts", "among crmo, other; empty where none is recorded", required=True),
        Column(
            "stop_reasons", "texts", "reason classes recorded on the resource, in its order, codes first", required=True
        ),
        *_dates("reason", "when the record was last stated, and with it its reason"),
        Column("dose", "text", "first dosage: amount and interval, else its words"),
        Column("product", "text", "brand or biosimilar, by concept map"),
        Column("request", "text", "key of the MedicationRequest it fulfils"),
    ),
)
ADVERSE_EVENT = Table(
    "adverse_event",
    "an AdverseEvent and the medication resource it suspects",
    ("source", "suspect"),
    (
        Column("source", "text", "key of the AdverseEvent", required=True),
        Column("patient", "text", "key of its Patient"),
        Column("suspect", "text", "key of the medication resource", required=True),
        Column("status", "text", "R5 status; empty in R4"),
        *_dates("date", "date of the event"),
    ),
)
OBSERVED = Table(
    "observed",
    "one judged effect as recorded, not yet attributed to a course",
    ("assessment",),
    (
        Column("assessment", "text", "key of the Observation", required=True),
        Column("patient", "text", "key of its Patient"),
        Column("kind", "text", "clinical effect or MRI change", required=True, allowed=("clinical", "mri")),
        Column("status", "text", "Observation.status", required=True),
        Column("value", "text", "its answer by concept map; empty where it could not be placed", allowed=EFFECTS),
        *_dates("date", "date of the assessment"),
        *_dates("issued", "when this version of the answer was issued"),
        Column("part_of", "texts", "keys of medication resources named by partOf", required=True),
        Column("focus", "texts", "keys of medication resources named by focus", required=True),
        Column("derived_from", "texts", "keys of the ImagingStudies compared", required=True),
    ),
)
LAB = Table(
    "lab",
    "one laboratory value or score in its canonical unit",
    ("lab",),
    (
        Column("lab", "text", "key of the Observation", required=True),
        Column("patient", "text", "key of its Patient; key of the person in STUDY/cohort"),
        Column("analyte", "text", "by concept map", required=True),
        Column("status", "text", "Observation.status", required=True),
        *_dates("date", "date of the sample"),
        Column("value", "number", "in `unit`", required=True),
        Column("unit", "text", "canonical UCUM unit of the analyte", required=True),
        Column("comparator", "text", "as recorded: < <= >= >"),
        Column("studies", "texts", "keys of the imaging studies it was read from, of lesion counts and MRI indices"),
    ),
)
IMAGING = Table(
    "imaging",
    "one MR study",
    ("imaging",),
    (
        Column("imaging", "text", "key of the ImagingStudy, Procedure or DiagnosticReport", required=True),
        Column("patient", "text", "key of its Patient; key of the person in STUDY/cohort"),
        Column("status", "text", "status as found"),
        Column("whole_body", "flag", "whole-body MRI", required=True),
        Column(
            "regions", "texts", "bones that a regional study covers; empty where nothing is recorded", required=True
        ),
        *_dates("date", "date of the study"),
    ),
)
REPORT_CHARACTERS = 2000
"""So much of the text of a report is kept."""
REPORT = Table(
    "report",
    "the text of one report of an MR study, for the review worksheet; nothing is read out of it",
    ("report",),
    (
        Column("report", "text", "key of the DiagnosticReport", required=True),
        Column("patient", "text", "key of its Patient; key of the person in STUDY/cohort"),
        Column(
            "status",
            "text",
            "status as found",
            required=True,
            allowed=("final", "amended", "corrected", "appended", "preliminary", "partial"),
        ),
        *_dates("date", "date of the study"),
        Column("text", "text", "conclusion, else the text presented; one line, cut", required=True),
    ),
)
CONTACT = Table(
    "contact",
    "a day on which the child was seen or treated, from any record",
    ("source", "date_low"),
    (
        Column("source", "text", "key of the resource", required=True),
        Column("patient", "text", "key of its Patient", required=True),
        *_dates("date", "the day"),
    ),
)
UNMAPPED = Table(
    "unmapped",
    "codes that no map placed, with how often each was met",
    ("resource_type", "system", "code", "display"),
    (
        Column("system", "text", "code system as found"),
        Column("code", "text", "code as found"),
        Column("display", "text", "display or text as found"),
        Column("resource_type", "text", "where it stood", required=True),
        Column("count", "count", "how many resources hold it", required=True),
    ),
)
LISTED = Table(
    "listed",
    "records that could not be used as they are, with the reason: counted in the attrition, never dropped in silence",
    ("resource_type", "reason", "source"),
    (
        Column("source", "text", "key of the resource", required=True),
        Column("resource_type", "text", "type of the resource", required=True),
        Column("reason", "text", "why", required=True),
        Column("patient", "text", "key of its Patient"),
    ),
)
FACTS = (
    PATIENT,
    PATIENT_LINK,
    CONDITION,
    SITE,
    EXPOSURE,
    ADVERSE_EVENT,
    OBSERVED,
    LAB,
    IMAGING,
    REPORT,
    CONTACT,
    UNMAPPED,
    LISTED,
)

PATIENTS = Table(
    "patients",
    "one child of the cohort",
    ("person",),
    (
        Column("person", "text", "key of the surviving Patient", required=True),
        Column("sex", "text", "administrative gender", required=True, allowed=SEXES),
        *_dates("birth", "date of birth"),
        *_dates("diagnosis", "date of diagnosis"),
        Column("diagnosis_source", "text", "where the date stood", required=True),
        Column("age_at_diagnosis", "number", "years, from the point estimates"),
        Column("delay_days", "count", "diagnostic delay: from onset to diagnosis, from the point estimates"),
        Column("sapho", "flag", "SAPHO ever", required=True),
        Column(
            "sapho_at_diagnosis",
            "text",
            "SAPHO by the date of diagnosis",
            required=True,
            allowed=("yes", "no", "unknown"),
        ),
        Column("focus_count", "count", "distinct foci ever", required=True),
        Column("focality", "text", "one focus or several, ever", required=True, allowed=FOCALITIES),
        Column(
            "focality_at_diagnosis",
            "text",
            "one focus or several by the date of diagnosis",
            required=True,
            allowed=FOCALITIES,
        ),
        *_dates("death", "date of death"),
        Column("last_contact", "day", "last day with a record"),
        Column("censored", "day", "min(data lock, death, last contact)"),
        Column("censored_by", "text", "which of them", allowed=("death", "last contact", "data lock", "diagnosis")),
        Column("sources", "texts", "keys of the Patients and Conditions", required=True),
    ),
)
FOCI = Table(
    "foci",
    "one distinct (bone, side) of one child",
    ("person", "bone", "side"),
    (
        Column("person", "text", "key of the child", required=True),
        Column("bone", "text", "bone", required=True),
        Column("side", "text", "laterality", allowed=("left", "right")),
        Column("sources", "texts", "keys of the Conditions and Observations", required=True),
    ),
)
COURSES = Table(
    "courses",
    "one course: one agent's merged exposure in one child",
    ("person", "drug_class", "course_no"),
    (
        Column("course", "text", "name of the course: child, class and number", required=True),
        Column("person", "text", "key of the child", required=True),
        Column("drug_class", "text", "treatment class", required=True),
        Column("agent", "text", "generic name", required=True),
        Column("course_no", "count", "ordinal of the course in its class; empty for a course out of the figures"),
        Column("line_no", "count", "ordinal of the agent in its class; empty for a course out of the figures"),
        Column("start", "day", "first day (point estimate of a partial date)", required=True),
        Column("end", "day", "last day; empty for ongoing; of infusions and dispenses the last one plus its interval"),
        Column("exposure_days", "count", "end - start, an ongoing course up to the censoring day", required=True),
        Column("stop_reason", "text", "class of the reason; `ongoing` without an end", required=True),
        Column(
            "indication", "text", "what it was given for", required=True, allowed=("crmo", "both", "other", "missing")
        ),
        Column("rung", "text", "evidence used", required=True, allowed=RUNGS),
        Column("left_out", "text", "why the course is out of the figures; empty for one that counts"),
        Column("co_mtx", "flag", "at least 28 days together with methotrexate", required=True),
        Column("flags", "texts", "what a reader should know: stale, overlap, partial date, ...", required=True),
        Column("effect", "text", "primary clinical effect, of the source that the study counts", allowed=EFFECTS),
        Column("effect_low", "day", "day of that judgement"),
        Column("judged", "text", "primary clinical effect as an Observation judges it", allowed=EFFECTS),
        Column("reviewed", "text", "clinical effect by the review worksheet", allowed=EFFECTS),
        Column("derived", "text", "clinical effect derived from scores", allowed=EFFECTS),
        Column("exposure_enough", "flag", "long enough to be judged, or stopped for a failure before", required=True),
        Column("effect_best", "text", "best judged effect in the window", allowed=EFFECTS),
        Column("effect_6_months", "text", "judged effect nearest six months", allowed=EFFECTS),
        Column("evaluable", "flag", "counts in the denominator of the clinical effect", required=True),
        Column("not_evaluable_reason", "text", "why it does not"),
        Column("mri", "text", "primary MRI change, of the source that the study counts", allowed=EFFECTS),
        Column("mri_judged", "text", "MRI change as an Observation judges it", allowed=EFFECTS),
        Column("mri_reviewed", "text", "MRI change by the review worksheet", allowed=EFFECTS),
        Column("mri_derived", "text", "MRI change derived from lesion counts", allowed=EFFECTS),
        Column(
            "pedcno", "number", "highest PedCNO level reached in percent: 0, 30, 50, 70, 90; empty where not computed"
        ),
        Column("cdas_change", "number", "change of the CNO clinical disease activity score from baseline"),
        Column("lesion_change", "number", "change of the number of lesions from baseline"),
        Column("doses", "texts", "dose history, `day: amount`, in order", required=True),
        Column("products", "texts", "products as recorded: brands, biosimilars", required=True),
        Column("sources", "texts", "keys of the medication resources", required=True),
        Column(
            "assessments", "texts", "keys of the judgements attributed, and of all its effect rests on", required=True
        ),
    ),
)
ASSESSMENTS = Table(
    "assessments",
    "one answer on the effect (judged, reviewed or derived) and the course it was attributed to",
    ("person", "assessment"),
    (
        Column(
            "assessment", "text", "key of the Observation; `derived/<course>/<kind>` for a derived one", required=True
        ),
        Column("person", "text", "key of the child", required=True),
        Column("kind", "text", "clinical effect or MRI change", required=True, allowed=("clinical", "mri")),
        Column("origin", "text", "whose answer", required=True, allowed=("judged", "reviewed", "derived")),
        Column("value", "text", "answer", required=True, allowed=EFFECTS),
        Column("date", "day", "day (point estimate)"),
        Column("course", "text", "course it judges; empty for unattributed"),
        Column("attribution", "text", "how", required=True, allowed=("link", "window", "unattributed")),
        Column("reason", "text", "why unattributed, or what to know"),
        Column("primary", "flag", "the one that counts for its course, of those of its origin", required=True),
        Column(
            "sources", "texts", "keys of the records it was derived from, or that the review rests on", required=True
        ),
    ),
)
ATTRITION = Table(
    "attrition",
    "what was kept and dropped at each step, in order",
    (),
    (
        Column("step", "text", "step of the selection", required=True),
        Column("reason", "text", "why rows were dropped"),
        Column("kept", "count", "left after this row", required=True),
        Column("dropped", "count", "dropped by this row", required=True),
    ),
)
SENSITIVITIES = Table(
    "sensitivity",
    "one treatment group counted with one rule changed",
    (),
    (
        Column("parameter", "text", "the rule", required=True),
        Column("value", "text", "what it was changed to", required=True),
        Column("group", "text", "treatment group", required=True),
        Column("n", "count", "numerator", required=True),
        Column("N", "count", "denominator", required=True),
    ),
)
COHORT = {
    "patients": PATIENTS,
    "foci": FOCI,
    "courses": COURSES,
    "assessments": ASSESSMENTS,
    "labs": LAB,
    "imaging": IMAGING,
    "reports": REPORT,
}
"""The Parquet files of `STUDY/cohort`, by name."""
