"""The built pages, opened as files in a headless Chromium that has no network."""

import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import sync_playwright

from repsim_utils import overview

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRAWN = ".vega-embed canvas, .vega-embed svg.marks"
PAGES = [yaml.safe_load((ROOT / "_toc.yml").read_text())["root"]]
PAGES += re.findall(r"^ *- file: (\S+)$", (ROOT / "_toc.yml").read_text(), re.MULTILINE)


def _missing(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"in CI the pages must be tested: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        _missing("no Chromium is installed (Debian: apt-get install chromium)")
    if not (HTML / "index.html").is_file():
        _missing("the book is not built: make book")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that notes what it asks of the network and writes to its console."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
    page = context.new_page()
    page.asked, page.complaints = [], []
    page.on(
        "request", lambda r: page.asked.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None
    )
    page.on("console", lambda m: page.complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    yield page
    context.close()


@pytest.mark.parametrize("name", PAGES)
def test_page(page, name):
    """Opened once; every check is made, and all that is wrong is reported."""
    path = HTML / f"{name}.html"
    page.goto(path.as_uri(), wait_until="load")
    n_charts = _made(name)
    wrong = list(_waited(page, n_charts))
    wrong += [f"asked the network for {url}" for url in page.asked]
    wrong += [f"complained: {text}" for text in page.complaints]
    wrong += [*_charts(page, n_charts), *_formulas(page, name), *_pictures(page)]
    if path.stat().st_size >= 2_000_000:
        wrong.append("the page is heavier than 2 MB")
    page.set_viewport_size({"width": 400, "height": 850})
    if (width := page.evaluate("document.documentElement.scrollWidth")) > 400:
        wrong.append(f"a phone of 400 px scrolls it sideways, as it is {width} px wide")
    assert wrong == []


def _made(name):
    """How many charts the executed chapter holds; the start page is no chapter."""
    if name == "index":
        return 0
    cells = nbformat.read(ROOT / "_build" / "executed" / f"{name}.ipynb", as_version=4).cells
    shown = [output.get("data", {}) for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    n_charts = sum("vegaEmbed" in data.get("text/html", "") for data in shown)
    assert n_charts, "a chapter shows its finding in a figure"
    return n_charts


def _waited(page, n_charts):
    """Wait until everything on a page has run; say what did not come."""
    conditions = {
        "formulas": "[...document.querySelectorAll('.math')].every(e => e.querySelector('mjx-container'))",
        "charts": f"document.querySelectorAll('{DRAWN}').length >= {n_charts}",
        "pictures": "[...document.querySelectorAll('article img')].every(image => image.complete)",
    }
    for what, condition in conditions.items():
        try:
            page.wait_for_function(condition, timeout=30_000)
        except PlaywrightTimeout:
            yield f"the {what} are not there after 30 seconds"
    page.wait_for_load_state("networkidle")


def _charts(page, expected):
    charts = page.query_selector_all(DRAWN)
    if len(charts) != expected:
        yield f"{len(charts)} charts in place of {expected}"
    for i, chart in enumerate(charts):
        box = chart.bounding_box()
        if box is None or box["width"] <= 200 or box["height"] <= 60:
            yield f"chart {i} is as small as {box}"
    described = page.query_selector_all(".vega-embed [aria-label], .vega-embed[aria-label]")
    if len(described) < expected:
        yield f"only {len(described)} of {expected} charts are described"


def _formulas(page, name):
    formulas = page.query_selector_all(".math")
    if (name == "index") != (not formulas):
        yield f"{len(formulas)} formulas"
    for formula in formulas:
        if not formula.query_selector("mjx-container mjx-math"):
            yield f"not set: {formula.inner_text()}"
    if formulas and "merror" in page.inner_html("body"):
        yield "a formula has an error"


def _pictures(page):
    for image in page.query_selector_all("article img"):
        if not image.get_attribute("alt"):
            yield f"no alternative text: {image.get_attribute('src')}"
        if not image.evaluate("image => image.naturalWidth") > 0:
            yield f"not there: {image.get_attribute('src')}"


def test_menus_choose_what_a_figure_shows(page):
    """In the chapter on what drives similarity: an experiment and a metric, and the numbers that belong to them."""
    page.goto((HTML / "causes" / "what_drives_similarity.html").as_uri(), wait_until="load")
    page.wait_for_selector(".vega-bind select", timeout=30_000)
    every = overview.every_effect()
    shown = ".vega-embed:has(.vega-bind) svg text"
    for experiment, metric in (("task_only", "cka"), ("dataset_overlap_language", "mutual_knn")):
        page.select_option("select[name=chosen0]", experiment)
        page.select_option("select[name=chosen1]", metric)
        page.wait_for_function("() => document.readyState === 'complete'")
        page.wait_for_timeout(500)
        texts = [text.replace("\u2212", "-") for text in page.locator(shown).all_text_contents()]
        rows = every[(every.experiment == experiment) & (every.metric == metric)]
        there = sorted(text for text in texts if re.fullmatch(r"[+-]\d\.\d{3}", text))
        assert there == sorted(f"{value:+.3f}" for value in rows.change.round(4)) and len(there) > 3
    assert page.asked == [] and page.complaints == []
