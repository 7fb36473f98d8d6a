"""The built pages, opened as files in a headless Chromium that has no network."""

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHARTS = {
    "index.html": 0,
    "measuring/kernels.html": 5,
    "measuring/neighbourhoods.html": 5,
    "measuring/subspaces_and_shapes.html": 10,
    "measuring/significance.html": 3,
    "datasets/color_shape_digit.html": 6,
    "datasets/splitting.html": 7,
    "datasets/text_corpora.html": 3,
    "causes/task_only.html": 4,
    "causes/dataset_overlap_vision.html": 6,
    "causes/task_overlap_vision.html": 5,
    "causes/dataset_overlap_language.html": 5,
    "causes/task_overlap_language.html": 4,
    "causes/finetuned_llm.html": 3,
    "causes/diffusion.html": 11,
    "consequences/adversarial_transfer.html": 12,
    "consequences/jailbreak_transfer.html": 4,
    "beyond/why_lora_hides_overlap.html": 5,
}


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
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(params=CHARTS)
def page(request, browser):
    """A page after everything on it has run, with what it asked of the network and wrote to its console."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
    page = context.new_page()
    page.asked, page.complaints = [], []
    page.on(
        "request", lambda r: page.asked.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None
    )
    page.on("console", lambda m: page.complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto((HTML / request.param).as_uri(), wait_until="load")
    page.name = request.param
    page.wait_for_function(
        "!document.querySelector('.math') || document.querySelectorAll('mjx-container').length > 0", timeout=30_000
    )
    page.wait_for_timeout(1500)
    yield page
    context.close()


def test_nothing_leaves_the_machine_and_nothing_complains(page):
    assert page.asked == []
    assert page.complaints == []


def test_charts_are_drawn(page):
    expected = CHARTS[page.name]
    charts = page.query_selector_all(".vega-embed canvas, .vega-embed svg.marks")
    assert len(charts) == expected
    for chart in charts:
        box = chart.bounding_box()
        assert box is not None and box["width"] > 200 and box["height"] > 60
    described = page.query_selector_all(".vega-embed [aria-label], .vega-embed[aria-label]")
    assert len(described) >= expected


def test_formulas_are_set(page):
    formulas = page.query_selector_all(".math")
    if page.name == "index.html":
        assert not formulas
        return
    assert formulas
    for formula in formulas:
        assert formula.query_selector("mjx-container mjx-math")
    assert "merror" not in page.inner_html("body")


def test_pictures_have_alternative_text_and_are_there(page):
    for image in page.query_selector_all("article img"):
        assert image.get_attribute("alt")
        assert image.evaluate("image => image.naturalWidth") > 0


def test_page_is_light(page):
    assert (HTML / page.name).stat().st_size < 2_000_000
