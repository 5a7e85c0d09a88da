"""The report in its languages, and with all that an analysis holds."""

import ast
import csv
import io
import json
import re
import string
import subprocess
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path

import analyses
import pytest
from support import DRAWN, PRINTED, ROOT
from unit.test_export import EMPTY, HOSTILE, RESULTS, STUDY, Page

from crmo_fhir.export import charts, checklist, report, sections, table1
from crmo_fhir.export.report import report_html
from crmo_fhir.export.texts import LANGUAGES, Texts
from crmo_fhir.model.results import NO_ANALYSIS, Analysis, Bar, Estimate, Timeline, Trend
from crmo_fhir.model.study import Disclosure
from crmo_fhir.model.tables import EFFECTS, FOCALITIES, SEXES

EXPORT = ROOT / "src" / "crmo_fhir" / "export"
CATALOGUE = json.loads((EXPORT / "texts" / "da.json").read_text(encoding="utf-8"))
ANALYSIS = analyses.random_children(6)


def literals(path: Path) -> set[str]:
    """The texts that a module hands to `t`."""
    return {
        node.args[0].value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "t"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }


def words() -> set[str]:
    """Every text that stands in the program and may come to the page."""
    found = literals(EXPORT / "report.py") | literals(EXPORT / "sections.py")
    template = (EXPORT / "templates" / "report.html.j2").read_text(encoding="utf-8")
    found |= set(re.findall(r'\bt\("([^"]*)"', template))
    for names in (
        *(sections.CLASSES, sections.EFFECTS, sections.ANALYTES, sections.UNITS, sections.GROUPS, sections.STATISTICS),
        *(
            sections.FLAGS,
            sections.MENTIONED,
            sections.SOURCES,
            report._UNITS,
            report._READINGS,
            report._NOTES,
            report._STEPS,
        ),
        *(report._REASONS, report._LATER_STEPS, report._STATES, report._PARAMETERS, report._RULES, report._RULE_VALUES),
        *(table1.STRATIFIERS, table1.TREATMENT_GROUPS),
    ):
        found |= set(names.values())
    found |= {text for stop in sections.STOPS.values() for text in stop} | (
        set(sections.SAID.values()) - set(sections.INTERVALS.values())
    )
    found |= {text for item in checklist.RECORD for text in (item.asked, item.said, item.add)}
    found |= {about for item in checklist.RECORD for _, about in item.sections} | set(checklist.SECTIONS.values())
    found |= {*SEXES, *FOCALITIES, "yes", "no"}
    return found - {""}


def codes(name: str) -> set[str]:
    """What a concept map places things on."""
    concept_map = json.loads((ROOT / "mappings" / "conceptmaps" / f"{name}.json").read_text(encoding="utf-8"))
    return {
        target["code"] for group in concept_map["group"] for element in group["element"] for target in element["target"]
    }


def told(texts: Texts, text: str) -> bool:
    return text in texts._catalogue or any(form.fullmatch(text) for form, _ in texts._forms)


def test_every_text_is_translated():
    danish = Texts("da")
    assert sorted(text for text in words() if not told(danish, text)) == []


@pytest.mark.parametrize("name", ["agent", "bone"])
def test_every_drug_and_bone_has_a_danish_name(name):
    assert sorted(code for code in codes(name) if not told(Texts("da"), code)) == []


def test_every_stop_reason_effect_and_analyte_has_a_name():
    assert codes("stop-reason") | {"ongoing", "both", "unknown"} == set(sections.STOPS)
    assert set(EFFECTS) == set(sections.EFFECTS)
    assert codes("analyte") <= set(sections.ANALYTES)


def test_every_flag_of_a_course_has_a_name():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src/crmo_fhir/cohort").glob("*.py")]
    added = {flag for text in sources for flag in re.findall(r'flags\.add\("([^"]+)"\)', text)}
    assert len(added) > 12
    assert added - set(sections.FLAGS) == set()


