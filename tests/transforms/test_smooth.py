"""The law of every transform, and scales that stay usable on dead and extreme channels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fewbit.errors import BadArgument
from fewbit.transforms.smooth import LARGEST_LOG, Smooth, smoothing_scales


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 5), st.floats(0, 1))
def test_the_product_is_unchanged(channels, tokens, alpha):
    x, weight = normal(tokens, channels), normal(6, channels, seed=1)
    scales = smoothing_scales(normal(channels, seed=2).abs(), weight.abs().amax(0), alpha)
    smooth = Smooth(scales)
    assert_close(smooth(x) @ smooth.weight(weight).T, x @ weight.T)


def test_equation_four_up_to_a_common_factor():
    act, weight = torch.tensor([1.0, 16.0, 100.0]), torch.tensor([4.0, 1.0, 25.0])
    scales = smoothing_scales(act, weight, 0.5)
    assert_close(scales / scales[0], torch.tensor([0.5, 4.0, 2.0]) / 0.5)
    assert_close(scales.log().mean(), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_alpha_one_levels_the_activations_and_zero_the_weights():
    act, weight = normal(9).abs(), normal(9, seed=1).abs()
    levelled = act / smoothing_scales(act, weight, 1.0)
    assert_close(levelled, levelled[:1].expand(9))
    levelled = weight * smoothing_scales(act, weight, 0.0)
    assert_close(levelled, levelled[:1].expand(9))


def test_channels_calibration_never_saw_are_left_alone():
    act, weight = torch.tensor([0.0, 3.0, 5.0, 2.0]), torch.tensor([1.0, 2.0, 0.0, 7.0])
    scales = smoothing_scales(act, weight, 0.5)
    assert scales[[0, 2]].tolist() == [1.0, 1.0]
    assert smoothing_scales(torch.zeros(3), torch.ones(3), 0.5).tolist() == [1.0, 1.0, 1.0]


def test_extreme_channels_are_bounded():
    act = torch.tensor([1e-30, 1.0, 1e30])
    scales = smoothing_scales(act, torch.ones(3), 1.0)
    assert_close(scales.log(), torch.tensor([-LARGEST_LOG, 0.0, LARGEST_LOG]), atol=1e-5, rtol=0)


def test_half_types_keep_their_type():
    smooth = Smooth(torch.tensor([2.0, 0.5]))
    half = torch.ones(1, 2, dtype=torch.bfloat16)
    assert smooth(half).dtype == smooth.weight(half).dtype == torch.bfloat16


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_outside_the_unit_interval_is_refused(alpha):
    with pytest.raises(BadArgument, match="allowed: 0 to 1"):
        smoothing_scales(torch.ones(2), torch.ones(2), alpha)
