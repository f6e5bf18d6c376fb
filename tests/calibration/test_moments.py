"""Streamed sums equal the sums over everything at once; padding never enters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fewbit.calibration.moments import PANEL, TOGETHER, Paired, PairedMoments, SecondMoments
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


def test_padding_never_enters_even_when_it_is_not_a_number():
    x, mask = normal(3, 4, 5), torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) > 0.4
    padded = x.masked_fill(~mask[..., None], torch.nan)
    moments, dense = SecondMoments(5), SecondMoments(5)
    moments.update(padded, mask)
    dense.update(x[mask])
    assert moments.rows == dense.rows == mask.sum()
    assert torch.equal(moments.mean(), dense.mean())


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
    assert moments.mean().dtype == torch.float32


@pytest.mark.parametrize("mask", [None, torch.zeros(2, dtype=torch.bool)])
def test_nothing_seen_is_an_error(mask):
    moments = SecondMoments(3)
    moments.update(torch.ones(2, 3)[: 0 if mask is None else 2], mask)
    with pytest.raises(BadCalibration, match="3 inputs saw no rows"):
        moments.mean()


def paired(x, given):
    moments = PairedMoments()
    for part, other in zip(x.split(7), given.split(7), strict=True):
        moments.update(part, other, torch.ones(len(part)))
    return moments.mean()


def test_paired_moments_are_those_around_the_means():
    x = normal(50, 6) + 3
    given = x + normal(50, 6, seed=1) * 0.3 - 1
    found, (dx, dg) = paired(x, given), (x - x.mean(0), given - given.mean(0))
    assert_close(found.square, dg.T @ dg / 50)
    assert_close(found.cross, dx.T @ dg / 50)
    assert_close(found.exact.float(), x.mean(0))
    assert_close(found.actual.float(), given.mean(0))
    plain = found.around_zero()
    assert_close(plain.square, given.T @ given / 50)
    assert_close(plain.cross, x.T @ given / 50)
    assert not plain.exact.any()


def test_the_target_is_the_least_squares_solution():
    x, weight = normal(400, 8), normal(5, 8, seed=2)
    given = x + 0.5 * normal(400, 8, seed=1)
    target = paired(x, given).around_zero().target(weight, damping=1e-9)
    solution = torch.linalg.lstsq(given, x @ weight.T).solution.T
    assert_close(target, solution, rtol=1e-4, atol=1e-4)


def test_with_its_bias_it_is_the_solution_with_a_constant():
    x, weight = normal(400, 8) + 2, normal(5, 8, seed=2)
    given = x + 0.5 * normal(400, 8, seed=1) - 1
    found = paired(x, given)
    target = found.target(weight, damping=1e-9)
    bias = found.missing(weight, target).float()
    with_one = torch.cat([given, torch.ones(400, 1)], 1)
    solution = torch.linalg.lstsq(with_one, x @ weight.T).solution.T
    assert_close(torch.cat([target, bias[:, None]], 1), solution, rtol=1e-4, atol=1e-4)


def test_inputs_that_are_exact_leave_the_target_alone():
    x, weight = normal(100, 8), normal(5, 8, seed=2)
    found = paired(x, x)
    assert_close(found.target(weight, damping=0.01), weight)
    assert_close(found.missing(weight, weight).float(), torch.zeros(5), rtol=0, atol=1e-6)


def test_padding_is_in_no_pair_and_nothing_at_all_is_refused():
    x, real = normal(3, 4, 5), torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) > 0.4
    moments = PairedMoments()
    with pytest.raises(BadCalibration, match="pairs of inputs saw no rows"):
        moments.mean()
    moments.update(x.masked_fill(~real[..., None], torch.nan), 2 * x, real)
    assert_close(moments.mean().around_zero().cross, 2 * x[real].T @ x[real] / real.sum())


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_alone_needs_no_more_than_its_outputs(bias):
    """The same target, from products with its weight."""
    x, weight = normal(300, 8) + 2, normal(3, 8, seed=2)
    given = x + 0.5 * normal(300, 8, seed=1) - 1
    moments = PairedMoments(weight)
    moments.update(x, given, torch.ones(300))
    found, whole = moments.mean(), paired(x, given)
    if not bias:
        found, whole = found.around_zero(), whole.around_zero()
    assert found.short.shape == (3, 8)
    assert_close(found.target(weight, 0.01), whole.target(weight, 0.01), rtol=1e-4, atol=1e-4)
    assert_close(found.cross, weight @ whole.cross, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [5, PANEL, PANEL + 3])
def test_sums_of_many_rows_are_whole_and_do_not_depend_on_their_parts(channels):
    x = normal(2 * TOGETHER + 7, channels)
    one, other = SecondMoments(channels), SecondMoments(channels)
    one.update(x)
    for part in x.split(1000):
        other.update(part)
    assert torch.equal(one.mean(), other.mean())
    assert_close(one.mean(), x.T @ x / len(x), rtol=1e-4, atol=1e-5)


def test_a_target_is_found_where_rounding_errors_outweigh_the_damping():
    """These moments have a negative eigenvalue."""
    square, short = (
        torch.tensor([[1.0, 1.001], [1.001, 1.0]]),
        torch.tensor([[0.1, 0.0], [0.0, 0.2]]),
    )
    zeros = torch.zeros(2, dtype=torch.float64)
    target = Paired(square, short, zeros, zeros).target(torch.eye(2), damping=1e-9)
    assert_close(target @ square, square + short, rtol=1e-3, atol=1e-3)
