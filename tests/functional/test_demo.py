"""The main job on the demonstration: the figures of the source, computed from the records."""

import csv
import io
import json
import subprocess
import sys

import pytest
from support import OUTPUTS, PRINTED, ROOT

PUBLISHED = """
group          | stratifier    | stratum    | n  | N
cohort         |               |            | 25 | 25
cohort         | sex           | female     | 16 | 25
cohort         | sex           | male       | 9  | 25
cohort         | focality      | unifocal   | 14 | 25
cohort         | focality      | multifocal | 11 | 25
cohort         | sapho         | yes        | 6  | 25
foci           |               |            | 40 | 40
foci           | bone          | tibia      | 8  | 40
foci           | bone          | femur      | 7  | 40
foci           | bone          | clavicle   | 7  | 40
foci           | bone          | fibula     | 4  | 40
nsaid-clinical |               |            | 7  | 25
mtx-clinical   |               |            | 3  | 18
tnfi-clinical  |               |            | 18 | 31
mtx-mri        |               |            | 4  | 9
tnfi-mri       |               |            | 11 | 13
tnfi-lines     |               |            | 15 | 15
tnfi-lines     | line-reached  | 2          | 12 | 15
tnfi-lines     | line-reached  | 3          | 3  | 15
tnfi-lines     | line-ended    | 2          | 9  | 15
"""


def results(study):
    return list(csv.DictReader(io.StringIO((study / "results.csv").read_text(encoding="utf-8"))))


@pytest.mark.parametrize("row", PUBLISHED.strip().splitlines()[1:])
def test_the_figures_of_the_source(demo_study, row):
    group, stratifier, stratum, n, total = (cell.strip() for cell in row.split("|"))
    (found,) = [
        r for r in results(demo_study) if (r["group"], r["stratifier"], r["stratum"]) == (group, stratifier, stratum)
    ]
    assert (found["n"], found["N"]) == (n, total)


def test_every_file_of_the_design_is_there(demo_study):
    for name in (
        *("raw/manifest.json", "raw/ledger.csv", "raw/quarantine.ndjson", "raw/Patient.ndjson", "raw/Condition.ndjson"),
        *(f"cohort/{t}.parquet" for t in ("patients", "foci", "courses", "assessments", "labs", "imaging")),
        *("cohort/attrition.csv", "cohort/unmapped.csv", "cohort/sensitivity.csv"),
        *(*OUTPUTS, "library.json", "report.html"),
    ):
        assert (demo_study / name).is_file(), name


def test_every_group_has_one_overall_row_and_every_row_adds_up(demo_study):
    rows = results(demo_study)
    overall = [r["group"] for r in rows if not r["stratifier"]]
    assert sorted(overall) == sorted({r["group"] for r in rows})
    for row in rows:
        n, total = int(row["n"]), int(row["N"])
        assert 0 <= n <= total
        assert row["proportion"] == ("" if total == 0 else repr(n / total))
    for group in ("nsaid-clinical", "mtx-clinical", "tnfi-clinical", "mtx-mri", "tnfi-mri"):
        whole = next(r for r in rows if r["group"] == group and not r["stratifier"])
        for stratifier in ("agent", "line", "sex", "focality", "sapho"):
            parts = [r for r in rows if r["group"] == group and r["stratifier"] == stratifier]
            assert sum(int(r["n"]) for r in parts) == int(whole["n"]), (group, stratifier)
            assert sum(int(r["N"]) for r in parts) == int(whole["N"]), (group, stratifier)


def test_raw_holds_only_candidates(demo_study):
    manifest = json.loads((demo_study / "raw" / "manifest.json").read_text())
    landed = manifest["files"]["Patient.ndjson"]["count"]
    assert landed < manifest["source"]["records"]["Patient"] / 3
    assert manifest["complete"] is True


def test_every_course_names_records_that_were_landed(demo_study):
    import pyarrow.parquet as pq

    landed = set()
    for line in (demo_study / "raw" / "origins.ndjson").read_text(encoding="utf-8").splitlines():
        origin = json.loads(line)
        landed |= {f"{origin['type']}/{origin['id']}", f"{origin['base']}/{origin['type']}/{origin['id']}"}
    courses = pq.read_table(demo_study / "cohort" / "courses.parquet").to_pylist()
    assert len(courses) > 60
    for course in courses:
        assert course["sources"]
        assert set(course["sources"]) | set(course["assessments"]) <= landed


def test_printed_stands_beside_computed(demo_study):
    table = list(csv.DictReader(io.StringIO((demo_study / "table1.csv").read_text(encoding="utf-8"))))
    printed = list(csv.DictReader(io.StringIO(PRINTED.read_text(encoding="utf-8"))))
    assert len(table) >= len(printed) >= 28


def test_the_report_shows_each_group_with_its_counts(demo_study):
    import re

    html = (demo_study / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    rows = [re.sub(r"<[^>]+>", " ", row) for row in re.findall(r"<tr\b.*?</tr>", html, flags=re.DOTALL)]
    for n, total in ((7, 25), (3, 18), (18, 31), (4, 9), (11, 13)):
        assert any(re.search(rf"\b{n}\b\D{{1,40}}\b{total}\b", row) for row in rows), (n, total)


def test_the_screen_shows_the_counts_of_each_group(crmo, tmp_path):
    ran = crmo("demo", "-o", tmp_path / "study")
    assert (ran.code, ran.err) == (0, "")
    for group, shown in {
        "nsaid-clinical": "7/25",
        "mtx-clinical": "3/18",
        "tnfi-clinical": "18/31",
        "mtx-mri": "4/9",
        "tnfi-mri": "11/13",
    }.items():
        assert any(line.startswith(group) and shown in line for line in ran.out.splitlines())


def test_build_and_measure_again_give_the_same_bytes(crmo, tmp_path):
    study = tmp_path / "study"
    assert crmo("demo", "-q", "-o", study).code == 0
    before = {name: (study / name).read_bytes() for name in OUTPUTS}
    assert crmo("build", study).code == 0
    assert not (study / "results.csv").exists()
    assert crmo("measure", study, "--published", PRINTED).code == 0
    assert {name: (study / name).read_bytes() for name in OUTPUTS} == before


def test_no_figure_of_the_source_stands_in_the_program():
    import re

    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "src").rglob("*.j2")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(7/25|3/18|18/31|4/9|11/13|15, 12, 3|2011)\b", text), path


