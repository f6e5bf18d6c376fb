"""Nothing that a verb prints is wider than 80 columns."""

import pytest
import small_models as small
import tiny_transformers as tiny
from click.testing import CliRunner

import fewbit
from fewbit.cli import main
from fewbit.engine.inspection import InspectedLayer, Inspection
from fewbit.engine.recipe import recipes

WIDTH = 80


def wide(text: str) -> list[str]:
    """Lines that are too wide although they could be broken: a word alone may be long."""
    return [line for line in text.splitlines() if len(line) > WIDTH and " " in line.strip()]


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", [[], *([recipe.name] for recipe in recipes())], ids=str)
def test_recipes(name):
    assert not wide(printed("recipes", *name))


@pytest.mark.parametrize("verb", ["doctor", "inspect", "inspect --layers", "quantize --dry-run"])
def test_a_demo_by_each_verb(verb):
    words = verb.split()
    assert not wide(printed(words[0], "shapes", *words[1:]))


def test_doctor_alone():
    assert not wide(printed("doctor"))


@pytest.mark.parametrize("recipe", ["hq-dit", "tq-dit", "best:nvfp4"])
def test_a_quantized_model(recipe):
    model = tiny.make()
    rows = [small.arguments(tiny.DIT, 1, seed) for seed in range(4)]
    told = {"groups": 1} if recipe == "tq-dit" else {}
    report = fewbit.quantize(model, recipe, calibration=rows, progress=False, **told)
    found = fewbit.inspect(model)
    assert not wide(str(report))
    assert not wide(str(found))
    assert not wide(found.table())


def test_what_is_done_to_an_input_takes_more_lines_where_it_is_long():
    how = "smooth > hadamard 12288 > 64 directions > book4/g32/factor around the mean"
    layer = InspectedLayer("a", "mod_attn", "quantized", (12288, 49152), 5, "book4/g32/factor", how)
    text = str(Inspection("x", "given", {}, (), None, (layer,), (), 0))
    assert not wide(text)
    heading, *rows = text.splitlines()[2:-1]
    start = heading.index(" input") + 1
    assert " ".join(row[start:-5].strip() for row in rows) == how.replace("/fp32", "")
