"""From the cohort to the long result table: one statistic a row, before any output (clinical rules §3, §5)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crmo_fhir.metrics.comparison import compute_agreement, compute_comparison
from crmo_fhir.metrics.describe import compute_cohort, compute_flags, compute_foci, compute_lines
from crmo_fhir.metrics.members import compute_members
from crmo_fhir.metrics.response import Courses, Row, compute_courses, compute_patients, days_of, derive_headlines
from crmo_fhir.metrics.sensitivity import compute_counts, compute_sensitivity
from crmo_fhir.metrics.survival import compute_survival
from crmo_fhir.metrics.switches import compute_mentioned, compute_readings, compute_switches
from crmo_fhir.metrics.timelines import derive_timelines, derive_trends
from crmo_fhir.model.parameters import EFFECT_SOURCES, Parameters
from crmo_fhir.model.results import Analysis, Result
from crmo_fhir.model.tables import COHORT, rows_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compute_analysis", "compute_headlines", "compute_members", "compute_results"]

_CLASSES = {"nsaid": "NSAID", "mtx": "MTX", "tnfi": "TNF"}


def compute_results(tables: "Mapping[str, pd.DataFrame]", parameters: Parameters) -> list[Result]:
    """All figures of a cohort, in a fixed order.

    `tables` are those of STUDY/cohort. Every group has exactly one overall row; a figure that cannot be computed is a
    row with its reason in `note`.
    """
    patients = _scalars(tables, "patients")
    foci = _scalars(tables, "foci")
    rows = _scalars(tables, "courses")
    courses = Courses.of(rows)
    days = days_of(_scalars(tables, "assessments"))
    return [
        *compute_cohort(patients, parameters.interval),
        *compute_foci(patients, foci, parameters.interval),
        *compute_patients("nsaid", "NSAID", patients, courses, parameters, days),
        *compute_patients("mtx", "MTX", patients, courses, parameters, days),
        *compute_courses("tnfi", "TNF", patients, courses, parameters),
        *compute_lines(rows, parameters.interval),
    ]


def compute_headlines(
    patients: Sequence[Row], courses: Sequence[Row], parameters: Parameters
) -> dict[str, tuple[int, int]]:
    """Numerator and denominator of the five treatment groups, from the rows of the tables `patients` and `courses`.

    0/0 throughout where nothing of the source of the effect is recorded: whoever was not asked has not answered no.
    """
    counts = compute_counts(derive_headlines(patients, Courses.of(courses), parameters))
    origins = EFFECT_SOURCES[parameters.effect_source]
    if courses and not any(c[one] or c.get(f"mri_{one}") for c in courses for one in origins):
        return dict.fromkeys(counts, (0, 0))
    return counts


def compute_analysis(
    tables: "Mapping[str, pd.DataFrame]", parameters: Parameters, varied: Sequence[Mapping[str, Any]]
) -> Analysis:
    """All that is no n of N: comparison, survival, switches, agreement, sensitivity, readings; timelines and trends.

    `tables` are those of STUDY/cohort, `varied` the rows of its sensitivity.csv. A figure that cannot be computed is an
    estimate without a value and with the reason in `note`.
    """
    rows = {name: _scalars(tables, name) for name in COHORT}
    patients, courses = rows["patients"], Courses.of(rows["courses"])
    classes = {group: courses.each(name) for group, name in _CLASSES.items()}
    units = derive_headlines(patients, courses, parameters)
    estimates = (
        *compute_comparison(units, parameters),
        *compute_survival(classes, patients, rows["assessments"], parameters),
        *compute_switches(courses.of_class("TNF")),
        *compute_agreement(classes),
        *compute_sensitivity(units, patients, courses, varied, parameters),
        *compute_readings(courses.of_class("TNF")),
        *compute_mentioned(patients, courses, rows["labs"]),
        *compute_flags(rows_of(tables["courses"][["flags"]])),
    )
    return Analysis(estimates, derive_timelines(rows, parameters), derive_trends(rows))


def _scalars(tables: "Mapping[str, pd.DataFrame]", name: str) -> list[Row]:
    """The rows of a table without its lists: no figure reads them, and rows without are a third cheaper to keep."""
    return rows_of(tables[name][[column.name for column in COHORT[name].columns if column.type != "texts"]])
