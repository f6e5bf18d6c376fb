"""What a notebook shows of reports, comparisons, inspections and plans."""

from html.parser import HTMLParser

import pytest
import tiny_pipelines
import tiny_transformers as tiny

import fewbit
from fewbit.engine.plan import make_plan
from fewbit.engine.recipe import Recipe
from fewbit.engine.report import Report
from fewbit.engine.stored_size import Size
from fewbit.judge.comparison import Candidate, compared
from fewbit.judge.scores import Evaluation
from fewbit.pages.notebook import shown


class Balanced(HTMLParser):
    """All elements are closed in order; the words between them are kept."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: object) -> None:
        assert tag not in ("script", "style", "img")
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data.split()


def comparison():
    recipe = {"method": "rtn", "bits": "w4a4", "settings": {}}
    report = Report(recipe, "dit", "ab", 0, "0.1.0", bf16_bytes=2_000_000, size=Size(1_000_000))
    found = Evaluation("rtn:w4a4", "shapes", "rtn:w4a4", 8, 0, "25", "3")
    return compared("shapes", [Candidate("rtn:w4a4", report, found)])


def plan():
    return make_plan(tiny.make(), Recipe.resolve("rtn", None, {}), None, allow_unknown=False)


SHOWN = {
    "report": lambda: fewbit.quantize(tiny.make(), "rtn", progress=False),
    "several": lambda: fewbit.quantize(tiny_pipelines.make("wan_2_2"), "rtn", progress=False),
    "comparison": comparison,
    "inspection": lambda: fewbit.inspect(tiny.make()),
    "quantized": lambda: fewbit.inspect(tiny.quantized()),
    "inspections": lambda: fewbit.inspect(tiny_pipelines.make("wan_2_2")),
    "plan": plan,
}


@pytest.mark.parametrize("kind", SHOWN)
def test_the_words_are_those_of_the_terminal_and_repr_is_one_short_line(kind):
    one = SHOWN[kind]()
    words = Balanced(one._repr_html_()).words
    shown = {*words, *(f"{word}:" for word in words)}
    assert {word for word in str(one).split() if len(word) > 3} <= shown
    assert len(repr(one)) < 160
    assert "\n" not in repr(one)


def test_what_a_stranger_called_something_is_escaped():
    html = shown("<b>", ["<i>"], [["<script>alert(1)</script>"], "<img>"], ["<u>"])
    assert Balanced(html).words == ["<b>", "<i>", "<script>alert(1)</script>", "<img>", "<u>"]


def test_a_table_by_hand():
    assert shown("title", ["a", "b"], [["1", "2"], "  both"], ["  below", ""]) == (
        "<div>\n<strong>title</strong>\n<table>\n<thead><tr><th>a</th><th>b</th></tr></thead>\n"
        '<tbody>\n<tr><td>1</td><td>2</td></tr>\n<tr><td colspan="2">both</td></tr>\n'
        "</tbody>\n</table>\n<div>below</div>\n</div>\n"
    )


def test_dir_is_what_is_public():
    assert dir(fewbit) == sorted([*fewbit.__all__, "demo"])
