"""report.html as a browser shows it: the demonstration in both languages, on a desk, at the width of A4 and on a phone.

Pictures of every section are left in `.artifacts/report` (CRMO_FHIR_PICTURES), to be looked at.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import analyses
import pytest
from support import ROOT, missing_tools, skip_unless

from crmo_fhir import landing, pipeline
from crmo_fhir.artifacts import Artifacts
from crmo_fhir.export.report import report_html
from crmo_fhir.model.results import NO_ANALYSIS, Analysis

pytestmark = pytest.mark.chromium
WIDTHS = {"desk": 1280, "a4": 794, "phone": 320}
PAGE_HEIGHT = (297 - 2 * 16) / 25.4 * 96
"""Of A4 between its margins, in CSS pixels."""
PAGE_WIDTH = (210 - 2 * 15) / 25.4 * 96
OFFLINE = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)
CHARTS = (
    "chart-effects",
    "chart-attrition",
    "chart-strata-tnfi-clinical",
    "chart-courses",
    "chart-survival-1",
    "chart-incidence-1",
    "chart-response-1",
    "chart-switches",
    "chart-trends",
    "chart-sensitivity",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    skip_unless("chromium", "the browser", missing_tools("chromium"))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(OFFLINE))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def measured(demo_study) -> tuple[pipeline.Measured, list[dict[str, str]]]:
    """The figures of the demonstration, and those printed for it."""
    raw = landing.open_raw(demo_study)
    account = landing.open_outputs(demo_study)
    figures, _ = pipeline._figures(demo_study, raw, landing.open_cohort(demo_study, raw), Artifacts.load(None), account)
    return figures, account["published"]


@pytest.fixture(scope="module")
def pages(demo_study, measured, tmp_path_factory) -> dict[str, Path]:
    """The page in both languages, and those of cohorts of other sizes."""
    folder = tmp_path_factory.mktemp("pages")
    figures, printed = measured

    def written(name: str, analysis: Analysis, lang: str = "en") -> Path:
        path = folder / f"{name}.html"
        path.write_text(report_html(figures.results, figures.study, printed, analysis, lang), encoding="utf-8")
        return path

    own = analyses.of_study(demo_study)
    return {
        "en": written("en", own),
        "da": written("da", own, "da"),
        "none": written("none", NO_ANALYSIS),
        "three": written("three", analyses.random_children(3)),
        "many": written("many", analyses.random_children(300), "da"),
    }


def opened(browser: Any, path: Path, width: int, **options: Any) -> tuple[Any, list[str]]:
    """The page, and whatever it said or asked for that it should not have."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **options)
    heard: list[str] = []
    page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("request", lambda request: heard.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    return page, heard


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["en", "da", "none", "three", "many"])
def test_the_page_stands_alone_and_fits(browser, pages, name, width):
    page, heard = opened(browser, pages[name], WIDTHS[width])
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.locator("h1").count() == 1
    if name in ("en", "da"):
        folder = Path(os.environ.get("CRMO_FHIR_PICTURES", ROOT / ".artifacts" / "report")) / name / width
        folder.mkdir(parents=True, exist_ok=True)
        for section in page.query_selector_all("main > section"):
            section.screenshot(path=str(folder / f"{section.get_attribute('id')}.png"))
    assert heard == []
    page.close()


@pytest.mark.parametrize("name", ["en", "da"])
def test_every_chart_is_there_with_its_figures_in_text(browser, pages, name):
    page, heard = opened(browser, pages[name], WIDTHS["desk"], java_script_enabled=False)
    ids = [figure.get_attribute("id") for figure in page.query_selector_all("figure")]
    assert set(CHARTS) <= set(ids)
    for figure in page.query_selector_all("figure"):
        svg = figure.query_selector("svg[role=img]")
        assert svg is not None
        words = [page.locator(f"#{one}").text_content() for one in svg.get_attribute("aria-labelledby").split()]
        assert all(len(text.strip()) > 3 for text in words)
        told = figure.query_selector("table") or figure.evaluate_handle(
            "f => f.closest('section').querySelector('table')"
        )
        assert any(c.isdigit() for c in told.text_content()), figure.get_attribute("id")
    assert heard == []
    page.close()


@pytest.mark.parametrize(("name", "width"), [("en", "desk"), ("da", "desk"), ("da", "phone"), ("none", "a4")])
def test_nobody_is_kept_from_reading(browser, pages, name, width):
    """axe-core, with all that is folded unfolded, finds nothing serious; contrast is among its rules."""
    from axe_playwright_python.sync_playwright import Axe

    page, _ = opened(browser, pages[name], WIDTHS[width])
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    found = Axe().run(page).response
    serious = [
        (one["id"], one["nodes"][0]["html"][:200])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == []
    assert len(found["passes"]) > 20
    page.close()


@pytest.mark.parametrize("name", ["en", "da", "many"])
def test_the_page_prints_on_a4(browser, pages, name):
    page, _ = opened(browser, pages[name], round(PAGE_WIDTH))
    page.emulate_media(media="print")
    page.set_viewport_size({"width": round(PAGE_WIDTH), "height": round(PAGE_HEIGHT)})
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    for figure in page.query_selector_all("figure"):
        box = figure.query_selector("svg").bounding_box()
        assert box["height"] <= PAGE_HEIGHT, f"{figure.get_attribute('id')} is cut"
        assert box["width"] <= PAGE_WIDTH + 1
        assert figure.query_selector("div").evaluate("d => getComputedStyle(d).breakInside") == "avoid"
        folded = figure.query_selector("details table")
        assert folded is None or folded.bounding_box()["height"] > 20, "what is folded on the screen is printed"
    assert page.pdf(format="A4", prefer_css_page_size=True).startswith(b"%PDF")
    page.close()


def test_of_many_children_some_are_drawn_and_the_rest_is_counted(browser, pages):
    page, _ = opened(browser, pages["many"], WIDTHS["desk"])
    figure = page.locator("#chart-courses")
    assert "30 af 300 børn er vist" in figure.inner_text()
    assert "270 er ikke vist" in figure.inner_text()
    rows = figure.locator("tbody tr th").all_text_contents()
    assert len(set(rows)) <= 30
    page.close()
