"""Rows of one matrix get what they would get in matrices of their own."""

from dataclasses import replace

import pytest
import tiny_transformers as tiny
import torch
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0

import fewbit
from fewbit.layers.linear import quantized_layers
from fewbit.models import describe

pytestmark = pytest.mark.usefixtures("one_thread")


def calls(count=12):
    random = torch.Generator().manual_seed(0)
    return [
        {
            "hidden_states": torch.randn(1, 4, 8, 8, generator=random),
            "timestep": torch.tensor([number * 80]),
            "class_labels": torch.tensor([number]),
        }
        for number in range(count)
    ]


def apart(model):
    """Without heads, whose values would be rotated."""
    return replace(describe(model).spec, heads=None)


def fused(model):
    """Queries, keys and values come from one matrix; returns the spec of the model then."""
    spec = apart(model)
    for module in model.modules():
        if isinstance(module, Attention):
            module.fuse_projections()
            module.set_processor(FusedAttnProcessor2_0())
            del module.to_q, module.to_k, module.to_v
    rest = {path: known for path, known in spec.roles.items() if known not in ("q", "k", "v")}
    return replace(spec, roles={"attn1.to_qkv": "linear", **rest})


def weights(model):
    """What was made of the first block's queries, keys and values, in this order."""
    layers = quantized_layers(model)
    names = [f"transformer_blocks.0.attn1.to_{part}" for part in ("q", "k", "v", "qkv")]
    return torch.cat([layers[name].packed_weight.dequantize() for name in names if name in layers])


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("rtn:w4a4", {}),
        ("best:w4a8", {}),
        ("fp4dit:w4a8", {"steps": 0, "formats": "role", "attention": "skip"}),
        ("tq-dit:w8a8", {"groups": 2, "candidates": 8, "rounds": 1, "attention": "skip"}),
    ],
)
def test_a_fused_matrix_is_rounded_as_its_parts_are(recipe, settings):
    given = {} if recipe.startswith("rtn") else {"calibration": calls()}
    found = []
    for known in (apart, fused):
        model = tiny.make()
        spec = known(model)
        fewbit.quantize(model, recipe, spec=spec, progress=False, **given, **settings)
        found.append(weights(model))
    one, other = found
    differing = (one - other).abs() > 1e-5 * one.abs().max()
    assert differing.float().mean() < 0.01  # sums in another order meet ties
