"""The export room: what is written says what the results say, is safe to open, and is the same every time."""

import base64
import csv
import io
import json
import re
from dataclasses import replace
from datetime import date
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cql import build as cql_build
from hypothesis import given
from hypothesis import strategies as st

from crmo_fhir.artifacts import Artifacts
from crmo_fhir.errors import IncompleteError, IntegrityError, UsageError
from crmo_fhir.export.measure_report import build_measure_report, checked, to_json
from crmo_fhir.export.report import report_html
from crmo_fhir.export.results import read_results, results_csv
from crmo_fhir.export.table1 import TREATMENT_GROUPS, compare, round_half_away, table1_csv
from crmo_fhir.fhir.codings import SNOMED, Coding
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.results import Result
from crmo_fhir.model.study import Study

MAPPINGS = Path(__file__).parents[2] / "mappings"
MEASURES = MAPPINGS / "measures"
MEASURE: dict[str, Any] = json.loads((MEASURES / "crmo-treatment-effect.json").read_text(encoding="utf-8"))
LIBRARY: dict[str, Any] = json.loads((MEASURES / "crmo-treatment-effect-library.json").read_text(encoding="utf-8"))


def share(group: str, unit: str, n: int, total: int, stratifier: str = "", stratum: str = "") -> Result:
    """n of N with an interval that is only a placeholder."""
    if not total:
        return Result(group, unit, n, total, stratifier, stratum, note="no proportion: nothing to count (0/0)")
    p = n / total
    return Result(group, unit, n, total, stratifier, stratum, p, max(0.0, p - 0.125), min(1.0, p + 0.125), "wilson")


def count(group: str, unit: str, n: int) -> Result:
    """A group that is only counted."""
    return Result(group, unit, n, n, proportion=1.0 if n else None)


RESULTS = [
    count("cohort", "patient", 20),
    *(share("cohort", "patient", n, 20, "sex", s) for s, n in (("female", 12), ("male", 8), ("other", 0))),
    *(share("cohort", "patient", n, 20, "focality", s) for s, n in (("unifocal", 11), ("multifocal", 9))),
    *(share("cohort", "patient", n, 20, "sapho", s) for s, n in (("yes", 3), ("no", 17))),
    count("foci", "focus", 33),
    *(share("foci", "focus", n, 33, "bone", s) for s, n in (("femur", 14), ("tibia", 19))),
    *(share("foci", "patient", n, 20, "bone-patients", s) for s, n in (("femur", 12), ("tibia", 16))),
    share("nsaid-clinical", "patient", 5, 20),
    share("nsaid-clinical", "patient", 4, 12, "sex", "female"),
    share("nsaid-clinical-exposed", "patient", 5, 18),
    count("nsaid-clinical-treated", "patient", 18),
    share("mtx-clinical", "patient", 1, 8),
    share("mtx-clinical", "patient", 1, 5, "sex", "female"),
    share("mtx-clinical", "patient", 0, 3, "sex", "male"),
    share("mtx-clinical", "patient", 0, 0, "sex", "other"),
    count("mtx-clinical-treated", "patient", 10),
    share("mtx-clinical-not-evaluable", "patient", 2, 10),
    share("tnfi-clinical", "course", 9, 14),
    share("tnfi-clinical", "course", 3, 6, "agent", "etanercept"),
    share("tnfi-clinical", "course", 6, 8, "agent", "unknown"),
    share("tnfi-clinical", "course", 9, 14, "line", "1"),
    count("tnfi-clinical-treated", "course", 14),
    share("tnfi-clinical-worst-case", "course", 9, 14),
    share("tnfi-clinical-patients", "patient", 6, 7),
    share("mtx-mri", "MRI-evaluated course", 2, 6),
    share("tnfi-mri", "MRI-evaluated course", 0, 0),
    count("tnfi-lines", "patient", 7),
    *(share("tnfi-lines", "patient", n, 7, "line-reached", s) for s, n in (("1", 7), ("2", 4))),
    *(share("tnfi-lines", "patient", n, 7, "line-ended", s) for s, n in (("1", 3), ("2", 4))),
]
EMPTY = [
    *(count(g, u, 0) for g, u in (("cohort", "patient"), ("foci", "focus"), ("tnfi-lines", "patient"))),
    *(share(g, "patient", 0, 0) for g in TREATMENT_GROUPS),
]
HOSTILE = "<script>x</script></title><img src=x onerror=y>\u202e=1+1\x1b\x00"
STUDY = Study(
    parameters=Parameters(since=date(2003, 1, 1), gap_days=61),
    start=date(2003, 1, 1),
    end=date(2009, 12, 31),
    data_lock=date(2010, 6, 30),
    complete=True,
    reporter="Paediatric <unit> & co",
    program_version="0.1.0",
    source_kind="folder",
    attrition=(
        {"step": "records: MedicationStatement", "reason": "end before start", "kept": 9406, "dropped": 6},
        {"step": "candidates", "reason": None, "kept": 7311, "dropped": 0},
        {"step": "confirmed", "reason": "refuted", "kept": 7202, "dropped": 109},
        {"step": "confirmed", "reason": "entered-in-error", "kept": 7177, "dropped": 25},
        {"step": "cohort", "reason": "", "kept": 7177, "dropped": 0},
        {"step": "courses", "reason": "", "kept": 818, "dropped": 0},
        {"step": "assessments", "reason": HOSTILE, "kept": 617, "dropped": 4},
    ),
    unmapped=(
        {"system": "urn:a", "code": "b", "display": HOSTILE, "resource_type": "Condition", "count": 3},
        {"system": None, "code": "a", "display": None, "resource_type": "Condition", "count": 41},
    ),
    ledger={"complete": 90, "refused": 2},
    warnings=(HOSTILE,),
)
PRINTED = [
    {
        "id": "a",
        "quantity": "MTX",
        "printed": "12 %",
        "group": "mtx-clinical",
        "show": "n of N (percent)",
        "note": "cut",
    },
    {
        "id": "b",
        "quantity": "Foci per patient",
        "printed": "1,7",
        "group": "foci-per-patient",
        "show": "mean",
        "note": "",
    },
    {"id": "c", "quantity": "Blood tests", "printed": "none", "group": "", "show": "", "note": ""},
    {"id": "d", "quantity": "Other", "printed": "1", "group": "no-such-group", "show": "n", "note": ""},
]
for _row in PRINTED:
    _row |= {"stratifier": "", "stratum": ""}


