"""H·Hᵀ = n·I for every width a diffusion transformer has, and the cheapest product is chosen."""

from math import prod

import pytest
import torch

from fewbit.transforms.hadamard_matrix import adds, factors, halves, kronecker, steps

BASES = (2, 12, 20, 28, 36, 44, 60, 76, 108, 140)
WIDTHS = (4, 16, 48, 64, 72, 80, 88, 96, 112, 192, 384, 640, 768, 1024, 1152, 1280, 1408, 1536)
WIDE = (1792, 2240, 2304, 3072, 4096, 4608, 5632, 6144, 6912, 12288)


@pytest.mark.parametrize("order", BASES + WIDTHS)
def test_rows_are_orthogonal(order):
    left, right = halves(order)
    matrix = kronecker(left + right).float()
    assert set(matrix.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order))


@pytest.mark.parametrize("order", WIDE)
def test_the_halves_of_wide_ones_are_orthogonal_and_make_the_width(order):
    matrices = [kronecker(half).float() for half in halves(order)]
    assert prod(map(len, matrices)) == order
    for matrix in matrices:
        assert torch.equal(matrix @ matrix.T, len(matrix) * torch.eye(len(matrix)))


def test_paley_one_is_not_symmetric_and_paley_two_is():
    first, second = kronecker((12,)), kronecker((28,))
    assert not torch.equal(first, first.T)
    assert torch.equal(second, second.T)


@pytest.mark.parametrize(
    ("order", "bases", "cost"),
    [
        (1, (), 0),
        (72, (36, 2), 37),
        (768, (12,) + 6 * (2,), 18),
        (1152, (12, 12, 2, 2, 2), 27),
        (1408, (44,) + 5 * (2,), 49),
        (2240, (28, 20, 2, 2), 50),
        (4608, (12, 12) + 5 * (2,), 29),
        (6912, (12, 12, 12, 2, 2), 38),
    ],
)
def test_the_cheapest_product_is_chosen(order, bases, cost):
    assert factors(order) == bases
    assert adds(bases) == cost


@pytest.mark.parametrize("order", [-4, 0, 3, 6, 18, 100, 116, 1150, 1151, 2 * 233])
def test_a_width_without_a_matrix_has_no_factors(order):
    assert factors(order) is None


def test_halves_are_balanced_and_small_orders_are_undivided():
    assert halves(64) == ((), 6 * (2,))
    assert [prod(half) for half in halves(1152)] == [24, 48]
    assert [prod(half) for half in halves(4608)] == [48, 96]


@pytest.mark.parametrize(
    ("order", "applied"),
    [(1152, [12, 2, 12, 4]), (4608, [12, 4, 12, 8]), (4096, 4 * [8]), (64, [8, 8]), (36, [36])],
)
def test_few_factors_are_applied_at_a_time_and_none_is_moved(order, applied):
    assert [prod(bases) for bases in steps(order)] == applied
    left, right = halves(order)
    assert sum(steps(order), ()) == left + right