def test_flags_are_counted_on_the_page():
    analysis = Analysis(
        (
            Estimate("flag", "courses", "stale", n=3, N=9, note="courses with this flag"),
            Estimate("flag", "courses", "a flag of tomorrow", n=1, N=9, note="courses with this flag"),
        )
    )
    page = unescape(report_html(RESULTS, STUDY, None, analysis))
    assert '<th scope="row">Ongoing, but nothing recorded of the child for long</th><td class="num">3/9</td>' in page
    assert '<th scope="row">a flag of tomorrow</th><td class="num">1/9</td>' in page
    assert "What to know of the courses" not in unescape(report_html(RESULTS, STUDY, None, NO_ANALYSIS))


def test_a_translation_keeps_the_places_of_its_text():
    def places(text: str) -> list[str]:
        return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name is not None)

    assert [text for text, other in CATALOGUE.items() if places(text) != places(other)] == []
    assert all(other.strip() for other in CATALOGUE.values())


def test_nothing_on_the_danish_page_is_untranslated(monkeypatch):
    missed = set()
    find = Texts.find

    def heard(self, text):
        if not told(self, text) and re.search(r"[A-Za-z]{2}", text):
            missed.add(text)
        return find(self, text)

    monkeypatch.setattr(Texts, "find", heard)
    attrition = (
        {"step": "candidates", "reason": "a Patient with a qualifying code or text", "kept": 31, "dropped": 0},
        {"step": "under 16 at diagnosis", "reason": "16 or older at diagnosis", "kept": 25, "dropped": 6},
        {"step": "records: Observation", "reason": "crp without a unit", "kept": 20, "dropped": 1},
        {"step": "assessments", "reason": "unattributed: late: long after the stop", "kept": 2, "dropped": 1},
    )
    plain = replace(STUDY, attrition=attrition, unmapped=(), warnings=(), reporter="Reporting hospital (not named)")
    printed = list(csv.DictReader(io.StringIO(PRINTED.read_text(encoding="utf-8"))))
    danish = {row["id"]: row for row in csv.DictReader(io.StringIO(PRINTED.with_suffix(".da.csv").read_text("utf-8")))}
    printed = [
        {**row, "quantity_da": danish[row["id"]]["quantity"], "note_da": danish[row["id"]]["note"]} for row in printed
    ]
    page = report_html(RESULTS, plain, printed, ANALYSIS, "da")
    assert missed <= {"Europe/Copenhagen", "Wilson"}
    assert '<html lang="da">' in page
    for word in ("Tilstrækkelig klinisk effekt", "behandlingsforløb", "linje 1", "Tid på behandling", "12,5"):
        assert word.lower() in page.lower()


def test_numbers_have_the_decimal_sign_of_the_language():
    assert Texts("da").number("58.1 % (40.8–73.6)") == "58,1 % (40,8–73,6)"
    assert Texts("en").number("58.1") == "58.1"
    rows = {row[0]: row for row in Page(report_html(RESULTS, STUDY, None, ANALYSIS, "da")).rows if len(row) == 8}
    assert rows["Methotrexat, tilstrækkelig klinisk effekt"][2:6] == ["1", "8", "12,5", "0,0–25,0"]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_same_analysis_gives_the_same_bytes(lang):
    first = report_html(RESULTS, STUDY, None, ANALYSIS, lang)
    DRAWN.clear()
    assert report_html(RESULTS, STUDY, None, ANALYSIS, lang) == first


def test_names_of_a_site_are_escaped_in_charts_and_tables():
    hostile = Analysis(
        (
            Estimate("survival", "tnfi", "retained", "<b>$x$</b>", 0, 3, 3, 1.0),
            Estimate("switch", "tnfi", "other", "1>2", n=1),
        ),
        (Timeline("1", 900, (Bar("TNF", HOSTILE, 1, 0, 400, False, "sufficient", "other"),)),),
        (Trend("1", HOSTILE, "<i>", ((0, 1.0),)),),
    )
    text = report_html(RESULTS, STUDY, None, hostile)
    assert not {"script", "img", "i", "b"} & set(
        Page(text.replace("<b style", "<u style").replace("<i style", "<u style")).tags
    )
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_release_has_no_chart_of_what_is_masked():
    masked = [
        replace(row, n=None, proportion=None, ci_low=None, ci_high=None, note="masked")
        if row.group == "mtx-clinical"
        else row
        for row in RESULTS
    ]
    text = report_html(
        masked, replace(STUDY, disclosure=Disclosure(5), attrition=(), unmapped=(), ledger={}, warnings=())
    )
    chart = text[text.index('id="chart-effects"') :].partition("</figure>")[0]
    assert "NSAID" in chart
    assert "Methotrexate, sufficient" not in chart
    assert 'id="chart-strata-mtx-clinical"' not in text
    assert 'id="chart-attrition"' not in text