def test_help_is_light():
    code = (
        "import sys; sys.argv=['crmo-fhir','--help']\n"
        "from crmo_fhir import cli\n"
        "try:\n    cli.main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'pandas','duckdb','pydantic','ibis','requests','scipy','numpy','msgspec','jinja2','matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "extract" in ran.stdout


def test_records_of_a_folder_need_nothing_that_speaks_http():
    code = (
        "import sys\n"
        "from crmo_fhir.source import files\n"
        "assert not {'requests', 'urllib3', 'crmo_fhir.fhir.client'} & set(sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


# Each of the 28 quantities of the source: what the program computes, as it stands beside the printed figure.
QUANTITIES = """
id   | computed
Q01  | 25
Q02  | 25 of 25
Q03  | 25
Q04a | 16
Q04b | 9
Q05  | 8
Q06  | 7
Q07  | 7
Q08  | 4
Q09  | 40
Q10  | 14
Q11  | 1.60
Q12  | 14/25 (56.0 %)
Q13  | 11/25 (44.0 %)
Q14a | 6/25 (24.0 %)
Q14b | 4/25 (16.0 %)
Q15a | 7/25 (28.0 %)
Q15b | 7/25 (28.0 %)
Q16  | 18
Q17  | 3/18 (16.7 %)
Q18  | 15
Q19a | 12
Q19b | 9
Q20  | 3
Q21  | 15 of 15
Q22  | 31
Q23  | 18/31 (58.1 %)
Q24  | 9
Q25  | 4/9 (44.4 %)
Q26  | 13
Q27  | 11/13 (84.6 %)
Q28a | 8 of 25
Q28b | 0 of 25
Q28c | 25 of 25
Q28d | 25 of 25
"""


def test_each_of_the_28_quantities_is_exact_or_says_why_it_differs(demo_study):
    table = list(csv.DictReader(io.StringIO((demo_study / "table1.csv").read_text(encoding="utf-8"))))
    found = {row["id"]: row for row in table if row["id"]}
    wanted = dict([cell.strip() for cell in row.split("|")] for row in QUANTITIES.strip().splitlines()[1:])
    assert {name: row["computed"] for name, row in found.items()} == wanted
    assert {name[:3] for name in wanted} == {f"Q{number:02}" for number in range(1, 29)}
    for name in ("Q02", "Q19b", "Q21", "Q27", *(f"Q28{part}" for part in "abcd")):
        assert found[name]["note"], f"{name} is not printed so: the reason stands beside it"


STATISTICS = """
analysis   | group         | statistic           | stratum | n  | N  | value | low   | high
comparison | clinical      | risk-difference     |         |    | 49 | 0.414 | 0.130 | 0.603
comparison | clinical      | fisher-p            |         |    | 49 | 0.007 |       |
comparison | mri           | risk-difference     |         |    | 22 | 0.402 | 0.007 | 0.680
comparison | mri           | fisher-p            |         |    | 22 | 0.074 |       |
reading    | tnfi          | courses             |         | 31 | 31 |       |       |
reading    | tnfi          | lines               |         | 30 | 30 |       |       |
reading    | tnfi          | ended-at            | 1       | 3  | 15 |       |       |
reading    | tnfi          | ended-at            | 2       | 9  | 15 |       |       |
reading    | tnfi          | ended-at            | 3       | 3  | 15 |       |       |
reading    | tnfi          | re-starts           |         | 1  | 31 |       |       |
reading    | tnfi          | evaluable           |         | 31 | 31 |       |       |
reading    | tnfi          | mri                 |         | 13 | 31 |       |       |
switch     | tnfi          | inefficacy          | 1>2     | 8  | 16 | 0.500 |       |
switch     | tnfi          | adverse_event       | 2>3     | 2  | 12 | 0.167 |       |
sensitivity | tnfi-clinical | proportion         |         | 18 | 31 | 0.581 | 0.408 | 0.736
sensitivity | tnfi-mri     | proportion | evaluability=worst | 11 | 31 | 0.355 | 0.211 | 0.531
"""


@pytest.mark.parametrize("row", STATISTICS.strip().splitlines()[1:])
def test_the_statistics_of_the_source(demo_study, row):
    names = [name.strip() for name in STATISTICS.strip().splitlines()[0].split("|")]
    wanted = dict(zip(names, (cell.strip() for cell in row.split("|")), strict=True))
    rows = csv.DictReader(io.StringIO((demo_study / "statistics.csv").read_text(encoding="utf-8")))
    (found,) = [r for r in rows if all(r[name] == wanted[name] for name in names[:4]) and not r["time"]]
    shown = {
        name: f"{float(cell):.3f}" if (cell := found[name]) and name in names[6:] else found[name] for name in names
    }
    assert shown == wanted
