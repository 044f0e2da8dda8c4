"""The pages in a real browser, without network: nothing is asked for, and a phone shows all of it."""

import shutil

import pytest

from saap_edge.report.data import build_report
from saap_edge.report.frontier import write_frontier
from saap_edge.report.html import render_html
from tests.report.test_frontier import document
from tests.report.test_report import sections

chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(chromium is None, reason="no Chromium here: .ci/run installs it")
PHONE, DESKTOP = 390, 1280
# Without them a browser without network asks its maker's servers for this and that.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        yield started
        started.close()


@pytest.fixture(scope="module", params=["report", "frontier"])
def page_file(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "frontier":
        write_frontier(document(), folder)
    else:
        (folder / "report.html").write_text(render_html(build_report(sections())), encoding="utf-8")
    return folder / f"{request.param}.html"


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_a_page_without_network(browser, page_file, width):
    page = browser.new_context(offline=True, viewport={"width": width, "height": 844}).new_page()
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(page_file.as_uri())
    assert asked == [page_file.as_uri()] and said == []
    # Tables scroll in their own boxes: the page itself is never wider than the screen.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = page.evaluate("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)")
    assert len(drawn) >= 2 and all(200 < each <= width for each in drawn)
    heights = page.evaluate("[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)")
    assert min(heights) > 9, "letters too small to read"
    rows = page.evaluate("[...document.querySelectorAll('tr')].map(r => r.getBoundingClientRect().height)")
    assert max(rows) < 200, "a column is squeezed into a line a word"


def test_everything_is_on_the_report(browser, tmp_path):
    (tmp_path / "report.html").write_text(render_html(build_report(sections())), encoding="utf-8")
    page = browser.new_page(viewport={"width": PHONE, "height": 844})
    page.goto((tmp_path / "report.html").as_uri())
    text = page.inner_text("body")
    for heading in ("Budget", "Frontier: is pruning worth it here?", "Speed, dense", "Plan: widths per layer"):
        assert heading in text
    assert page.locator(".verdict.fail").count() >= 1
    labels = page.locator("svg text").all_text_contents()
    assert {"kv heads", "FFN width", "perplexity (lower is better)"} <= set(labels)
    assert any(label.startswith("ms between tokens") for label in labels)
