"""A third of the census of transformer classes: each class in one recipe, the recipes in turn."""

from itertools import cycle

import pytest
from documents import script

CENSUS = script("benchmarks/census.py")
THIRD = list(CENSUS["CLASSES"])[::3]


@pytest.mark.parametrize(("name", "recipe"), zip(THIRD, cycle(CENSUS["RECIPES"]), strict=False))
def test_a_class_goes_through_a_recipe(name, recipe):
    cell = CENSUS["measured"](name, recipe)
    assert CENSUS["passed"](cell), cell
