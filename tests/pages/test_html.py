import pytest
from pages import Page, sound

from fewbit.pages import html
from fewbit.pages.html import NOTHING, Card, Cell

NASTY = "<script>alert('x')</script> & \"more\""


def test_a_page_is_whole_and_asks_for_nothing():
    page = sound(html.document("Title", "lead", [html.section("a", "A", "text", "<p>body</p>")]))
    assert page.all("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))


@pytest.mark.parametrize(
    "made",
    [
        html.section("s", NASTY, NASTY, ""),
        html.cards([Card(NASTY, NASTY, NASTY)]),
        html.alerts([NASTY]),
        html.table(NASTY, [NASTY], [[Cell(NASTY, None, NASTY)]]),
        html.figure("", NASTY),
        html.folded(NASTY, ""),
        html.facts({NASTY: NASTY}),
        html.code(NASTY),
    ],
)
def test_text_is_never_taken_for_html(made):
    page = Page(made)
    assert not page.all("script")
    assert NASTY in "".join(page.words)


def test_a_nasty_title_is_no_way_out_either():
    sound(html.document(NASTY, NASTY, []))


def test_cells_say_what_they_are_sorted_by():
    row = [Cell("name"), Cell("1.50", 1.5), Cell("inf", float("inf")), Cell(NOTHING), Cell("text")]
    page = Page(html.table("t", ["a", "b", "c", "d", "e"], [row]))
    name, number, endless, nothing, text = [*page.all("th")[5:], *page.all("td")]
    assert name["scope"] == "row"
    assert (number["class"], number["data-order"]) == ("number", "1.5")
    assert endless["data-order"] == "Infinity"
    assert not {"class", "data-order"} & nothing.keys()
    assert "class" not in text
    assert len(page.all("button")) == 5


def test_nothing_to_warn_of_is_no_empty_list():
    assert html.alerts([]) == ""


def test_numbers_stand_under_their_heading_and_words_under_theirs():
    rows = [[Cell("a"), Cell("q"), Cell("1.0", 1.0)], [Cell("b"), Cell(NOTHING), Cell(NOTHING)]]
    page = Page(html.table("Layers", ["layer", "role", "dB"], rows))
    assert [head.get("class") for head in page.all("th") if head["scope"] == "col"] == [
        *(None, None, "number")
    ]
    assert [cell.get("class") for cell in page.all("td")] == [None, "number"] * 2