class Page(HTMLParser):
    """What a browser would find: elements, attributes and the cells of each table row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th"}:
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data.strip()


# ---- results.csv ----


def test_results_are_written_as_they_are() -> None:
    text = results_csv([share("mtx-clinical", "patient", 1, 3, "sex", "male"), count("cohort", "patient", 0)])
    assert text == (
        "group,stratifier,stratum,unit,n,N,proportion,ci_low,ci_high,ci_method,note\n"
        "mtx-clinical,sex,male,patient,1,3,0.3333333333333333,0.20833333333333331,0.4583333333333333,wilson,\n"
        "cohort,,,patient,0,0,,,,,\n"
    )


def test_text_that_a_spreadsheet_would_run_is_defused() -> None:
    text = results_csv([replace(share("g", "patient", 1, 2), note="=1+1", stratum="@x", unit='a,"b"\r\n')])
    assert "'=1+1\n" in text
    assert ",'@x," in text
    assert '"a,""b""\r\n"' in text


@given(
    st.lists(
        st.builds(
            Result,
            group=st.text(),
            unit=st.text(),
            n=st.integers(0, 10**6),
            N=st.integers(0, 10**6),
            stratifier=st.text(),
            stratum=st.text(alphabet="'=+-@\t\r\n\"a, "),
            proportion=st.none() | st.floats(0, 1),
            ci_low=st.none() | st.floats(0, 1),
            ci_high=st.none() | st.floats(0, 1),
            ci_method=st.text(),
            note=st.text(),
        ),
        max_size=4,
    )
)
def test_results_come_back_exactly(results: list[Result]) -> None:
    assert read_results(results_csv(results)) == results


@pytest.mark.parametrize(
    "change", [("group", "grupp"), (",8,", ",eight,"), (",8,", ","), ("0.125", "nan"), (",8,", ",8,8,")]
)
def test_a_spoilt_results_file_is_refused(change: tuple[str, str]) -> None:
    text = results_csv([share("mtx-clinical", "patient", 1, 8)]).replace(*change, 1)
    with pytest.raises(IntegrityError, match=r"results\.csv, line [12]"):
        read_results(text)


# ---- rounding and table1.csv ----


@pytest.mark.parametrize(
    ("value", "decimals", "shown"),
    [
        (0.125, 2, "0.13"),
        (-0.125, 2, "-0.13"),
        (2.675, 2, "2.68"),  # the binary double lies below; what is written is what is rounded
        (0.5, 0, "1"),
        (-0.04, 1, "0.0"),
        (Fraction(1, 16) * 100, 1, "6.3"),
        (Fraction(2, 3) * 100, 1, "66.7"),
        (1e-5, 4, "0.0000"),
    ],
)
def test_halves_go_away_from_zero(value: Fraction | float, decimals: int, shown: str) -> None:
    assert round_half_away(value, decimals) == shown


def test_table1_names_every_quantity() -> None:
    rows = {row["quantity"]: row for row in csv.DictReader(io.StringIO(table1_csv(RESULTS)))}
    assert rows["Methotrexate, sufficient clinical effect"] | {"note": ""} == {
        "quantity": "Methotrexate, sufficient clinical effect",
        "unit": "patient",
        "n": "1",
        "N": "8",
        "percent": "12.5",
        "ci_low_percent": "0.0",
        "ci_high_percent": "25.0",
        "ci_method": "wilson",
        "mean": "",
        "not_evaluable": "2",
        "note": "",
    }
    assert rows["Foci per patient"]["mean"] == "1.65"
    assert rows["Patients in the cohort"]["percent"] == ""
    assert rows["TNF-α inhibitor, regression on MRI"]["percent"] == ""
    assert rows["TNF-α line reached: 2"]["n"] == "4"
    assert rows["Foci by bone: tibia"]["N"] == "33"


def test_bones_stand_most_frequent_first() -> None:
    names = [row["quantity"] for row in csv.DictReader(io.StringIO(table1_csv(RESULTS)))]
    assert [name for name in names if name.startswith("Foci by bone")] == ["Foci by bone: tibia", "Foci by bone: femur"]


def test_a_printed_denominator_is_a_count() -> None:
    treated = {**PRINTED[0], "quantity": "Patients evaluated", "show": "N"}
    row = next(csv.DictReader(io.StringIO(table1_csv(RESULTS, [treated]))))
    assert (row["computed"], row["n"], row["N"]) == ("8", "8", "8")
    assert not any(row[name] for name in ("percent", "ci_low_percent", "ci_method", "not_evaluable"))


def test_printed_figures_stand_beside_ours() -> None:
    assert [row["computed"] for row in compare(RESULTS, PRINTED)] == ["1 of 8 (12.5 %)", "1.65", "", "not computed"]
    rows = list(csv.DictReader(io.StringIO(table1_csv(RESULTS, PRINTED))))
    assert [row["id"] for row in rows[:5]] == ["a", "b", "c", "d", ""]
    assert (rows[0]["printed"], rows[0]["computed"], rows[0]["N"], rows[0]["note"]) == (
        "12 %",
        "1 of 8 (12.5 %)",
        "8",
        "cut",
    )
    names = [row["quantity"] for row in rows]
    assert "Methotrexate, sufficient clinical effect" not in names, "a quantity stands once"
    assert "Patients in the cohort" in names


def test_published_figures_of_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match="published figures, row 2"):
        table1_csv(RESULTS, [PRINTED[0], {"id": "x"}])
    with pytest.raises(UsageError, match="row 1"):
        report_html(RESULTS, STUDY, [{**PRINTED[0], "note": None}])  # type: ignore[dict-item]


# ---- Measure and Library ----


def library_content() -> dict[str, bytes]:
    """What the Library holds by content type."""
    return {c["contentType"]: base64.b64decode(c["data"]) for c in LIBRARY["content"]}


def test_the_library_holds_the_cql_source() -> None:
    assert library_content()["text/cql"] == cql_build.SOURCE.read_bytes()


def test_the_artifacts_are_those_of_their_build_script() -> None:
    content = library_content()
    assert cql_build.measure() == MEASURE
    source = content["text/cql"].decode()
    assert cql_build.library(source, content["application/elm+json"], content["application/elm+xml"]) == LIBRARY


def test_the_library_defines_what_the_measure_names() -> None:
    content = {kind: data.decode() for kind, data in library_content().items()}
    elm = json.loads(content["application/elm+json"])["library"]
    defined = {d["name"] for d in elm["statements"]["def"]}
    parts = [part for g in MEASURE["group"] for part in (*g["population"], *g["stratifier"])]
    named = {part["criteria"]["expression"] for part in parts}
    assert named <= defined
    for name in named:
        assert f"define {name}:" in content["text/cql"] or f"define function {name}(" in content["text/cql"]
        assert f'name="{name}"' in content["application/elm+xml"]
    for name in defined:
        assert name in content["text/cql"]
    assert MEASURE["library"] == [f"{LIBRARY['url']}|{LIBRARY['version']}"]
    assert elm["identifier"] == {"id": LIBRARY["name"], "version": LIBRARY["version"]}


def test_the_value_sets_carry_the_expansions_of_the_build_script() -> None:
    found = cql_build.value_sets()
    assert {path.stem for path in found} >= {"crmo", "sapho", "nsaid", "mtx", "tnf", "bp", "gc"}
    for path in found:
        text = path.read_text(encoding="utf-8")
        assert json.loads(text)["expansion"]["contains"]
        assert path.stem in cql_build.EXPANDED_BY_HAND or cql_build.with_expansion(text) == text


def test_an_expansion_holds_what_its_value_set_holds() -> None:
    artifacts = Artifacts.load()
    for path in cql_build.value_sets():
        value_set = json.loads(path.read_text(encoding="utf-8"))
        drug_class = {"nsaid": "NSAID", "mtx": "MTX", "tnf": "TNF", "bp": "BP", "gc": "GC"}.get(path.stem)
        for one in value_set["expansion"]["contains"]:
            coding = Coding(one["system"], one["code"])
            if drug_class:
                assert (artifacts.drug(coding) or ("", ""))[1] == drug_class, one
            else:
                assert artifacts.value_set(path.stem).contains(coding), one


@pytest.mark.parametrize("name", ["bone", "clinical-effect", "mri-effect"])
def test_the_cql_knows_every_code_of_the_map(name: str) -> None:
    cql = cql_build.SOURCE.read_text(encoding="utf-8")
    functions = {"bone": "BoneOf", "clinical-effect": "EffectAnswer", "mri-effect": "MriAnswer"}
    body = cql.partition(f"define function {functions[name]}(")[2].partition("\ndefine")[0]
    placed = {
        code: answer
        for codes, answer in re.findall(r"X\.code\.value (?:in \{([^}]*)\}|=)[^\n]*? then '([a-z-]+)'", body)
        for code in re.findall(r"'(\d+)'", codes)
    } | dict(re.findall(r"X\.code\.value = '(\d+)' then '([a-z-]+)'", body))
    groups = json.loads((MAPPINGS / "conceptmaps" / f"{name}.json").read_text(encoding="utf-8"))["group"]
    known = {e["code"]: e["target"][0]["code"] for g in groups if g["source"] == SNOMED for e in g["element"]}
    assert placed == known


def test_the_cql_knows_every_agent_and_every_failure_of_the_maps() -> None:
    cql = cql_build.SOURCE.read_text(encoding="utf-8")
    maps = {
        n: json.loads((MAPPINGS / "conceptmaps" / f"{n}.json").read_text("utf-8")) for n in ("agent", "stop-reason")
    }
    tnf = ("etanercept", "infliximab", "adalimumab", "certolizumab pegol", "golimumab")
    told = re.findall(r"X\.code\.value in \{([^}]*)\} then '([a-z ]+)'", cql.partition("function CourseAgent(")[2])
    assert {agent: sorted(re.findall(r"'(\w+)'", codes)) for codes, agent in told} == {
        agent: sorted(
            e["code"] for g in maps["agent"]["group"] for e in g["element"] if e["target"][0]["code"] == agent
        )
        for agent in tnf
    }
    body = cql.partition("define function StoppedForFailure(")[2].partition("\ndefine")[0]
    listed = {code for codes in re.findall(r"in \{([^}]*)\}", body) for code in re.findall(r"'(\w+)'", codes)}
    assert listed == {
        e["code"]
        for g in maps["stop-reason"]["group"]
        for e in g["element"]
        if e["target"][0]["code"] in {"inefficacy", "adverse_event"} and not g["source"].endswith("/text")
    }


def test_artifacts_are_written_as_they_ship() -> None:
    assert json.loads(to_json(checked(MEASURE))) == MEASURE
    assert json.loads(to_json(checked(LIBRARY))) == LIBRARY


def test_an_artifact_that_is_no_fhir_is_refused() -> None:
    with pytest.raises(UsageError, match="the Measure is not valid FHIR R4 at group"):
        checked({**MEASURE, "group": [{"population": [{"count": 1}]}]})
    with pytest.raises(UsageError, match="no FHIR R4 resource type"):
        checked({"resourceType": "Nothing"})


# ---- MeasureReport ----


def groups(report: dict[str, Any]) -> dict[str, Any]:
    """The groups of a report by id."""
    return {group["id"]: group for group in report["group"]}


def counts(element: dict[str, Any]) -> dict[str, int]:
    """The counts of a group or stratum by population."""
    return {p["code"]["coding"][0]["code"]: p["count"] for p in element["population"]}


def test_counts_and_scores() -> None:
    report = groups(build_measure_report(RESULTS, STUDY, MEASURE))
    assert list(report) == [group["id"] for group in MEASURE["group"]]
    assert counts(report["nsaid-clinical"]) == {"initial-population": 20, "denominator": 20, "numerator": 5}
    assert counts(report["mtx-clinical"]) == {"initial-population": 10, "denominator": 8, "numerator": 1}
    assert counts(report["tnfi-clinical"]) == {"initial-population": 14, "denominator": 14, "numerator": 9}
    assert counts(report["mtx-mri"]) == {"initial-population": 6, "denominator": 6, "numerator": 2}
    assert counts(report["cohort"]) == {"initial-population": 20}
    assert counts(report["foci"]) == {"initial-population": 33}
    assert report["mtx-clinical"]["measureScore"]["value"] == 0.125
    assert "measureScore" not in report["tnfi-mri"], "0/0 has no score"
    assert "measureScore" not in report["cohort"]
    interval = report["mtx-clinical"]["measureScore"]["extension"][0]["extension"]
    assert interval[0] == {"url": "confidence", "valueDecimal": 95}
    assert interval[1]["valueRange"] == {"low": {"value": 0.0}, "high": {"value": 0.25}}


def test_strata() -> None:
    report = groups(build_measure_report(RESULTS, STUDY, MEASURE))
    sex = {s["value"]["text"]: s for s in report["mtx-clinical"]["stratifier"][0]["stratum"]}
    assert counts(sex["female"]) == {"denominator": 5, "numerator": 1}, "who was treated is not known by stratum"
    assert sex["female"]["value"]["coding"][0]["system"] == "http://hl7.org/fhir/administrative-gender"
    assert "measureScore" not in sex["other"]
    agents = {s["value"]["text"]: s for s in report["tnfi-clinical"]["stratifier"][0]["stratum"]}
    assert counts(agents["unknown"]) == {"initial-population": 8, "denominator": 8, "numerator": 6}
    bones = {s["value"]["text"]: counts(s) for s in report["foci"]["stratifier"][0]["stratum"]}
    assert bones == {"femur": {"initial-population": 14}, "tibia": {"initial-population": 19}}
    assert all("component" not in s for g in report.values() for f in g["stratifier"] for s in f.get("stratum", ()))


def test_identity_and_dates_come_from_the_study() -> None:
    report = build_measure_report(RESULTS, STUDY, MEASURE)
    assert report["measure"] == "https://crmo-fhir.org/Measure/crmo-treatment-effect|0.4.0"
    assert report["date"] == "2010-06-30"
    assert report["period"] == {"start": "2003-01-01", "end": "2009-12-31"}
    assert report["identifier"][0]["system"] == "https://crmo-fhir.org/measure-report"
    assert report["id"] == f"crmo-{report['identifier'][0]['value'][:32]}"
    assert report["reporter"] == {"reference": "#reporter"}
    names = [r["id"] for r in report["contained"]]
    assert names == ["crmo-fhir", "reporter", "parameters", "completeness"]
    assert not {"evaluatedResource", "subject"} & set(report)
    other = build_measure_report(EMPTY, replace(STUDY, data_lock=None, program_version="9"), MEASURE)
    assert other["identifier"] == report["identifier"], "the identity is measure, version, period and reporter"
    assert other["date"] == "2009-12-31"
    named = build_measure_report(RESULTS, replace(STUDY, reporter_reference="Organization/7"), MEASURE)
    assert named["identifier"] != report["identifier"]
    assert named["reporter"] == {"reference": "Organization/7"}
    assert [r["id"] for r in named["contained"]] == ["crmo-fhir", "parameters", "completeness"]


def test_the_report_states_its_parameters_and_whether_it_is_whole() -> None:
    report = build_measure_report(RESULTS, STUDY, MEASURE)
    contained = {r["id"]: r for r in report["contained"]}
    given = {p["name"]: p for p in contained["parameters"]["parameter"]}
    assert given["gap_days"] == {"name": "gap_days", "valueInteger": STUDY.parameters.gap_days}
    assert given["infusion_interval_days"]["part"] == [{"name": "infliximab", "valueInteger": 56}]
    assert [i["severity"] for i in contained["completeness"]["issue"]] == ["information"]
    partial = build_measure_report(RESULTS, replace(STUDY, complete=False, ledger={"refused": 3}), MEASURE)
    issue = next(r for r in partial["contained"] if r["id"] == "completeness")["issue"][0]
    assert (partial["status"], issue["severity"], issue["code"]) == ("pending", "warning", "incomplete")
    assert "refused 3" in issue["details"]["text"]


def test_the_narrative_says_the_counts_in_words() -> None:
    page = Page(build_measure_report(RESULTS, STUDY, MEASURE)["text"]["div"])
    methotrexate = "Sufficient clinical effect of methotrexate; unit: patient"
    assert [methotrexate, "1", "8", "12.5", "0.0–25.0", "10"] in page.rows
    assert ["– Sex: female", "1", "5", "20.0", "7.5–32.5", ""] in page.rows
    assert not any(row[0] == "– Sex: other" and row[2] == "0" for row in page.rows), "nobody to count"


def test_an_empty_cohort_and_a_hostile_name() -> None:
    report = build_measure_report(EMPTY, replace(STUDY, reporter=HOSTILE), MEASURE)
    assert all(not any(counts(group).values()) and "measureScore" not in group for group in report["group"])
    assert "<script" not in report["text"]["div"]
    assert "\x1b" not in to_json(report)


def test_the_same_results_give_the_same_bytes() -> None:
    texts = {to_json(build_measure_report(RESULTS, STUDY, MEASURE)) for _ in range(2)}
    assert len(texts) == 1
    text = texts.pop()
    assert text.endswith("}\n")
    assert list(json.loads(text))[:4] == ["resourceType", "id", "meta", "text"]


def test_results_that_contradict_themselves_are_refused() -> None:
    spoilt = [replace(r, n=3, N=3) if r.group == "mtx-clinical-treated" else r for r in RESULTS]
    with pytest.raises(IncompleteError, match="mtx-clinical"):
        build_measure_report(spoilt, STUDY, MEASURE)
    with pytest.raises(IncompleteError, match="no overall row of `foci`"):
        build_measure_report([r for r in RESULTS if r.group != "foci"], STUDY, MEASURE)


# ---- report.html ----


def test_each_treatment_group_is_a_row() -> None:
    page = Page(report_html(RESULTS, STUDY))
    rows = {row[0]: row[1:] for row in page.rows if len(row) == 8}
    assert rows["Methotrexate, sufficient clinical effect"][:5] == ["patients", "1", "8", "12.5", "0.0–25.0"]
    assert rows["Methotrexate, sufficient clinical effect"][-1] == "2 of 10"
    for group, name in TREATMENT_GROUPS.items():
        (own,) = [r for r in RESULTS if r.group == group and not r.stratifier]
        (cells,) = [cells for first, cells in rows.items() if first.startswith(name)]
        assert cells[1:3] == [str(own.n), str(own.N)]


def test_the_attrition_stands_in_the_order_a_reader_asks() -> None:
    page = Page(report_html(RESULTS, STUDY))
    start = page.rows.index(["Patients"])
    assert page.rows[start : start + 11] == [
        ["Patients"],
        ["Candidates", "", "0", "7311"],
        ["Diagnosis confirmed", "refuted", "109", "7202"],
        ["Diagnosis confirmed", "entered in error", "25", "7177"],
        ["Cohort", "", "0", "7177"],
        ["Records"],
        ["Medication statement", "end before start", "6", "9406"],
        ["Treatment courses"],
        ["Courses", "", "0", "818"],
        ["Assessments of effect"],
        ["Assessments", page.rows[start + 10][1], "4", "617"],
    ]


def test_strata_stand_in_one_table() -> None:
    page = Page(report_html(RESULTS, STUDY))
    rows = {row[0]: row for row in page.rows if len(row) == 6}
    assert rows["etanercept"] == ["etanercept", "", "", "3/650.0\xa0%(37.5–62.5)", "", ""]
    assert rows["male"][2] == "0/30.0\xa0%(0.0–12.5)"
    assert rows["female"][1] == "", "all of that column are in the one stratum it has"
    assert "1" not in rows, "one line only divides nothing"


def test_readings_and_parameters_are_shown() -> None:
    page = Page(report_html(RESULTS, STUDY, PRINTED))
    assert ["MTX", "12 %", "1 of 8 (12.5 %)", "cut"] in page.rows
    assert ["Blood tests", "none", "–", ""] in page.rows
    assert ["Gap that begins a new course of the same agent (days)", "61", "90"] in page.rows
    assert ["refused by the server", "2"] in page.rows
    start = page.rows.index(["TNF-α inhibitor, sufficient clinical effect"])
    readings = [row[0] for row in page.rows[start + 1 : start + 4]]
    assert readings == [
        "As in the first table",
        "Worst case: not evaluable counted as no effect",
        "By patient: effect in any course",
    ]
    assert "Published figures" not in report_html(RESULTS, STUDY)


def test_unmapped_codes_stand_most_frequent_first() -> None:
    counts_shown = [
        row[-1] for row in Page(report_html(RESULTS, STUDY)).rows if len(row) == 5 and row[3] == "Condition"
    ]
    assert counts_shown == ["41", "3"]


def test_a_figure_without_a_place_is_shown_all_the_same() -> None:
    page = Page(report_html([*RESULTS, share("new-figure", "patient", 2, 4)], STUDY))
    assert ["new-figure", "patients", "2", "4", "50.0", "37.5–62.5"] in page.rows


def test_every_parameter_has_a_name_in_words() -> None:
    names = {row[0] for row in Page(report_html(RESULTS, STUDY)).rows if row}
    assert not names & set(Parameters.__dataclass_fields__)


def test_nothing_in_the_page_runs_or_leaves() -> None:
    text = report_html(RESULTS, replace(STUDY, reporter=HOSTILE, complete=False), PRINTED)
    assert text.startswith("<!DOCTYPE html>")
    page = Page(text)
    assert not {"script", "img", "iframe", "link", "form", "image", "foreignobject"} & set(page.tags)
    assert page.tags.count("style") == 1
    names = {name for name, _ in page.attributes}
    assert not any(name.startswith("on") for name in names)
    assert not {"src", "action", "xlink:href"} & names
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    led = [value or "" for name, value in page.attributes if name == "href"]
    led += re.findall(r"url\(([^)]*)\)", text)
    assert led
    assert {place.removeprefix("#") for place in led} <= set(ids), "every link stays on the page"
    assert "http:" not in text
    assert "https:" not in text
    assert not set("\u202e\x1b\x00") & set(text)
    assert "Incomplete." in text


def test_the_page_of_an_empty_cohort() -> None:
    bare = replace(STUDY, attrition=(), unmapped=(), ledger={}, warnings=(), data_lock=None)
    page = Page(report_html(EMPTY, bare))
    assert any(row[:4] == ["NSAID, sufficient clinical effect", "patients", "0", "0"] for row in page.rows)
    assert "not computed" in report_html([], bare)


def test_the_order_of_input_does_not_matter() -> None:
    turned = replace(STUDY, unmapped=STUDY.unmapped[::-1], ledger=dict(sorted(STUDY.ledger.items(), reverse=True)))
    assert report_html(RESULTS, turned) == report_html(RESULTS, STUDY)
