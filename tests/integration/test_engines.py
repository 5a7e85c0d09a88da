"""Engines that are not ours, given the Measure and its Library, count what our MeasureReport says: HAPI's
`$evaluate-measure`, which translates the CQL itself, and npm fqm-execution, which runs the ELM.

Where an engine is known to be wrong, a test of its own says so and fails once it no longer is; nothing else is excused.
"""

import json
import subprocess
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pandas as pd
import pytest
from cql import build
from engines import cohorts, evaluate
from engines.evaluate import Counts
from servers import hapi as hapi_server
from servers import node
from servers.records import Resource
from support import DEMONSTRATION, missing_tools, skip_unless

from crmo_fhir import pipeline
from crmo_fhir.model.parameters import Parameters

SEEDS = (1, 2, 3)
GENERATED = [f"generated-{seed}" for seed in SEEDS]
FEW = (date(2002, 10, 1), date(2003, 10, 31))
"""Dates of diagnosis of three children of the demonstration, none of whom took a TNF-α inhibitor: 0/0 in two groups."""
NAMES = ["demonstration", "few", *GENERATED]
NIGHT = "night"
"""A child of the demonstration, diagnosed at 23:30 UTC on the last day that counts: in Denmark that is the day after."""
PROPORTIONS = ("nsaid-clinical", "mtx-clinical", "tnfi-clinical", "mtx-mri", "tnfi-mri")
POPULATIONS = ("initial-population", "denominator", "numerator")


@dataclass(frozen=True)
class Case:
    """Records in the default encoding, the dates of diagnosis that count, and our report."""

    resources: list[Resource]
    period: dict[str, str]
    report: Resource

    @property
    def counts(self) -> Counts:
        return evaluate.counts_of(self.report)


@pytest.fixture(scope="module")
def artifacts(demo_study) -> tuple[Resource, Resource]:
    """Measure and Library as a study holds them."""
    measure, library = (json.loads((demo_study / name).read_text("utf-8")) for name in ("measure.json", "library.json"))
    return measure, library


@pytest.fixture(scope="module")
def cases(demo_study, tmp_path_factory) -> dict[str, Case]:
    """The demonstration, whose report is that of its records in their many encodings, and three generated cohorts."""

    def period(since: date, until: date) -> dict[str, str]:
        return {"start": since.isoformat(), "end": until.isoformat()}

    def report(source: Path, since: date, until: date) -> Resource:
        study = tmp_path_factory.mktemp("engines") / "study"
        pipeline.extract(str(source), study, Parameters(since=since, until=until))
        pipeline.measure(study)
        return report_of(study)

    def report_of(study: Path) -> Resource:
        return json.loads((study / "measure-report.json").read_text("utf-8"))

    window = (cohorts.SINCE, cohorts.UNTIL)
    published = cohorts.published()
    patients = pd.read_parquet(demo_study / "cohort" / "patients.parquet")
    cohort = {key.rpartition("/")[2] for keys in patients["sources"] for key in keys}
    lines = (demo_study / "raw" / "Patient.ndjson").read_text("utf-8").splitlines()
    around = cohorts.surroundings(frozenset(json.loads(line)["id"] for line in lines), frozenset(cohort))
    night = {cohorts.patient_of(r) for r in around if r.get("recordedDate") == "2011-12-31T23:30:00Z"}
    found = {
        "demonstration": Case(
            published + [r for r in around if cohorts.patient_of(r) not in night],
            period(*window),
            report_of(demo_study),
        ),
        NIGHT: Case([r for r in around if cohorts.patient_of(r) in night], period(*window), {"group": []}),
        "few": Case(published, period(*FEW), report(DEMONSTRATION, *FEW)),
    }
    for name, seed in zip(GENERATED, SEEDS, strict=True):
        resources = cohorts.generated(seed)
        folder = cohorts.write(resources, tmp_path_factory.mktemp(name))
        found[name] = Case(resources, period(*window), report(folder, *window))
    return found


@pytest.fixture(scope="module")
def hapi_with_cql(tmp_path_factory, artifacts):
    """The base URL of a HAPI server with clinical reasoning that holds the Measure, its Library and value sets."""
    skip_unless("hapi", "the HAPI server", missing_tools("java", "mvn"))
    with hapi_server.running(tmp_path_factory.mktemp("hapi") / "hapi.log", "-Dhapi.cr=true") as base:
        evaluate.load_measure(base, *artifacts)
        yield base


