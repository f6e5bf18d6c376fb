"""A third of the pipelines of the day, each by one recipe; `benchmarks/pipelines.py` takes all."""

from itertools import cycle

import pytest
from documents import script

PIPELINES = script("benchmarks/pipelines.py")
THIRD = ["flux_2_klein", "qwen_image", "z_image", "sana", "wan_2_2", "ltx"]


@pytest.mark.parametrize(("name", "recipe"), zip(THIRD, cycle(PIPELINES["RECIPES"]), strict=False))
def test_a_pipeline_goes_through_a_recipe(name, recipe):
    cell = PIPELINES["measured"](name, recipe)
    assert PIPELINES["passed"](cell), cell
