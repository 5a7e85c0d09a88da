"""What is known about a study besides its figures: the context the exporters print and put into the MeasureReport."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

from crmo_fhir.model.parameters import Parameters


@dataclass(frozen=True, slots=True)
class Disclosure:
    """How far the figures may go (clinical rules §6): `internal` is as counted; `released` has small counts masked.

    `threshold` is the least count that a release shows beside zero; `rounding` the base its counts are rounded to, 0: none.
    """

    threshold: int
    rounding: int = 0
    mode: str = "released"


INTERNAL = Disclosure(0, 0, "internal")


@dataclass(frozen=True, slots=True)
class Study:
    """One study, as `export` needs it. Nothing here comes from the clock or the folder's name, or holds a patient.

    `start` and `end` are the period of diagnosis reported (both ends included); `data_lock` is the last day of data.
    `reporter` names the reporting hospital; `reporter_reference` (`Organization/…`) takes the place of the contained
    Organization where the server has one. `source_kind` says in words where the records came from.
    `attrition` and `unmapped` are rows of the tables of those names, `ledger` the number of (patient, type) cells in each
    state. A release has none of these three, nor warnings: their small counts cannot be protected.
    """

    parameters: Parameters
    start: date
    end: date
    data_lock: date | None
    complete: bool
    reporter: str
    program_version: str
    source_kind: str
    reporter_reference: str | None = None
    attrition: tuple[Mapping[str, object], ...] = ()
    unmapped: tuple[Mapping[str, object], ...] = ()
    ledger: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    disclosure: Disclosure = INTERNAL