@pytest.fixture(scope="module")
def by_hapi(hapi_with_cql, artifacts, cases) -> dict[str, Resource]:
    """HAPI's report of each case."""
    reports = {}
    for name in (*NAMES, NIGHT):
        case = cases[name]
        evaluate.load_records(hapi_with_cql, name, case.resources)
        reports[name] = evaluate.evaluate_by_hapi(hapi_with_cql, artifacts[0], name, case.period)
    return reports


@pytest.fixture(scope="module")
def npm() -> None:
    """The packages of tests/cql."""
    skip_unless("fqm", "fqm-execution", missing_tools("node", "npm"))
    node.install(build.HERE)


@pytest.fixture(scope="module")
def by_fqm(npm, artifacts, cases) -> dict[str, Resource]:
    """The report of fqm-execution on each case."""
    return {
        name: evaluate.evaluate_by_fqm(*artifacts, cases[name].resources, cases[name].period, cases[name].counts)
        for name in (*NAMES, NIGHT)
    }


def same_counts(ours: Counts, theirs: Counts) -> None:
    """Every count of ours is theirs, and they count nothing that we do not.

    A stratum that holds nobody may be left out. Our strata leave out the initial population where some of it could not be
    judged: theirs must then add up to the group's.
    """
    listed = {key[:3] for key in theirs}
    differing = {k: (n, theirs.get(k)) for k, n in ours.items() if n != theirs.get(k) and (n or k[:3] in listed)}
    assert not differing
    more = {key: n for key, n in theirs.items() if key not in ours and n}
    assert {population for _, _, _, population in more} <= {"initial-population"}
    for group, stratifier in {(g, s) for g, s, _, _ in more}:
        strata = [n for (g, s, _, p), n in theirs.items() if (g, s, p) == (group, stratifier, "initial-population")]
        assert sum(strata) == ours[group, "", "", "initial-population"], (group, stratifier)


def same_scores(ours: Resource, theirs: Resource) -> None:
    """Each proportion is theirs; 0/0 is not compared here."""
    for group, score in evaluate.scores_of(ours).items():
        if score is not None:
            assert evaluate.scores_of(theirs)[group] == pytest.approx(score), group


# ------------------------------------------------------------------------------------------------------------------ cohorts


def test_the_default_encoding_of_the_published_cohort_gives_the_report_of_the_demonstration(
    cases, demo_study, tmp_path
):
    folder = cohorts.write(cases["demonstration"].resources + cases[NIGHT].resources, tmp_path / "records")
    study = tmp_path / "study"
    pipeline.extract(str(folder), study, Parameters(since=cohorts.SINCE, until=cohorts.UNTIL))
    pipeline.measure(study)
    report = json.loads((study / "measure-report.json").read_text("utf-8"))
    assert evaluate.counts_of(report) == cases["demonstration"].counts


def test_the_cohorts_meet_what_must_be_told_apart(cases):
    counts = [cases[name].counts for name in GENERATED]
    for group in PROPORTIONS:
        treated, judged, good = ([own[group, "", "", p] for own in counts] for p in POPULATIONS)
        assert all(judged), group
        assert 0 < sum(good) < sum(judged), group
        assert all(j < t for j, t in zip(judged, treated, strict=True)) or group == "nsaid-clinical"
    together = {key for own in counts for key, count in own.items() if count}
    strata = {(cut, stratum) for _, cut, stratum, _ in together}
    for cut, values in {
        "tnfi-clinical-agent": ("etanercept", "infliximab", "adalimumab", "certolizumab pegol", "golimumab", "unknown"),
        "tnfi-clinical-line": ("1", "2", "3", "unknown"),
        "cohort-sex": ("female", "male", "other", "unknown"),
        "cohort-focality": ("unifocal", "multifocal", "unknown"),
        "cohort-sapho": ("yes", "no"),
    }.items():
        assert {(cut, value) for value in values} <= strata
    assert len({cohorts.patient_of(r) for r in cases[NIGHT].resources}) == 1
    assert cases["few"].counts["cohort", "", "", "initial-population"] == 3
    empty = [group for group in PROPORTIONS if not cases["few"].counts[group, "", "", "denominator"]]
    assert empty == ["tnfi-clinical", "tnfi-mri"]


@pytest.mark.parametrize(
    ("key", "count"),
    [
        (("tnfi-clinical", "", "", "numerator"), 17),
        (("tnfi-clinical", "tnfi-clinical-line", "2", "denominator"), 11),
        (("tnfi-clinical", "tnfi-clinical-agent", "golimumab", "denominator"), 1),
        (("tnfi-mri", "tnfi-mri-sex", "female", "initial-population"), 1),
        (("foci", "foci-bone", "unknown", "initial-population"), 1),
    ],
)
def test_a_count_that_is_not_ours_is_found(cases, key, count):
    ours = cases["demonstration"].counts
    assert ours.get(key) != count
    with pytest.raises(AssertionError):
        same_counts(ours, {**ours, key: count})


