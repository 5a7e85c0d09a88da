"""Whatever the cohort, the reports of its children add up to the summary."""

import cohorts
import pytest

from crmo_fhir import pipeline
from crmo_fhir.model.parameters import Parameters


@pytest.mark.parametrize("seed", range(6))
def test_the_children_of_any_cohort_add_up_to_the_summary(seed, tmp_path):
    cohort = cohorts.make(seed)
    cohorts.write(cohort, tmp_path / "records")
    study = tmp_path / "study"
    pipeline.extract(str(tmp_path / "records"), study, Parameters(since=cohort.since, until=cohort.until))
    pipeline.measure(study, form=pipeline.Form(individual=True))
    measured, checked = pipeline.verify(study)
    children = next(r.n for r in measured.results if r.group == "cohort" and not r.stratifier)
    assert len((study / "individual-reports.ndjson").read_text().splitlines()) == children
    assert checked > 300
