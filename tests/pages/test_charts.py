import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import Page

from fewbit.pages import charts
from fewbit.pages.charts import HEIGHT, WIDTH, Axes, Point

AXES = Axes("size", "quality")
NUMBER = st.floats(-1e4, 1e4, allow_nan=False)


def circles(text):
    return [(float(c["cx"]), float(c["cy"])) for c in Page(text).all("circle")]


def test_points_stand_where_their_values_say():
    points = [Point("a", 2, 20, 19, 21), Point("b", 4, 40, 38, 42)]
    (ax, ay), (bx, by) = circles(charts.scatter("t", AXES, points, [0, 1]))
    assert ax < bx
    assert ay > by  # the better stands higher
    assert ax - charts.LEFT == pytest.approx((bx - charts.LEFT) / 2, abs=0.1)  # x begins at zero


def test_the_label_says_what_the_chart_shows():
    page = Page(charts.scatter("Size & quality", AXES, [Point("rtn", 2, 20.5, 19, 21)], []))
    assert page.all("svg")[0]["aria-label"] == "Size & quality. rtn: size 2, quality 20.50"


def test_names_cover_neither_points_nor_each_other():
    points = [Point(f"name-{n}:w4a4", 4 + n / 50, 30 + n / 50, 29, 31) for n in range(5)]
    text = charts.scatter("t", AXES, points, [])
    places = re.findall(r'y="([\d.]+)" text-anchor="(start|end)" class="strong"', text)
    assert len(set(places)) == 5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=8))
def test_everything_stays_inside(pairs):
    points = [Point(str(i), abs(x), y, y - 1, y + 1) for i, (x, y) in enumerate(pairs)]
    for x, y in circles(charts.scatter("t", AXES, points, [])):
        assert charts.LEFT - 0.1 <= x <= WIDTH
        assert 0 <= y <= HEIGHT


def test_lines_leave_out_what_is_infinite_and_tell_series_apart_without_colour():
    series = {str(n): [(0.0, 1.0), (1.0, math.inf), (2.0, 3.0 + n)] for n in range(4)}
    page = Page(charts.lines("t", AXES, series))
    assert [len(one["points"].split()) for one in page.all("polyline")] == [2] * 4
    looks = {(p["stroke"], p.get("stroke-dasharray")) for p in page.all("polyline")}
    assert len(looks) == 4
    assert "stroke-dasharray" in page.all("polyline")[2]
    assert charts.lines("t", AXES, {"a": [(0.0, math.inf)]}) == ""


def test_a_heat_map_has_a_cell_for_each_value_and_names_the_worst():
    rows = {f"blocks.{n}.fc": {t: 10.0 * n + t / 100 for t in (0, 500, 1000)} for n in range(3)}
    page = Page(charts.heat_map("t", rows, 0, 30))
    cells = "".join(path["d"] for path in page.all("path") if "fill-opacity" in path)
    assert cells.count("M") == 9
    label = page.all("svg")[0]["aria-label"]
    assert "3 layers by 3 timesteps. The worst is blocks.0.fc at timestep 0 with 0.0 dB." in label
    assert [word for word in page.words if word.startswith("block ")] == [
        "block 0",
        "block 1",
        "block 2",
    ]


@pytest.mark.parametrize(
    ("value", "shade"), [(30, 0), (0, 11), (15, 6), (math.inf, 0), (-math.inf, 11), (99, 0)]
)
def test_the_worse_the_stronger(value, shade):
    assert charts._shade(value, 0, 30) == shade


def test_a_histogram_of_nothing_and_of_much():
    page = Page(charts.histogram("t", 8, {"before": [0, 10, 1000, 10, 0], "after": [0] * 5}))
    assert len([path for path in page.all("path") if "fill-opacity" in path]) == 2


def test_bars_with_what_cannot_be_drawn():
    page = Page(charts.bars("t", "dB", {"a": 10.0, "b": -3.0, "c": math.inf}))
    widths = [float(bar["width"]) for bar in page.all("rect")]
    assert widths[0] == widths[2] > 0 == widths[1]
