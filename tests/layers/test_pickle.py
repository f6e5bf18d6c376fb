"""Quantized models survive pickle, deepcopy and torch.save: spawn, Ray and launchers need them."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import small_models
import torch
from small_models import FAMILIES, arguments
from torch import Tensor, nn

import fewbit
from fewbit.layers.attention import quantized_attentions

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")


def through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


WAYS = (copy.deepcopy, through_pickle, through_torch_save)


def output(model: nn.Module, family: str) -> Tensor:
    with torch.no_grad():
        return model(**{**arguments(family, 2), "return_dict": False})[0]


def quantized(family: str, recipe: str, **asked: Any) -> nn.Module:
    model = small_models.make(family)
    if recipe != "rtn":
        asked["calibration"] = [arguments(family, 1, seed) for seed in range(4)]
    fewbit.quantize(model, recipe, progress=False, **asked)
    return model


def survives(model: nn.Module, family: str, ways: tuple[Callable[..., nn.Module], ...]) -> None:
    own = output(model, family)
    for way in ways:
        again = way(model)
        assert torch.equal(output(again, family), own), way.__name__
        assert quantized_attentions(again).keys() == quantized_attentions(model).keys()
    assert torch.equal(output(model, family), own)


# One family goes all ways; the others the one that needs their swapped classes by name.
@pytest.mark.parametrize("family", FAMILIES)
def test_models_with_quantized_attention(family):
    model = quantized(family, "fp4dit", steps=0)
    assert quantized_attentions(model)
    survives(model, family, WAYS if family == FAMILIES[0] else (through_pickle,))


@pytest.mark.parametrize("bits", ["w4a4", "w8a8", "w4a16", "nvfp4"])
def test_loaded_models(bits, tmp_path):
    family = FAMILIES[0]
    model = quantized(family, "rtn", bits=bits)
    fewbit.save(model, tmp_path / "it")
    survives(fewbit.load(tmp_path / "it"), family, WAYS)


def test_a_pickle_holds_what_a_file_holds(tmp_path):
    """Neither layouts, which are of one machine, nor the other tensors of a mapped file."""
    model = quantized(FAMILIES[0], "rtn")
    fewbit.save(model, tmp_path / "it")
    stored = sum(file.stat().st_size for file in (tmp_path / "it").glob("*.safetensors"))
    loaded = fewbit.load(tmp_path / "it")
    output(loaded, FAMILIES[0])
    assert len(pickle.dumps(loaded)) < 1.5 * stored + 200_000
