"""Folders that an older fewbit wrote are read, and give what they gave then.

`tests/golden` was written by commit b073350, with the reference backend: one small DiT by each
recipe, and what it gave for one input.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fewbit
from fewbit.engine.decibel import sqnr
from fewbit.kernels.choose import BACKENDS, VARIABLE
from fewbit.layers.bind import unbind

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = Path(__file__).parents[1] / "golden"
RECIPES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
HERE = [b.name for b in BACKENDS if b.why_not(torch.device("cpu")) is None]
INPUTS = ("hidden_states", "timestep", "class_labels")


@pytest.fixture(scope="module")
def known():
    return load_file(GOLDEN / "outputs.safetensors")


def output(model, known):
    with torch.no_grad():
        return model(**{name: known[name] for name in INPUTS}).sample


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_definition_gives_what_it_gave(recipe, known, monkeypatch):
    """A few float32 roundings are between two machines; a level that turned would leave 50 dB."""
    monkeypatch.setenv(VARIABLE, "reference")
    model = fewbit.load(GOLDEN / recipe)
    unbind(model)
    assert sqnr(known[recipe], output(model, known)) > 110


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_backend_bound_gives_it_too(recipe, backend, known, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend)
    assert sqnr(known[recipe], output(fewbit.load(GOLDEN / recipe), known)) > 40


@pytest.mark.parametrize("recipe", RECIPES)
def test_diffusers_reads_it(recipe, known):
    model = diffusers.DiTTransformer2DModel.from_pretrained(GOLDEN / recipe)
    assert torch.equal(output(model, known), output(fewbit.load(GOLDEN / recipe), known))
