"""What the documents promise: links that lead somewhere, commands that exist, present figures."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import DOCUMENTS, ROOT, blocks, name, prose, script

from fewbit.cli import main as fewbit

README = ROOT / "README.md"
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
FIGURE = re.compile(r"\d+(?:\.\d+)? (?:dB|%|min|GiB|MB)")


def test_the_readme_is_short_and_shows_the_picture_first():
    text = README.read_text()
    assert len(text.split()) <= 600
    assert text.splitlines()[2].startswith("![")
    picture = ROOT / "docs" / "images" / "compare.png"
    assert picture.stat().st_size < 200_000
    assert "    make test     # the whole test suite" in text.splitlines()


def anchors(path: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_somewhere(path):
    for link in LINK.findall(prose(path)):
        if link.startswith("https://"):
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_a_page_of_the_site_links_to_pages_of_the_site(path):
    """The site holds the folder docs and nothing else."""
    if path.parent.name == "docs":
        assert not [link for link in LINK.findall(prose(path)) if link.startswith("..")]


PLACES = ("src", "tests", "benchmarks", "studies", "examples", "docs", "demos")
NAMED = re.compile(rf"`((?:{'|'.join(PLACES)})/[\w./-]+)`")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_files_that_a_document_names_are_there(path):
    for named in NAMED.findall(path.read_text()):
        assert "NAME" in named or (ROOT / named).exists(), named


def commands(path: Path) -> Iterator[str]:
    for block in blocks(path, "sh"):
        yield from block.replace("\\\n", " ").strip().splitlines()


COMMANDS = [(path, line) for path in DOCUMENTS for line in commands(path)]


@pytest.mark.parametrize(
    ("path", "line"), COMMANDS, ids=[f"{name(path)}: {line}" for path, line in COMMANDS]
)
def test_commands_are_as_the_programs_take_them(path, line):
    words = shlex.split(line, comments=True)
    while words and "=" in words[0]:
        words.pop(0)
    program, *arguments = words
    if program == "fewbit":
        verb = fewbit.commands[arguments[0]]
        verb.make_context(arguments[0], list(arguments[1:]))
    elif program == "python":
        assert (ROOT / arguments[0]).exists()
    elif program == "make":
        made = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", made, re.MULTILINE) for target in arguments)
    else:
        assert program in ("pip", "git", "ruff", "mypy", "pytest")


@pytest.mark.parametrize("path", [README, ROOT / "docs" / "recipes.md"], ids=name)
def test_figures_are_those_that_were_measured(path):
    measured = (ROOT / "docs" / "measured.md").read_text()
    texts = [re.sub(r"[+-]?0\.\d+ (to|dB)\S*|0\.9 dB", "", prose(path))]
    own = {"95 %"}  # a confidence, not a result
    for figure in set(FIGURE.findall(texts[0])) - own:
        number = figure.split()[0]
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d])", measured), figure


@pytest.mark.parametrize(("page", "by"), [("measured", "report"), ("models", "reach")])
def test_a_page_of_figures_is_what_the_results_say(page, by):
    expected = script(f"benchmarks/{by}.py")["page"]()
    found = (ROOT / "docs" / f"{page}.md").read_text()
    assert found == expected, f"bring it up to date: python benchmarks/{by}.py"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=name)
def test_tables_are_what_the_code_says(path):
    text = path.read_text()
    assert script("docs/tables.py")["filled"](text) == text, "run python docs/tables.py"


def test_a_recipe_has_its_bits_and_settings_in_the_document():
    from fewbit import recipes

    text = (ROOT / "docs" / "recipes.md").read_text()
    for recipe in recipes():
        assert f"<!-- bits {recipe.name} -->" in text
        assert f"<!-- settings {recipe.name} -->" in text


def test_every_room_is_explained():
    text = (ROOT / "docs" / "architecture.md").read_text()
    floors = script("tests/test_house.py")["FLOORS"]
    for room in set().union(*floors) - {"ground", "top"}:
        assert re.search(rf"^\|.*`{room}`.*\|", text, re.MULTILINE), f"{room} has no row"


def test_errors_are_quoted_as_they_are():
    told = (ROOT / "docs" / "troubleshooting.md").read_text()
    sources = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    said = re.sub(r'"\s*f?"', "", sources)  # sentences run over several lines
    quoted = [" ".join(text.split()) for text in re.findall(r"\*\*`([^`]+)`", told)]
    assert len(quoted) > 5
    for sentence in quoted:
        parts = [part.strip() for part in re.split(r"…|^N ", sentence)]
        assert all(part in said for part in parts), sentence
