"""From the cohort to the long result table: one statistic a row, before any output (clinical rules §3, §5)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from crmo_fhir.metrics.describe import compute_cohort, compute_foci, compute_lines
from crmo_fhir.metrics.members import compute_members
from crmo_fhir.metrics.response import compute_courses, compute_patients, days_of
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.results import Result
from crmo_fhir.model.tables import rows_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compute_members", "compute_results"]


def compute_results(tables: "Mapping[str, pd.DataFrame]", parameters: Parameters) -> list[Result]:
    """All figures of a cohort, in a fixed order.

    `tables` are those of STUDY/cohort. Every group has exactly one overall row; a figure that cannot be computed is a
    row with its reason in `note`.
    """
    patients = rows_of(tables["patients"])
    foci = rows_of(tables["foci"])
    courses = rows_of(tables["courses"])
    days = days_of(rows_of(tables["assessments"]))
    return [
        *compute_cohort(patients, parameters.interval),
        *compute_foci(patients, foci, parameters.interval),
        *compute_patients("nsaid", "NSAID", patients, courses, parameters, days),
        *compute_patients("mtx", "MTX", patients, courses, parameters, days),
        *compute_courses("tnfi", "TNF", patients, courses, parameters),
        *compute_lines(courses, parameters.interval),
    ]
