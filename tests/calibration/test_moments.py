"""Streamed sums equal the sums over everything at once; padding never enters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fewbit.calibration.moments import SecondMoments
from fewbit.errors import BadCalibration


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), st.integers(1, 6))
def test_minibatches_add_up(sizes, channels):
    x = normal(sum(sizes), 2, channels)
    moments = SecondMoments(channels)
    for part in x.split(sizes):
        moments.update(part)
    flat = x.flatten(0, 1)
    assert moments.rows == len(flat)
    assert_close(moments.mean(), flat.T @ flat / len(flat))
    assert_close(moments.absmax, flat.abs().amax(0))


def test_padding_never_enters_even_when_it_is_not_a_number():
    x, mask = normal(3, 4, 5), torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) > 0.4
    padded = x.masked_fill(~mask[..., None], torch.nan)
    moments, dense = SecondMoments(5), SecondMoments(5)
    moments.update(padded, mask)
    dense.update(x[mask])
    assert moments.rows == dense.rows == mask.sum()
    assert torch.equal(moments.mean(), dense.mean())
    assert torch.equal(moments.absmax, dense.absmax)


def test_a_row_of_weight_two_counts_twice():
    x = normal(4, 3)
    weighted, repeated = SecondMoments(3), SecondMoments(3)
    weighted.update(x, torch.tensor([2.0, 1.0, 0.0, 1.0]))
    repeated.update(x[[0, 0, 1, 3]])
    assert weighted.rows == repeated.rows == 4
    assert_close(weighted.mean(), repeated.mean())


def test_float32_sums_stay_far_under_the_damping():
    """After 3000 minibatches, relative to each pair's own size; GPTQ adds 1e-2 to the diagonal."""
    moments, exact = SecondMoments(24), torch.zeros(24, 24, dtype=torch.float64)
    size = torch.logspace(-2, 3, 24)
    for seed in range(3000):
        x = normal(16, 24, seed=seed) * size + size
        moments.update(x)
        exact += x.double().T @ x.double()
    exact /= moments.rows
    spread = exact.diagonal().sqrt()
    error = (moments.mean() - exact).abs() / (spread[:, None] * spread)
    assert error.max() < 2e-5


def test_the_mean_is_symmetric_to_the_bit():
    moments = SecondMoments(70)
    moments.update(normal(300, 70))
    assert torch.equal(moments.mean(), moments.mean().T)


def test_half_types_are_summed_in_float32():
    moments = SecondMoments(1)
    moments.update(torch.full((5000, 1), 300.0, dtype=torch.float16))
    assert_close(moments.mean(), torch.tensor([[9e4]]), rtol=1e-4, atol=0)  # float16 ends at 65504
    assert moments.absmax.dtype == torch.float32


@pytest.mark.parametrize("mask", [None, torch.zeros(2, dtype=torch.bool)])
def test_nothing_seen_is_an_error(mask):
    moments = SecondMoments(3)
    moments.update(torch.ones(2, 3)[: 0 if mask is None else 2], mask)
    with pytest.raises(BadCalibration, match="3 inputs saw no rows"):
        moments.mean()
