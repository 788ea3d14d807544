"""The page in a real browser: what a reader sees, on a phone and on a desk, by day and by night."""

from __future__ import annotations

import re
import shutil
from itertools import pairwise

import pytest
from example_report import example_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
ARGUMENTS = [
    *(
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ),
    *("--no-first-run", "--disable-extensions", "--hide-scrollbars"),
]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome on this system")
LONG = [*("<script>alert(1)</script>", "aeroplane", "Rindfleischetikettierungsüberwachung", "bird & nest"), *"abcdefgh"]

# Contrast (WCAG 2.1, 1.4.3) of every visible text with what is painted beneath it, shapes of a drawing included.
CONTRAST = """() => {
  const parse = text => {
    const numbers = (text.match(/[-\\d.]+/g) || []).map(Number);
    if (text.startsWith('color(srgb')) return [...numbers.slice(0, 3).map(x => 255 * x), numbers[3] ?? 1];
    return text === 'none' || text === 'transparent' || numbers.length < 3 ? [0, 0, 0, 0] : [...numbers.slice(0, 3), numbers[3] ?? 1];
  };
  const over = (top, ground, alpha) => ground.map((value, i) => alpha * top[i] + (1 - alpha) * value);
  const linear = value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || element.closest('title, desc, .skip')) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    const x = box.left + box.width / 2, y = box.top + box.height / 2;
    if (!box.width || x < 0 || x >= innerWidth || y < 0 || y >= innerHeight) continue;
    let ground = parse(getComputedStyle(document.body).backgroundColor).slice(0, 3);
    for (const below of document.elementsFromPoint(x, y).reverse()) {
      const style = getComputedStyle(below);
      const isShape = below instanceof SVGGeometryElement;
      const paint = parse(isShape ? style.fill : style.backgroundColor);
      const alpha = paint[3] * (isShape ? style.opacity * style.fillOpacity : 1);
      if (!(below instanceof SVGTextElement)) ground = over(paint, ground, alpha);
    }
    const style = getComputedStyle(element);
    const ink = parse(element instanceof SVGElement ? style.fill : style.color);
    const shades = [luminance(over(ink, ground, ink[3])), luminance(ground)].sort((a, b) => b - a);
    found.push([(shades[0] + 0.05) / (shades[1] + 0.05), node.data.trim().slice(0, 40)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module", params=["fits", "awkward"])
def report(request, example, tmp_path_factory):
    """A calm report, and one with everything too long, too large or looking like markup."""
    if request.param == "fits":
        return example.path / "report.html"
    return example_run(tmp_path_factory.mktemp("runs") / "over", LONG, budget_bytes=8192).path / "report.html"


VIEWS = [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")]


@pytest.fixture(scope="module", params=VIEWS, ids=lambda view: f"{view[0]}-{view[1]}")
def view(request, browser, report):
    """The opened page, what it asked for, and what it complained about."""
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests, complaints = [], []
    page.on("request", lambda asked: requests.append(asked.url))
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(report.as_uri(), wait_until="load")
    yield page, requests, complaints
    page.close()


def test_the_page_fits_its_window_and_asks_for_nothing_and_complains_of_nothing(view, report):
    page, requests, complaints = view
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.evaluate("scrollTo(500, 0)")
    assert page.evaluate("scrollX") == 0
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]


def test_every_picture_is_there_and_large_enough_to_read(view):
    page, *_ = view
    drawings = page.evaluate("[...document.querySelectorAll('svg')].map(e => [e.clientWidth, e.clientHeight])")
    assert len(drawings) == 6
    assert all(width >= 300 and height >= 50 for width, height in drawings)
    images = page.evaluate("[...document.images].map(e => [e.complete, e.naturalWidth, e.clientWidth, e.clientHeight])")
    assert len(images) == 12
    assert all(complete and natural == 8 and width > 40 and height > 40 for complete, natural, width, height in images)
    sizes = page.evaluate(
        """[...document.querySelectorAll('svg text')].map(text => {
             const to = text.getScreenCTM();
             return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(to.a, to.b);
           })"""
    )
    assert min(sizes) >= 7.0


def test_drawings_show_their_shapes(view):
    page, *_ = view
    painted = page.evaluate(
        """[...document.querySelectorAll('svg')].map(svg => [...svg.querySelectorAll('path')].filter(path => {
             const box = path.getBoundingClientRect(), style = getComputedStyle(path);
             return box.width * box.height > 4 && style.fill.startsWith('rgb') && style.display !== 'none';
           }).length)"""
    )
    assert len([count for count in painted if count >= 2]) >= 5  # the curves are lines, not areas


def test_all_text_stands_out_from_what_is_beneath_it(view):
    page, *_ = view
    height = page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": page.viewport_size["width"], "height": height})
    contrasts = page.evaluate(CONTRAST)
    page.set_viewport_size({"width": page.viewport_size["width"], "height": 900})
    assert len(contrasts) > 150
    assert [(round(ratio, 2), text) for ratio, text in contrasts if ratio < 4.5] == []


def test_headings_go_down_one_at_a_time(view):
    page, *_ = view
    levels = [
        int(name[1]) for name in page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(e => e.tagName)")
    ]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_first_tab_leads_past_the_navigation(view):
    page, *_ = view
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0


def test_the_page_follows_the_readers_light_or_dark(browser, report):
    grounds = []
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(report.as_uri())
        grounds.append(
            sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))))
        )
        page.close()
    assert grounds[0] > 700
    assert grounds[1] < 100
