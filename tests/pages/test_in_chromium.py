"""The page in a real browser: nothing is complained of, the slider moves, a table sorts."""

from pathlib import Path

import numpy as np
import pytest
from chromium import PROGRAM, Browser
from PIL import Image

from fewbit.pages import charts, html
from fewbit.pages.gallery import PictureRow, gallery, slider
from fewbit.pages.html import NOTHING, Cell

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no chromium on this machine")
COLUMNS = ["star #0", "circle #1"]
SELECTED = "document.querySelectorAll('.slider select')"


@pytest.fixture(scope="module")
def browser():
    one = Browser()
    yield one
    one.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    levels = iter(range(6))
    rows = [
        PictureRow(name, [_flat(40 * next(levels)) for _ in COLUMNS])
        for name in ("full precision", "rtn:w8a8", "rtn:w4a4")
    ]
    table = html.table(
        "Scores",
        ["model", "dB"],
        [
            [Cell("b"), Cell("9.50", 9.5)],
            [Cell("none"), Cell(NOTHING)],
            [Cell("a"), Cell("10.25", 10.25)],
        ],
    )
    points = [charts.Point("rtn:w4a4", 4, 20, 19, 21)]
    chart = charts.scatter("Size and quality", charts.Axes("MB", "dB"), points, [0])
    sections = [
        html.section("pictures", "Pictures", "", slider(rows, COLUMNS) + gallery(rows, COLUMNS)),
        html.section("scores", "Scores", "", table + html.figure(chart, "chart")),
    ]
    page = tmp_path_factory.mktemp("page") / "report.html"
    page.write_text(html.document("A page", "lead", sections))
    return page


def _flat(level: int) -> Image.Image:
    return Image.fromarray(np.full((16, 16, 3), level, np.uint8))


@pytest.fixture
def page(browser, file) -> Browser:
    browser.open(file)
    return browser


def test_it_loads_without_complaint_and_asks_for_nothing(page, file):
    assert page.evaluate("document.title") == "A page"
    assert page.complaints == []
    asked = {url for url in page.requests if not url.startswith("data:")}
    assert asked == {file.resolve().as_uri()}
    assert page.evaluate("[...document.images].every((one) => one.naturalWidth > 0)")


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_is_readable_in_both_schemes(browser, file, dark):
    browser.open(file, width=390, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    ink, paper = browser.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    brightness = [sum(map(int, one[4:-1].split(","))) / 765 for one in (ink, paper)]
    assert abs(brightness[0] - brightness[1]) > 0.7
    assert (brightness[0] > brightness[1]) == dark


def line(page: Browser) -> str:
    return page.evaluate("document.querySelector('.stage').style.getPropertyValue('--at')")


def test_the_slider_moves_with_the_mouse(page):
    left, top, width = page.evaluate(
        "(() => { const box = document.querySelector('.stage').getBoundingClientRect();"
        "return [box.left, box.top, box.width]; })()"
    )
    assert line(page) == "50%"
    page.drag((left + width / 2, top + 20), (left + width / 4, top + 20))
    assert line(page) == "25%"
    page.drag((left + width / 4, top + 20), (left - 50, top + 20))
    assert line(page) == "0%"


def test_the_slider_moves_with_the_keys(page):
    page.evaluate("document.querySelector('.slider input[type=range]').focus()")
    for key, expected in (("ArrowRight", "51%"), ("ArrowRight", "52%"), ("ArrowLeft", "51%")):
        page.press(key)
        assert line(page) == expected
    said = page.evaluate("document.activeElement.getAttribute('aria-valuetext')")
    assert said == "51 % full precision"


def test_another_model_and_picture_are_shown_and_their_difference(page):
    page.evaluate(
        f"(() => {{ const [row, column] = {SELECTED}; row.value = 2; column.value = 1;"
        "row.dispatchEvent(new Event('change')); })()"
    )
    shown = page.evaluate("[...document.querySelectorAll('.stage img')].map((one) => one.alt)")
    assert shown == ["circle #1, drawn by full precision", "circle #1, drawn by rtn:w4a4"]
    page.evaluate("document.querySelector('.slider input[type=checkbox]').click()")
    blend = "getComputedStyle(document.querySelector('.stage .after')).mixBlendMode"
    assert page.evaluate(blend) == "difference"


def test_a_heading_sorts_numbers_as_numbers_and_puts_nothing_last(page):
    names = "[...document.querySelectorAll('tbody th')].map((one) => one.textContent)"
    page.evaluate("document.querySelectorAll('thead button')[1].focus()")
    page.press("Enter")
    assert page.evaluate(names) == ["b", "a", "none"]
    sort = "document.querySelectorAll('thead th')[1].getAttribute('aria-sort')"
    assert page.evaluate(sort) == "ascending"
    page.press("Enter")
    assert page.evaluate(names) == ["a", "b", "none"]
    assert page.evaluate(sort) == "descending"
    page.evaluate("document.querySelectorAll('thead button')[0].click()")
    assert page.evaluate(names) == ["a", "b", "none"]


def test_everything_that_can_be_used_can_be_reached_by_keys(page):
    reached = []
    for _ in range(9):
        page.press("Tab")
        reached.append(page.evaluate("document.activeElement.tagName"))
    assert {"SELECT", "INPUT", "BUTTON"} <= set(reached)
