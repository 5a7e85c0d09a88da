"""A resource as it came, and what a pull brought: handed from `source` to `landing`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from crmo_fhir.errors import CrmoFhirError

READ_TYPES = (
    "Patient",
    "Condition",
    "Encounter",
    "MedicationStatement",
    "MedicationRequest",
    "MedicationDispense",
    "MedicationAdministration",
    "Medication",
    "Procedure",
    "Observation",
    "ImagingStudy",
    "DiagnosticReport",
    "AdverseEvent",
)
"""The resource types a study reads; nothing else is copied out of a source (data minimisation)."""

STRONGER_THAN_ORDERS = ("MedicationStatement", "MedicationDispense", "MedicationAdministration")
"""Types that show a drug was taken, given or handed out: where a whole source has none, orders make courses."""

State = Literal["complete", "empty", "refused", "truncated", "unsupported"]
WHOLE: tuple[State, ...] = ("complete", "empty")
"""The states of the ledger in which nothing is missing."""


@dataclass(frozen=True, slots=True)
class Record:
    """One resource: `text` is its JSON on one line, every number as the source wrote it.

    `base` is the service base its own references are relative to (None where the source names none); `full_url` the
    Bundle entry's fullUrl. `id` is the resource's own, else that of its fullUrl, else a hash of its content;
    `id_assigned` says that the resource came without one (and `text` then holds the assigned one).
    `origin` says where it stood: `file:line`, `file#entry` or the page of a search.
    """

    type: str
    id: str
    text: str
    origin: str
    base: str | None = None
    full_url: str | None = None
    id_assigned: bool = False


@dataclass(frozen=True, slots=True)
class RawFile:
    """One landed file: its type, where it is, the base its records' references are relative to, and their key prefix.

    The prefix is empty for the study's main base; a record of another base is named by its whole URL.
    """

    type: str
    path: Path
    base: str | None
    prefix: str


@dataclass(frozen=True, slots=True)
class Broken:
    """Something that could not be read as a resource: kept in quarantine, with where it stood and why.

    `matters` is False only where it certainly holds nothing a study reads.
    """

    file: str
    place: str
    reason: str
    text: str
    matters: bool = True


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a folder: its path relative to the source, size in bytes, SHA-256, and whether it was read as FHIR."""

    name: str
    size: int
    sha256: str
    read: bool


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """How the pull of one type for one patient ended (`patient` is the id).

    complete: all records came; empty: there are none; refused: the server does not give them; truncated: they did not come
    whole, and none were taken; unsupported: the server does not have the type.
    """

    patient: str
    type: str
    state: State
    count: int
    reason: str = ""


@dataclass(slots=True)
class Pull:
    """What came from a source: the candidates' records and the account of how they came.

    `failures` are what makes it partial, in the order in which they count; `server_time` is the instant from which a later
    pull must look for changes (the server's clock), empty where it shows none; `way` says how it was fetched and why; `exports`
    are the files of a bulk export; `unresolved` counts the resources that others refer to and that did not come.
    """

    records: list[Record] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    ledger: list[LedgerRow] = field(default_factory=list)
    source: str = ""
    base: str | None = None
    files: list[SourceFile] = field(default_factory=list)
    searches: list[dict[str, object]] = field(default_factory=list)
    server: dict[str, str] = field(default_factory=dict)
    fhir_versions: list[str] = field(default_factory=list)
    type_counts: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    failures: list[CrmoFhirError] = field(default_factory=list)
    server_time: str = ""
    way: dict[str, str] = field(default_factory=dict)
    exports: list[dict[str, object]] = field(default_factory=list)
    unresolved: int = 0
