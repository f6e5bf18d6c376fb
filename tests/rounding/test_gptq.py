"""GPTQ against the textbook recursion, closed forms and the true optimum, on uniform grids."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from solving import Integers, correlated, normal
from torch.testing import assert_close

from fewbit.errors import BadArgument, BadCalibration
from fewbit.rounding.gptq import gptq


class Grid:
    """-7..7 times a scale per row and group: the largest magnitude of the group is the last."""

    def __init__(self, group=None):
        self.group = group
        self.scales = {}
        self.seen = {}

    def begin(self, columns, weight):
        self.seen[columns.start] = weight.clone()
        self.scales[columns.start] = weight.abs().amax(1) / 7

    def round(self, weight, column):
        scale = self.scales[column - column % self.group if self.group else 0]
        return (weight / scale).round().clamp(-7, 7) * scale


def nearest(weight, rounder):
    group = rounder.group or weight.shape[1]
    for start in range(0, weight.shape[1], group):
        columns = slice(start, min(start + group, weight.shape[1]))
        rounder.begin(columns, weight[:, columns])
    return torch.stack([rounder.round(w, j) for j, w in enumerate(weight.T)], dim=1)


def output_error(weight, values, hessian):
    error = weight - values
    return ((error @ hessian) * error).sum()


def textbook(weight, hessian, rounder, damping):
    """Frantar et al., algorithm 1 with blocks of one column: the inverse, nothing lazy."""
    weight, count = weight.clone(), weight.shape[1]
    hessian = hessian + damping * hessian.diagonal().mean() * torch.eye(count).double()
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    values = torch.empty_like(weight)
    for j in range(count):
        if j % (rounder.group or count) == 0:
            columns = slice(j, min(j + (rounder.group or count), count))
            rounder.begin(columns, weight[:, columns])
        values[:, j] = rounder.round(weight[:, j], j)
        error = (weight[:, j] - values[:, j]) / upper[j, j]
        weight[:, j:] -= error[:, None] * upper[j, j:]
    return values


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.sampled_from([None, 1, 5, 16, 32, 48, 64, 100, 128]))
def test_it_is_the_textbook_whatever_the_groups(inputs, group):
    """Groups smaller than, larger than and across every span the recursion uses."""
    weight, hessian = normal(3, inputs), correlated(inputs)
    ours, theirs = Grid(group), Grid(group)
    solution = gptq(weight, hessian, ours, damping=0.01)
    assert_close(solution.values, textbook(weight, hessian, theirs, 0.01), rtol=0, atol=1e-9)
    assert list(ours.seen) == list(theirs.seen)
    for start, seen in ours.seen.items():
        assert_close(seen, theirs.seen[start], rtol=0, atol=1e-9)


@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("group", [None, 24])
def test_uncorrelated_inputs_give_nearest_rounding(order, group):
    weight, loudness = normal(5, 100).float(), torch.rand(100) + 0.1
    values = gptq(weight, loudness.diag(), Grid(group), order=order).values
    assert torch.equal(values, nearest(weight, Grid(group)))


def test_two_columns_by_hand():
    """q₁ = round(w₁), q₂ = round(w₂ + (w₁ - q₁)·h₁₂/h₂₂), and in the other order the mirror."""
    weight = torch.tensor([[0.4, 0.3], [1.4, -0.3], [0.2, 0.2]])
    hessian = torch.tensor([[5.0, 3.0], [3.0, 4.0]])  # 0.4·3/4 and 0.3·3/5 lift the other one
    natural = gptq(weight, hessian, Integers(), damping=0).values
    assert natural.tolist() == [[0, 1], [1, 0], [0, 0]]
    loudest_last = gptq(weight, hessian.flip(0, 1), Integers(), damping=0, order="activation")
    assert loudest_last.values.tolist() == [[1, 0], [1, 0], [0, 0]]


def test_damping_weakens_the_feedback():
    """h₁₂/(h₂₂ + λ) with λ = 4.5: 0.3 + 0.4·3/8.5 stays under a half."""
    weight, hessian = torch.tensor([[0.4, 0.3]]), torch.tensor([[5.0, 3.0], [3.0, 4.0]])
    assert gptq(weight, hessian, Integers(), damping=1.0).values.tolist() == [[0, 0]]


@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("group", [None, 32])
def test_it_beats_nearest_rounding_on_correlated_inputs(order, group):
    weight, hessian = normal(64, 192), correlated(192)
    plain = output_error(weight, nearest(weight, Grid(group)), hessian)
    ours = output_error(weight, gptq(weight, hessian, Grid(group), order=order).values, hessian)
    assert 10 * torch.log10(plain / ours) > 2.5  # 3.2 to 3.5 dB here


def test_it_is_close_to_the_optimum_of_all_roundings():
    """Four columns, every combination of the five nearest integers around zero tried."""
    choices = torch.tensor(list(product(range(-2, 3), repeat=4)), dtype=torch.float64)
    ours = plain = best = 0.0
    for seed in range(60):
        weight, hessian = normal(1, 4, seed=seed).clamp(-1.5, 1.5), correlated(4, seed=seed)
        error = weight - choices
        best += ((error @ hessian) * error).sum(1).min().item()
        values = gptq(weight, hessian, Integers(), damping=0).values
        ours += output_error(weight, values, hessian).item()
        plain += output_error(weight, weight.round(), hessian).item()
    assert ours < 2 * best  # 1.57 here
    assert plain > 2.5 * best  # 3.04 here


def test_activation_order_fixes_scales_from_the_weight_and_looks_columns_up_by_index():
    weight, hessian = normal(4, 80), correlated(80)
    grid = Grid(group=32)
    values = gptq(weight, hessian, grid, order="activation").values
    assert {start: seen.shape[1] for start, seen in grid.seen.items()} == {0: 32, 32: 32, 64: 16}
    for start, seen in grid.seen.items():
        assert torch.equal(seen, weight[:, start : start + 32])
    assert torch.equal(nearest_again(values, grid), values)


def test_activation_order_is_natural_order_of_sorted_columns():
    weight, hessian = normal(6, 70), correlated(70)
    loudest = hessian.diagonal().argsort(descending=True)
    values = gptq(weight, hessian, Integers(), order="activation").values
    sorted_values = gptq(weight[:, loudest], hessian[loudest][:, loudest], Integers()).values
    assert torch.equal(values[:, loudest], sorted_values)


@pytest.mark.parametrize("group", [None, 16])
def test_values_lie_on_the_grid_the_rounder_holds_at_the_end(group):
    grid = Grid(group)
    values = gptq(normal(8, 64).float(), correlated(64), grid).values
    assert_close(nearest_again(values, grid), values, rtol=1e-6, atol=0)


def nearest_again(values, grid):
    return torch.stack([grid.round(v, j) for j, v in enumerate(values.T)], dim=1)


@pytest.mark.parametrize("order", ["natural", "activation"])
def test_dead_channels_are_rounded_to_nearest_and_change_nothing_else(order):
    weight, hessian = 3 * normal(5, 40), correlated(40)
    alive = torch.zeros(40, dtype=torch.bool)
    alive[3::4] = True
    hessian[~alive] = 0
    hessian[:, ~alive] = 0
    solution = gptq(weight, hessian, Integers(), order=order, damping=0.3)
    assert torch.equal(solution.dead, ~alive)
    assert torch.equal(solution.values[:, ~alive], weight[:, ~alive].round())
    living = weight[:, alive], hessian[alive][:, alive]
    without = gptq(*living, Integers(), order=order, damping=0.3)
    assert torch.equal(solution.values[:, alive], without.values)


def test_a_layer_that_saw_only_zeros_is_rounded_to_nearest():
    weight = 3 * normal(5, 40)
    solution = gptq(weight, torch.zeros(40, 40), Integers())
    assert solution.dead.all()
    assert torch.equal(solution.values, weight.round())


def test_damping_rises_until_the_hessian_is_positive_definite():
    weight, vector = normal(2, 8), torch.ones(8, 1, dtype=torch.float64)
    singular = vector @ vector.T
    assert gptq(weight, singular, Grid(), damping=0).damping == 1e-4
    assert gptq(weight, singular, Grid()).damping == 0.01
    indefinite = singular - 0.05 * torch.eye(8)
    assert gptq(weight, indefinite, Grid()).damping == 0.1


def test_unusable_second_moments_are_refused():
    weight = normal(2, 8)
    with pytest.raises(BadCalibration, match="8 inputs are not positive definite"):
        gptq(weight, -torch.eye(8), Grid())
    broken = torch.eye(8)
    broken[2, 3] = broken[3, 2] = torch.nan
    with pytest.raises(BadCalibration, match="NaN or infinity in 2 channels"):
        gptq(weight, broken, Grid())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hessian": torch.eye(7)}, r"8 inputs got second moments of shape \(7, 7\)"),
        ({"damping": -0.1}, "damping -0.1; allowed: 0 to 1"),
        ({"order": "random"}, "order 'random'; allowed: natural, activation"),
    ],
)
def test_wrong_arguments_are_refused(settings, message):
    with pytest.raises(BadArgument, match=message):
        gptq(normal(2, 8), rounder=Grid(), **{"hessian": torch.eye(8), **settings})


@pytest.mark.parametrize("order", ["natural", "activation"])
def test_the_same_input_gives_the_same_bits_and_is_left_untouched(order):
    weight, hessian = normal(33, 200).float(), correlated(200).float()
    before = weight.clone(), hessian.clone()
    first, second = (gptq(weight, hessian, Grid(32), order=order).values for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_half_precision_weights_are_solved_in_float32():
    assert gptq(normal(2, 8).bfloat16(), correlated(8), Grid()).values.dtype == torch.float32
