"""verify: a study that is whole passes; whatever is changed in it is found, in one line, with exit code 6."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from support import DEMONSTRATION

from crmo_fhir import landing, pipeline
from crmo_fhir.errors import IntegrityError
from crmo_fhir.export.verification import verify_outputs
from crmo_fhir.model.study import Disclosure

ALL = (*landing.OUTPUTS, *landing.ON_REQUEST)
RELEASED = tuple(name for name in landing.OUTPUTS if name not in ("outputs.json", "statistics.csv"))
WINDOW = ("--since", "2002", "--until", "2011")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A study with the reports of its children."""
    study = tmp_path_factory.mktemp("whole") / "study"
    pipeline.demo(study)
    pipeline.measure(study, form=pipeline.Form(individual=True))
    return study


@pytest.fixture
def study(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "study"))


def texts(study: Path) -> dict[str, str]:
    return {
        p.name: p.read_text(encoding="utf-8") for p in study.iterdir() if p.name in ALL[2:] or p.name == "results.csv"
    }


def keys(study: Path) -> frozenset[str]:
    return landing.record_keys(landing.open_raw(study))


# ------------------------------------------------------------------------------------------------------ files and hashes


def test_a_whole_study_passes(crmo, study):
    before = {p: p.read_bytes() for p in study.rglob("*") if p.is_file()}
    ran = crmo("verify", study)
    assert ran.code == 0, ran.err
    assert "agree" in ran.out
    assert {p: p.read_bytes() for p in study.rglob("*") if p.is_file()} == before, "verify writes nothing"


@pytest.mark.parametrize(
    "form", [(), ("--fhir-version", "R5"), ("--deqm", "us"), ("--individual", "--fhir-version", "r5")]
)
def test_every_form_passes(crmo, study, form):
    assert crmo("measure", study, *form).code == 0
    assert crmo("verify", study).code == 0