# --------------------------------------------------------------------------------------------------------------------- HAPI


@pytest.mark.hapi
@pytest.mark.parametrize("name", NAMES)
def test_hapi_counts_the_same(by_hapi, cases, name):
    same_counts(cases[name].counts, evaluate.counts_of(by_hapi[name]))
    same_scores(cases[name].report, by_hapi[name])


def one_child_more(report: Resource) -> bool:
    return evaluate.counts_of(report)["cohort", "", "", "initial-population"] == 1


@pytest.mark.hapi
def test_hapi_takes_the_day_of_an_instant_by_its_own_offset(by_hapi):
    # CQL knows offsets, and no time zone of a hospital; ours is that of the study, in which this child is a day too late
    assert one_child_more(by_hapi[NIGHT])


@pytest.mark.hapi
def test_hapi_gives_nothing_divided_by_nothing_no_score(by_hapi, cases):
    scores = evaluate.scores_of(by_hapi["few"])
    assert [scores[group] for group in ("tnfi-clinical", "tnfi-mri")] == [None, None]


@pytest.mark.hapi
def test_hapi_does_not_read_a_value_from_the_criteria_of_a_stratifier(hapi_with_cql, by_hapi, artifacts, cases):
    shipped = {**artifacts[0], "id": "as-shipped"}
    evaluate.put(hapi_with_cql, shipped)
    report = evaluate.evaluate_by_hapi(hapi_with_cql, shipped, "few", cases["few"].period)
    said = [issue["diagnostics"] for r in report["contained"] for issue in r.get("issue", ())]
    assert said
    assert all("stratifier expression" in one for one in said)


# ------------------------------------------------------------------------------------------------------------ fqm-execution


@pytest.mark.fqm
@pytest.mark.parametrize("name", NAMES)
def test_fqm_counts_the_same(by_fqm, cases, name):
    same_counts(cases[name].counts, evaluate.counts_of(by_fqm[name]))
    same_scores(cases[name].report, by_fqm[name])


@pytest.mark.fqm
def test_fqm_takes_the_day_of_an_instant_by_its_own_offset(by_fqm):
    assert one_child_more(by_fqm[NIGHT])


@pytest.mark.fqm
def test_fqm_scores_nothing_divided_by_nothing_as_0(by_fqm, cases):
    ours, theirs = evaluate.scores_of(cases["few"].report), evaluate.scores_of(by_fqm["few"])
    for group in ("tnfi-clinical", "tnfi-mri"):
        assert (ours[group], theirs[group]) == (None, 0)


@pytest.mark.fqm
def test_fqm_scores_a_cohort_by_its_count(by_fqm, cases):
    ours, theirs = evaluate.scores_of(cases["demonstration"].report), evaluate.scores_of(by_fqm["demonstration"])
    assert [(ours[group], theirs[group]) for group in ("cohort", "foci")] == [(None, 25), (None, 40)]


@pytest.mark.fqm
def test_fqm_knows_no_stratifier_by_a_value(npm, artifacts, cases):
    case = cases["few"]
    theirs = evaluate.counts_of(evaluate.evaluate_by_fqm(*artifacts, case.resources, case.period, {}))
    assert {key[2] for key in theirs} == {""}
    assert not any(count for (_, stratifier, _, _), count in theirs.items() if stratifier)
    assert {k: n for k, n in theirs.items() if not k[1]} == {k: n for k, n in case.counts.items() if not k[1]}


@pytest.mark.fqm
def test_the_library_holds_what_the_translator_gives(npm, tmp_path):
    skip_unless("fqm", "the translator", missing_tools("mvn"))
    build.translate(tmp_path)
    content = build.library(
        build.SOURCE.read_text("utf-8"), *((tmp_path / f"elm.{kind}").read_bytes() for kind in ("json", "xml"))
    )
    shipped = json.loads((build.MEASURES / "crmo-treatment-effect-library.json").read_text("utf-8"))
    assert shipped == content


@pytest.mark.fqm
def test_the_translator_stops_where_the_cql_is_wrong(npm, tmp_path):
    broken = tmp_path / "CrmoTreatmentEffect.cql"
    broken.write_text(build.SOURCE.read_text("utf-8").replace("define Sex:", "define Sex: nobody +"), "utf-8")
    with pytest.raises(subprocess.CalledProcessError):
        build.translate(tmp_path, broken)