def test_an_analysis_of_nothing_makes_a_page():
    empty = Analysis(
        (
            Estimate("survival", "tnfi", "retained", N=0, note="no course"),
            Estimate(
                "comparison",
                "clinical",
                "risk-difference",
                note="0 in the denominator: nothing evaluable under methotrexate",
            ),
            Estimate("switch", "tnfi", "none", N=0, note="no course of a TNF-α inhibitor"),
            Estimate("sensitivity", "mtx-clinical", "proportion", "gap_days=30", n=0, N=0),
        )
    )
    for lang in LANGUAGES:
        page = report_html(EMPTY, STUDY, None, empty, lang)
        assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).split()


def test_of_many_children_as_many_are_drawn_as_stay_legible():
    section = sections.timelines_section(Texts("en"), analyses.random_children(300).timelines)
    assert section is not None
    (chart,) = section.charts
    assert f"{sections.CHILDREN_SHOWN} of 300 children are shown" in chart.caption
    assert f"{300 - sections.CHILDREN_SHOWN} are not shown" in chart.caption


def test_a_curve_is_told_at_each_year_with_who_is_left():
    rows = [
        Estimate("survival", "tnfi", "retained", "", day, n, 4, value, 0.1, 1.0)
        for day, n, value in ((0, 4, 1.0), (200, 4, 0.75), (365, 3, 0.75), (400, 2, 0.375))
    ]
    section = sections.curves_section(Texts("en"), rows, "survival", "Kept", (), "percent", from_zero=False)
    assert section is not None
    (chart,) = section.charts
    assert chart.grid is not None
    assert [row[1:4] for row in chart.grid.parts[0][1]] == [
        ("0", "4", "100.0"),
        ("0.5", "4", "100.0"),
        ("1", "3", "75.0"),
    ]


def test_before_the_first_event_a_curve_has_no_interval():
    rows = [
        Estimate("survival", "tnfi", "retained", "", day, n, 4, value, low, high)
        for day, n, value, low, high in ((0, 4, 1.0, 1.0, 1.0), (183, 4, 1.0, 1.0, 1.0), (365, 4, 0.5, 0.1, 0.8))
    ]
    section = sections.curves_section(Texts("en"), rows, "survival", "Kept", (), "percent", from_zero=False)
    assert section is not None
    assert [row[-1] for row in section.charts[0].grid.parts[0][1]] == ["–", "–", "10.0–80.0"]


def test_what_holds_for_every_row_is_said_once():
    rows = [
        Estimate("agreement", "g", "kappa", name, None, None, 3, 0.5, 0.1, 0.9, "one", note)
        for name, note in (("a", "two; x"), ("b", "two"))
    ]
    grid = sections._estimates(Texts("en"), "A table.", rows)
    assert grid.caption == "A table. All rows: one; two."
    assert [row[-1] for row in grid.parts[0][1]] == ["x", ""]
    assert sections._estimates(Texts("en"), "A table.", rows[:1]).parts[0][1][0][-1] == "one; two; x"


def test_a_rule_that_changes_nothing_is_told_of_once():
    figures = table1.Figures(tuple(RESULTS))
    whole = figures.overall("mtx-clinical")
    rows = [
        Estimate("sensitivity", "mtx-clinical", "proportion", stratum, None, n, total, n / total, 0.0, 0.5)
        for stratum, n, total in (
            ("", whole.n, whole.N),
            ("gap_days=180", whole.n, whole.N),
            ("gap_days=30", whole.n + 1, whole.N),
            ("stale_days=9", whole.n, whole.N),
        )
    ]
    section = sections.sensitivity_section(Texts("en"), rows, figures, lambda rule, value: (rule, value))
    grid = section.charts[0].grid
    assert [row[:3] for row in grid.parts[0][1]] == [
        ("As in the first table", "–", f"{whole.n}/{whole.N}"),
        ("gap_days", "30", f"{whole.n + 1}/{whole.N}"),
    ]
    assert "Tried: gap_days: 30, 180; stale_days: 9." in grid.caption