@pytest.mark.parametrize(
    "name", [*ALL, "cohort/courses.parquet", "cohort/attrition.csv", "cohort/sensitivity.csv", "raw/Patient.ndjson"]
)
def test_a_changed_byte_is_found(crmo, study, name):
    content = bytearray((study / name).read_bytes())
    content[len(content) // 2] ^= 1
    (study / name).write_bytes(bytes(content))
    ran = crmo("verify", study)
    assert ran.code == 6, ran.err
    assert len(ran.err.splitlines()) == 1
    assert Path(name).name in ran.err


@pytest.mark.parametrize("name", ALL)
def test_a_missing_file_is_found(crmo, study, name):
    (study / name).unlink()
    ran = crmo("verify", study)
    assert ran.code == (2 if name in ("results.csv", "outputs.json") else 6), ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_figure_changed_together_with_its_hash_is_found(crmo, study):
    """Who can write the account too cannot make the cohort say something else."""
    path = study / "results.csv"
    path.write_text(path.read_text().replace("mtx-clinical,,,patient,3,18,", "mtx-clinical,,,patient,4,18,"))
    account = json.loads((study / "outputs.json").read_text())
    account["files"]["results.csv"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (study / "outputs.json").write_text(landing._sealed(account))
    ran = crmo("verify", study)
    assert ran.code == 6, ran.err
    assert "results.csv" in ran.err


def test_what_the_us_profile_cannot_say_is_refused(crmo, study):
    ran = crmo("measure", study, "--deqm", "us", "--individual")
    assert ran.code == 2
    assert "--deqm uv" in ran.err
    assert crmo("verify", study).code == 0, "the figures that were there are there"


def test_figures_of_an_earlier_cohort_are_refused(crmo, study):
    kept = texts(study) | {"outputs.json": (study / "outputs.json").read_text()}
    assert (
        crmo(
            "extract", DEMONSTRATION, "--since", "2002", "--until", "2011", "--max-age", 12, "-o", study / "other"
        ).code
        == 0
    )
    for name, text in kept.items():
        (study / "other" / name).write_text(text, encoding="utf-8")
    ran = crmo("verify", study / "other")
    assert ran.code == 6
    assert "another cohort" in ran.err


def test_what_was_not_measured_is_no_study_to_verify(crmo, tmp_path):
    assert crmo("verify", tmp_path / "nothing").code == 2
    study = tmp_path / "study"
    assert crmo("extract", DEMONSTRATION, *WINDOW, "-o", study).code == 0
    ran = crmo("verify", study)
    assert ran.code == 2
    assert "measure" in ran.err


# ----------------------------------------------------------------------------------------- what the files say of one another


def spoil_report(change):
    def spoilt(files: dict[str, str]) -> dict[str, str]:
        report = json.loads(files["measure-report.json"])
        change({group["id"]: group for group in report["group"]}, report)
        return {**files, "measure-report.json": json.dumps(report)}

    return spoilt


def spoil_text(name: str, old: str, new: str):
    def spoilt(files: dict[str, str]) -> dict[str, str]:
        assert old in files[name]
        return {**files, name: files[name].replace(old, new, 1)}

    return spoilt


def spoil_child(change):
    def spoilt(files: dict[str, str]) -> dict[str, str]:
        lines = files["individual-reports.ndjson"].splitlines()
        first = json.loads(lines[0])
        change(first)
        return {**files, "individual-reports.ndjson": "\n".join([json.dumps(first), *lines[1:]]) + "\n"}

    return spoilt


def population(group, code):
    return next(p for p in group["population"] if p["code"]["coding"][0]["code"] == code)


SPOILT = {
    "n above N": spoil_text("results.csv", "tnfi-mri,,,MRI-evaluated course,11,13,", "tnfi-mri,,,MRI-evaluated course,14,13,"),
    "not n/N": spoil_text("results.csv", "nsaid-clinical,,,patient,7,25,0.28,", "nsaid-clinical,,,patient,7,25,0.29,"),
    "strata do not add up": spoil_text("results.csv", "cohort,sex,female,patient,16,25,0.64,", "cohort,sex,female,patient,15,25,0.6,"),
    "two overall rows": lambda files: {**files, "results.csv": files["results.csv"] + files["results.csv"].splitlines()[1] + "\n"},
    "another count in the report": spoil_report(lambda g, _: population(g["mtx-mri"], "numerator").update(count=5)),
    "initial population too small": spoil_report(lambda g, _: population(g["mtx-mri"], "initial-population").update(count=8)),
    "another score": spoil_report(lambda g, _: g["tnfi-clinical"]["measureScore"].update(value=0.5)),
    "a score of a count": spoil_report(lambda g, _: g["cohort"].update(measureScore={"value": 1})),
    "a stratum lost": spoil_report(lambda g, _: g["tnfi-clinical"]["stratifier"][0]["stratum"].pop()),
    "another count in a stratum": spoil_report(
        lambda g, _: population(g["foci"]["stratifier"][0]["stratum"][0], "initial-population").update(count=99)
    ),
    "a group lost": spoil_report(lambda _, report: report["group"].pop()),
    "another version of the Measure": spoil_report(lambda _, report: report.update(measure=f"{report['measure']}1")),
    "no reporter": spoil_report(lambda _, report: report.pop("reporter")),
    "reporter not contained": spoil_report(lambda _, report: report.update(reporter={"reference": "#nobody"})),
    "not FHIR": spoil_report(lambda _, report: report.update(nonsense=1)),
    "another type": spoil_report(lambda _, report: report.update(type="guess")),
    "another status": spoil_report(lambda _, report: report.update(status="final")),
    "another Library": spoil_text("measure.json", "Library/CrmoTreatmentEffect|", "Library/another|"),
    "another n on the page": spoil_text("report.html", '<tr id="tnfi-clinical">', '<tr id="tnfi">'),
    "another n in the statistics": spoil_text("statistics.csv", "sensitivity,mtx-mri,proportion,,,4,9,", "sensitivity,mtx-mri,proportion,,,5,9,"),
    "a value outside its interval": spoil_text("statistics.csv", "risk-difference,,,,49,0.41", "risk-difference,,,,49,0.71"),
    "a curve that goes back": spoil_text("statistics.csv", "survival,mtx,retained,,0,18,18,1.0,1.0,1.0", "survival,mtx,retained,,0,18,18,0.0,0.0,0.0"),
    "no number": spoil_text("statistics.csv", "risk-difference,,,,49,0.41", "risk-difference,,,,49,about 0.41"),
    "another header": spoil_text("statistics.csv", "analysis,group", "analysis,groups"),
    "more than all": spoil_text("statistics.csv", "reading,tnfi,re-starts,,,1,31,", "reading,tnfi,re-starts,,,32,31,"),
    "a child's count": spoil_child(lambda one: population(one["group"][0], "numerator").update(count=9)),
    "a child twice": lambda files: {
        **files, "individual-reports.ndjson": files["individual-reports.ndjson"] + files["individual-reports.ndjson"].splitlines()[0] + "\n"
    },
    "a resource that is not there": spoil_child(lambda one: one["evaluatedResource"][0].update(reference="Patient/none")),
    "a child left out of a list": lambda files: {
        **files,
        "subject-list-report.json": json.dumps(
            without_an_entry(json.loads(files["subject-list-report.json"]))
        ),
    },
}  # fmt: skip


def without_an_entry(listed):
    next(one for one in listed["contained"] if one["resourceType"] == "List")["entry"].pop()
    return listed


def test_files_that_agree_pass(whole):
    assert verify_outputs(texts(whole), keys(whole)) > 1000


@pytest.mark.parametrize("name", SPOILT)
def test_files_that_do_not_agree_are_refused(whole, name):
    spoilt = SPOILT[name](texts(whole))
    assert spoilt != texts(whole)
    with pytest.raises(IntegrityError, match="run 'crmo-fhir measure'"):
        verify_outputs(spoilt, keys(whole))


# ------------------------------------------------------------------------------------------------------------- a release


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    study = tmp_path_factory.mktemp("released") / "study"
    pipeline.demo(study)
    pipeline.release(study, Disclosure(5))
    return study


def texts_of_release(study: Path) -> dict[str, str]:
    return {name: (study / "release" / name).read_text("utf-8") for name in RELEASED}


def line_of(files: dict[str, str], start: str) -> str:
    return next(line for line in files["results.csv"].splitlines() if line.startswith(start))


def spoil_masked(made):
    """The masked row of methotrexate in results.csv, with something in it."""

    def spoilt(files: dict[str, str]) -> dict[str, str]:
        line = line_of(files, "mtx-clinical,,,")
        assert line.endswith(",masked"), line
        cells = line.split(",")
        made(cells)
        return {**files, "results.csv": files["results.csv"].replace(line, ",".join(cells))}

    return spoilt


def spoil_page(row: str, old: str, new: str):
    def spoilt(files: dict[str, str]) -> dict[str, str]:
        before, start, after = files["report.html"].partition(f'<tr id="{row}">')
        assert old in after
        return {**files, "report.html": before + start + after.replace(old, new, 1)}

    return spoilt


RELEASED_SPOILT = {
    "a small count is shown": spoil_masked(lambda cells: cells.__setitem__(4, "3")),
    "a share of what is masked": spoil_masked(lambda cells: cells.__setitem__(6, "0.1666")),
    "a count of the report is not masked": spoil_report(lambda g, _: population(g["mtx-clinical"], "numerator").update(count=3)),
    "a score of what is masked": spoil_report(lambda g, _: g["mtx-clinical"].update(measureScore={"value": 0.1666})),
    "a count on the page is not masked": spoil_page("mtx-clinical", "[c]", "3"),
    "strata above their group": spoil_text("results.csv", "cohort,sex,female,patient,16,25,0.64,", "cohort,sex,female,patient,26,26,1.0,"),
}  # fmt: skip


def test_a_release_that_is_whole_passes(crmo, released):
    assert verify_outputs(texts_of_release(released), keys(released), Disclosure(5)) > 500
    assert crmo("verify", released).code == 0


def test_a_release_has_no_statistics(released):
    assert (released / "statistics.csv").is_file()
    assert sorted(path.name for path in (released / "release").iterdir()) == sorted((*RELEASED, "outputs.json"))


@pytest.mark.parametrize("name", RELEASED_SPOILT)
def test_a_release_that_tells_of_what_it_masks_is_refused(released, name):
    spoilt = RELEASED_SPOILT[name](texts_of_release(released))
    assert spoilt != texts_of_release(released)
    with pytest.raises(IntegrityError):
        verify_outputs(spoilt, keys(released), Disclosure(5))


def test_masked_figures_are_no_study(released):
    with pytest.raises(IntegrityError, match="missing"):
        verify_outputs(texts_of_release(released), keys(released))


@pytest.mark.parametrize("name", RELEASED)
def test_a_changed_byte_of_a_release_is_found(crmo, released, tmp_path, name):
    study = Path(shutil.copytree(released, tmp_path / "study"))
    path = study / "release" / name
    path.write_text(path.read_text("utf-8") + " ", encoding="utf-8")
    ran = crmo("verify", study)
    assert ran.code == 6, ran.err
    assert f"release/{name}" in ran.err


def test_a_release_of_earlier_figures_is_said_to_be_one(crmo, released, tmp_path):
    study = Path(shutil.copytree(released, tmp_path / "study"))
    table = study / "cohort" / "build.json"
    table.write_text(landing._sealed({**json.loads(table.read_text()), "built": "again"}))
    assert crmo("measure", study).code == 0
    ran = crmo("verify", study)
    assert ran.code == 0, ran.err
    assert "earlier figures" in ran.err


# ---------------------------------------------------------------------------------------------------- the children's reports


def test_the_reports_of_the_children_name_what_their_counts_rest_on(whole):
    lines = [json.loads(line) for line in (whole / "individual-reports.ndjson").read_text().splitlines()]
    summary = json.loads((whole / "measure-report.json").read_text())
    cohort = next(g for g in summary["group"] if g["id"] == "cohort")
    assert len(lines) == cohort["population"][0]["count"]
    assert {one["type"] for one in lines} == {"individual"}
    assert len({one["id"] for one in lines} | {summary["id"]}) == len(lines) + 1
    named: Counter[str] = Counter()
    for one in lines:
        counted = {p["id"] for g in one["group"] for p in g["population"] if p["count"]}
        traced = {e["valueString"] for r in one["evaluatedResource"] for e in r["extension"]}
        assert traced >= {name for name in counted if not name.startswith("nsaid")}, "each count has its resources"
        assert traced <= counted
        named.update(r["reference"].split("/")[0] for r in one["evaluatedResource"])
    assert {"Patient", "Condition", "MedicationStatement", "Observation"} <= set(named)
