"""What must not matter to an analysis: the order of rows and the names of children; and each variant is that of its rule."""

import csv
import io
from dataclasses import replace
from random import Random

import cohorts
import pandas as pd
import pytest

from crmo_fhir import pipeline
from crmo_fhir.export.results import statistics_csv
from crmo_fhir.metrics import compute_analysis, compute_results
from crmo_fhir.model.parameters import SENSITIVITY, Parameters
from crmo_fhir.model.tables import COHORT, rows_of

VARIED = [
    ("gap_days", 30),
    ("gap_days", 180),
    ("clinical_grace_days", 0),
    ("mri_grace_days", 120),
    ("min_exposure_days", 168),
]


@pytest.fixture(scope="module", params=[3, 8])
def measured(request, tmp_path_factory):
    """The folder of a random cohort's records, its study and its parameters."""
    folder = tmp_path_factory.mktemp("cohort")
    cohort = cohorts.make(request.param)
    cohorts.write(cohort, folder / "records")
    parameters = Parameters(since=cohort.since, until=cohort.until)
    pipeline.extract(str(folder / "records"), folder / "study", parameters)
    return folder, parameters


def tables_of(study):
    return {name: t.from_parquet((study / "cohort" / f"{name}.parquet").read_bytes()) for name, t in COHORT.items()}


def test_neither_order_nor_names_matter(measured):
    folder, parameters = measured
    tables = tables_of(folder / "study")
    before = compute_analysis(tables, parameters, ())
    people = sorted(tables["patients"]["person"])
    names = dict(zip(people, Random(1).sample([f"Patient/x{n}" for n in range(len(people))], len(people)), strict=True))

    def renamed(value):
        if isinstance(value, str):
            head, slash, tail = value.rpartition("/")
            return names.get(value) or (f"{names[head]}{slash}{tail}" if head in names else value)
        return value

    other = {}
    for name, table in tables.items():
        rows = [{column: renamed(value) for column, value in row.items()} for row in rows_of(table)]
        Random(2).shuffle(rows)
        columns = {column: pd.Series([row[column] for row in rows], dtype=object) for column in table.columns}
        other[name] = pd.DataFrame(columns, columns=table.columns)
    after = compute_analysis(other, parameters, ())
    assert len(before.estimates) > 150
    assert statistics_csv(after.estimates) == statistics_csv(before.estimates)
    assert statistics_csv(reversed(before.estimates)) == statistics_csv(before.estimates)
    assert compute_results(other, parameters) == compute_results(tables, parameters)
    if tables["patients"]["diagnosis_low"].is_unique:
        assert after.timelines == before.timelines
        assert after.trends == before.trends


def test_a_variant_is_what_the_study_would_be_with_that_rule(measured):
    folder, parameters = measured
    rows = list(csv.DictReader(io.StringIO((folder / "study" / "cohort" / "sensitivity.csv").read_text())))
    assert {(row["parameter"], row["value"]) for row in rows} == {
        (name, str(value)) for name, values in SENSITIVITY.items() for value in values
    }
    for name, value in VARIED:
        study = folder / f"{name}-{value}"
        pipeline.extract(str(folder / "records"), study, replace(parameters, **{name: value}))
        results = {r.group: (r.n, r.N) for r in pipeline.measure(study).results if not r.stratifier}
        found = {
            row["group"]: (int(row["n"]), int(row["N"]))
            for row in rows
            if (row["parameter"], row["value"]) == (name, str(value))
        }
        assert len(found) == 5
        assert found == {group: results[group] for group in found}, (name, value)


def test_the_variants_move_the_figures(measured):
    folder, _ = measured
    figures = {(r.group): (r.n, r.N) for r in pipeline.measure(folder / "study").results if not r.stratifier}
    rows = csv.DictReader(io.StringIO((folder / "study" / "cohort" / "sensitivity.csv").read_text()))
    moved = {row["parameter"] for row in rows if (int(row["n"]), int(row["N"])) != figures[row["group"]]}
    assert "min_exposure_days" in moved
    assert len(moved) > 1
