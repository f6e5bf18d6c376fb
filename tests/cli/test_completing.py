"""What a shell proposes, and the scripts that make it ask."""

import os
import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete

from fewbit import demo
from fewbit.cli import main
from fewbit.cli.completing import DEMOS, recipe_names
from fewbit.engine.recipe import recipes

RUN = "from fewbit.cli import main; main(prog_name='fewbit')"


def proposed(*words: str) -> list[str]:
    *before, begun = words
    found = ShellComplete(main, {}, "fewbit", "_FEWBIT_COMPLETE").get_completions(before, begun)
    return [item.value for item in found]


def test_recipes_and_demos_are_all_there_are():
    assert recipe_names() == [recipe.name for recipe in recipes()]
    assert sorted(DEMOS) == sorted(demo.names())


def test_words_that_are_not_finished():
    assert "quantize" in proposed("q")
    assert proposed("recipes", "hq") == ["hq-dit"]
    assert proposed("quantize", "shapes", "--recipe", "be") == ["best"]
    assert proposed("inspect", "sh")[0] == "shapes"
    assert "--json" in proposed("doctor", "--j")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell):
    env = {**os.environ, "_FEWBIT_COMPLETE": f"{shell}_source"}
    script = subprocess.run([sys.executable, "-c", RUN], env=env, capture_output=True, text=True,
                            check=True).stdout  # fmt: skip
    assert "_FEWBIT_COMPLETE" in script
    assert f"{shell}_complete" in script


def test_completing_imports_nothing_heavy():
    code = "from fewbit.cli.completing import recipe_names; recipe_names(); import sys; "
    run = subprocess.run([sys.executable, "-c", f"{code}print('torch' in sys.modules)"],
                         capture_output=True, text=True, check=True)  # fmt: skip
    assert run.stdout.strip() == "False"
