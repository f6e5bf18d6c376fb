"""Directions where a byte brings most: water fills the deepest first."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.errors import BadArgument
from fewbit.transforms.ranks import ranks, weigh

SPECTRA = [torch.tensor([8.0 / 2**i for i in range(24)]), torch.linspace(1, 0.5, 32), torch.ones(7)]


def left(powers, found):
    return sum(float(spectrum[rank:].sum()) for spectrum, rank in zip(powers, found, strict=True))


@settings(max_examples=40, deadline=None)
@given(budget=st.integers(0, 900))
def test_nothing_leaves_less_where_directions_cost_the_same(budget):
    found = ranks(SPECTRA, [10, 10, 10], budget)
    allowed = [range(0, len(spectrum) + 1, 8) for spectrum in SPECTRA]
    best = min(left(SPECTRA, some) for some in product(*allowed) if 10 * sum(some) <= budget)
    assert 10 * sum(found) <= budget
    assert left(SPECTRA, found) == best


def test_a_direction_that_costs_more_must_bring_more():
    same = [torch.ones(16), torch.ones(16)]
    assert ranks(same, [10, 30], 160) == [16, 0]
    assert ranks([same[0], 2 * same[1]], [10, 30], 240) == [16, 0]
    assert ranks([same[0], 4 * same[1]], [10, 30], 240) == [0, 8]
    assert ranks([same[0], 4 * same[1]], [10, 30], 320) == [8, 8]


def test_nothing_is_bought_where_nothing_is_left():
    assert ranks(SPECTRA, [1, 1, 1], 0) == [0, 0, 0]
    assert ranks(SPECTRA, [1, 1, 1], 1 << 40) == [24, 32, 0]
    assert ranks([], [], 100) == []


@pytest.mark.parametrize(("costs", "budget"), [([1], 10), ([1, 1, 0], 10), ([1, 1, 1], -1)])
def test_costs_that_make_no_sense_are_refused(costs, budget):
    with pytest.raises(BadArgument, match="3 inputs need as many costs"):
        ranks(SPECTRA, costs, budget)


def test_weighed_power_is_the_share_of_the_output_that_noise_of_it_makes():
    """Noise of that power over 16 columns, measured against the output of each layer."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 16, generator=generator) * torch.linspace(0.1, 4, 16)
    weights = [torch.randn(rows, 16, generator=generator) for rows in (8, 40)]
    noise = torch.randn(5000, 16, generator=generator) * (3.0 / 16) ** 0.5
    share = sum(
        float((noise @ weight.T).square().sum() / (x @ weight.T).square().sum())
        for weight in weights
    )
    weighed = weigh(torch.tensor([2.0, 1.0]), weights, x.T @ x / 5000)
    assert abs(float(weighed.sum()) / share - 1) < 0.05
