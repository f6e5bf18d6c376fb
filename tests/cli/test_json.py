"""--json of each verb: JSON and nothing else, with the keys that the documents list."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from fewbit.bench.result import Result
from fewbit.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "usage.md"
DRAWN = ("--steps", "2", "--quiet")


def documented() -> dict[str, set[str]]:
    """The verbs of the table, with their keys."""
    table = PAGE.read_text().partition("| verb with `--json` | keys |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    return {verb.strip(" `"): set(re.findall(r"`(\w+)`", keys)) for verb, keys in rows}


def told(*words: str) -> object:
    """What JSON's own words allow: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout, parse_constant=refuse)


@pytest.fixture
def small(pipeline_folder):
    words = ["quantize", "tiny", "--recipe", "portable:comfy-int8", "--samples", "4"]
    result = CliRunner().invoke(main, [*words, "--output", "small", "--quiet"])
    assert result.exit_code == 0, result.stderr


def test_the_keys_of_each_verb_are_those_of_the_page(small):
    compared = ("--recipes", "rtn", "--output", "compared", "-n", "2", *DRAWN)
    exported = ("--format", "comfy-int8", "--output", "it.safetensors")
    found = {
        "quantize": told("quantize", "tiny", "--recipe", "rtn", "--output", "other", "--quiet"),
        "quantize --dry-run": told("quantize", "tiny", "--recipe", "rtn", "--dry-run"),
        "generate": told("generate", "small", "--output", "a.png", "--compare", "tiny", *DRAWN),
        "evaluate": told("evaluate", "small", "--reference", "tiny", "-n", "2", *DRAWN,
                         "--fidelity-only"),
        "compare": told("compare", "tiny", *compared, "--fidelity-only", "--pictures-only"),
        "bench": Result({}, {}, {}, ()).to_dict(),  # whose verb prints it as it is
        "inspect": told("inspect", "tiny"),
        "export": told("export", "small", *exported),
        "recipes": told("recipes")[0],
        "doctor": told("doctor"),
        "doctor MODEL": told("doctor", "tiny"),
    }  # fmt: skip
    pages = documented()
    assert pages.keys() == found.keys()
    for verb, content in found.items():
        assert set(content) == pages[verb], verb


def test_every_verb_takes_it():
    for name, verb in main.commands.items():
        assert any("--json" in option.opts for option in verb.params), name
