"""`help` explains every argument of the public functions and every field of the public values."""

import inspect
import re

import pytest

import fewbit

NAMES = sorted(set(fewbit.__all__) - {"__version__"})


INTERNAL = {"quant_method"}  # diffusers gives it back


@pytest.mark.parametrize("name", [name for name in NAMES if name != "FewbitError"])
def test_every_argument_is_explained(name):
    found = getattr(fewbit, name)
    told = inspect.getdoc(found)
    for argument in inspect.signature(found).parameters.keys() - INTERNAL:
        line = re.compile(rf'^ +(\*\*)?{argument}: [A-Z`"]', re.MULTILINE)
        assert line.search(told), f"{name} does not explain {argument}"


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_begins_with_a_whole_sentence(name):
    first = inspect.getdoc(getattr(fewbit, name)).split("\n\n")[0]
    assert first[0].isupper()
    assert first.endswith(".")