def test_every_way_of_the_flow_is_drawn_or_told():
    rows = [
        Estimate("switch", "tnfi", "inefficacy", "1>2", n=5, N=8),
        Estimate("switch", "tnfi", "ongoing", "1>ongoing", n=3, N=8),
        Estimate("switch", "tnfi", "remission", "2>1", n=1, N=5),
        Estimate("switch", "tnfi", "adverse_event", "2>stopped", n=4, N=5),
    ]
    section = sections.switch_section(Texts("en"), rows)
    assert section is not None
    (chart,) = section.charts
    assert chart.grid is not None
    assert chart.grid.parts[0][1] == (
        ("Line 1", "Line 2", "inefficacy", "5"),
        ("Line 1", "Ongoing", "ongoing", "3"),
        ("Line 2", "Stopped", "adverse event", "4"),
        ("Line 2", "back to the drug of line 1", "remission", "1"),
    )
    assert all(f">{n}</text>" in chart.svg for n in (5, 3, 4))


def test_the_thirteen_items_of_record_are_listed():
    assert [item.number for item in checklist.RECORD] == [
        "1.1",
        "1.2",
        "1.3",
        "6.1",
        "6.2",
        "6.3",
        "7.1",
        "12.1",
        "12.2",
        "12.3",
        "13.1",
        "19.1",
        "22.1",
    ]
    assert "journal.pmed.1001885" in report_html(RESULTS, STUDY)


def test_charts_leave_the_settings_of_matplotlib_alone():
    code = (
        "import matplotlib, sys\n"
        "from crmo_fhir.export import charts\n"
        "keys = ('font.size', 'svg.hashsalt', 'svg.fonttype', 'axes.spines.top')\n"
        "before = [matplotlib.rcParams[key] for key in keys]\n"
        "svg = charts.draw_forest('a', 'b', 'c', [charts.Effect('x', '1/2', '50', 50.0, 10.0, 90.0, 2)], ('n', '%', 'p'))\n"
        "assert svg.startswith('<svg role=\"img\"') and [matplotlib.rcParams[key] for key in keys] == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


RELEASED = replace(STUDY, disclosure=Disclosure(5), attrition=(), unmapped=(), ledger={}, warnings=())


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize(("study", "analysis"), [(STUDY, ANALYSIS), (RELEASED, NO_ANALYSIS)], ids=["own", "released"])
def test_every_section_that_record_names_is_on_the_page(lang, study, analysis):
    page = unescape(report_html(RESULTS, study, None, analysis, lang))
    headings = dict(re.findall(r'<section id="([\w-]+)">\s*<h2>(.*?)</h2>', page))
    record = page[page.index('<section id="record">') :]
    links = re.findall(r'<a href="#([\w-]+)">(.*?)</a>', record)
    named = {name for item in checklist.RECORD for name, _ in item.sections}
    assert named == set(checklist.SECTIONS)
    assert [(name, title) for name, title in links if headings.get(name) != title] == []
    assert {name for name, _ in links} == named & set(headings)
    assert named <= set(headings) or study is RELEASED
    # what only the other page has is named as that, and nowhere else
    t = Texts(lang)
    only = t("Only in the hospital's own report, which is not released: {sections}.", sections="|").split("|")
    kept = re.findall(re.escape(only[0]) + r"(.*?)\.</td>", record)
    absent = [t(checklist.SECTIONS[name]) for name in checklist.SECTIONS if name not in headings]
    assert {title for cell in kept for title in cell.split("; ")} == set(absent)
    assert all(record.count(title) == sum(title in cell for cell in kept) for title in absent)


def test_an_svg_names_itself_and_holds_no_address():
    svg = charts.draw_flow(
        "flow", "A <title>", "said", [charts.Step("one", "3"), charts.Step("two", "2", ("gone: 1",))]
    )
    assert 'aria-labelledby="flow-title flow-desc"' in svg
    assert "A &lt;title&gt;" in svg
    assert "http" not in svg
    assert "<style" not in svg
