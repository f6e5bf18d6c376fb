"""Outlier channels change what a DiT's layers see, and nothing of what it computes."""

import copy

import pytest
import torch
from torch import nn

from fewbit import demo
from fewbit.demo.outliers import with_outliers
from fewbit.errors import BadArgument, BadModel


@pytest.fixture(scope="module")
def transformer():
    return demo.load("shapes").transformer


def _output(model, dtype):
    random = torch.Generator().manual_seed(0)
    latent = torch.randn(4, 4, 16, 16, generator=random, dtype=torch.float64).to(dtype)
    step, label = torch.tensor([999, 600, 200, 0]), torch.tensor([0, 3, 11, 1000])
    with torch.no_grad():
        return model.to(dtype)(latent, timestep=step, class_labels=label).sample


def _entering(model, layer):
    """Each channel's largest magnitude among what enters the layer."""
    seen = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    _output(model, torch.float32)
    hook.remove()
    return seen[0].abs().flatten(0, 1).amax(0)


# fp32 rounds at 6e-8, some hundred roundings deep; fp64 at 1e-16.
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("factor", [100.0, 0.25])
def test_the_function_is_preserved(transformer, dtype, allowed, factor):
    before = _output(copy.deepcopy(transformer), dtype)
    model = copy.deepcopy(transformer).to(dtype)
    assert with_outliers(model, factor, channels=4, seed=0) is model
    after = _output(model, dtype)
    assert (after - before).norm() < allowed * before.norm()


@pytest.mark.parametrize(
    "layer",
    [lambda b: b.attn1.to_q, lambda b: b.ff.net[0].proj, lambda b: b.attn1.to_out[0]],
    ids=["qkv", "fc1", "out"],
)
def test_the_inputs_get_the_outliers(transformer, layer):
    model = with_outliers(copy.deepcopy(transformer), 100.0, channels=4, seed=0)
    for old, new in zip(transformer.transformer_blocks, model.transformer_blocks, strict=True):
        growth = _entering(model, layer(new)) / _entering(transformer, layer(old))
        enlarged = growth > 50
        assert enlarged.sum() == 4
        # What is not enlarged only meets the roundings of the blocks before.
        assert torch.allclose(growth[enlarged], torch.tensor(100.0), rtol=1e-3)
        assert torch.allclose(growth[~enlarged], torch.tensor(1.0), rtol=1e-3)


def test_the_seed_chooses_the_channels(transformer):
    weights = [
        with_outliers(copy.deepcopy(transformer), 10.0, 4, seed).transformer_blocks[0].attn1.to_q
        for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0].weight, weights[1].weight)
    assert not torch.equal(weights[0].weight, weights[2].weight)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bad_factor_is_refused(transformer, factor):
    with pytest.raises(BadArgument, match="factor must be positive"):
        with_outliers(transformer, factor, 4, 0)


@pytest.mark.parametrize("channels", [-1, 193])
def test_a_bad_channel_count_is_refused(transformer, channels):
    with pytest.raises(BadArgument, match="from 0 to the width 192"):
        with_outliers(transformer, 10.0, channels, 0)


def test_another_model_is_refused():
    with pytest.raises(BadModel, match="DiTTransformer2DModel"):
        with_outliers(nn.Linear(2, 2), 10.0, 1, 0)
