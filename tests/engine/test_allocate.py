"""A budget is kept, nothing within it loses less, and one that is too small says what it needs."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_dit import rows, run

import fewbit
from fewbit.engine.allocate import STEPS, budget_of, knapsack
from fewbit.engine.decibel import sqnr
from fewbit.engine.plan import make_plan
from fewbit.engine.recipe import Recipe
from fewbit.errors import BadArgument
from fewbit.layers.linear import quantized_layers

options = st.lists(st.tuples(st.integers(1, 50), st.floats(0, 10)), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(options, min_size=1, max_size=5), st.floats(0, 1))
def test_it_is_the_best_of_all_that_fit(items, share):
    """But for what is rounded up to a step of the budget."""
    items = [tuple(zip(*one, strict=True)) for one in items]
    least, most = (sum(pick(costs) for costs, _ in items) for pick in (min, max))
    budget = least + share * (most - least)
    chosen = knapsack(items, budget)
    assert cost(items, chosen) <= budget + 1e-6
    within = budget - len(items) * (budget - least) / STEPS
    everything = product(*(range(len(costs)) for costs, _ in items))
    best = min(lost(items, one) for one in everything if cost(items, one) <= within + 1e-9 or
               cost(items, one) == least)  # fmt: skip
    assert lost(items, chosen) <= best + 1e-9


def cost(items, chosen):
    return sum(costs[index] for (costs, _), index in zip(items, chosen, strict=True))


def lost(items, chosen):
    return sum(losses[index] for (_, losses), index in zip(items, chosen, strict=True))


def test_by_hand():
    """Two units go to the layer that gains 5 by them, and not one to each, which gains 3 and 1."""
    items = [((1, 2, 3), (9.0, 6.0, 4.0)), ((1, 2, 3), (3.0, 2.0, 1.5))]
    assert knapsack(items, 4) == [2, 0]
    assert knapsack(items, 2) == [0, 0]
    assert knapsack(items, 6) == [2, 2]


def plan_of(model, **settings):
    return make_plan(model, Recipe.make("best", None, settings), None, allow_unknown=False)


def test_a_budget_below_the_smallest_says_what_it_would_hold(small):
    pytest.importorskip("diffusers")
    model = small()
    message = (
        r"a budget of 1.5 bits is below the smallest possible: 2\.\d\d bits a weight, 0\.\d MB"
    )
    with pytest.raises(BadArgument, match=message):
        budget_of(plan_of(model, bits_per_weight=1.5))
    with pytest.raises(BadArgument, match=r"a budget of 0\.1 MB is below .* are no quantized"):
        fewbit.quantize(model, "best", size=0.1, calibration=rows(), progress=False)
    with pytest.raises(BadArgument, match="size or bits_per_weight, not both"):
        plan_of(model, size=1.0, bits_per_weight=4.0)
    assert budget_of(plan_of(model)) is None


def test_layers_get_different_bits_within_the_budget(small):
    pytest.importorskip("diffusers")
    model = small()
    report = fewbit.quantize(model, "best", bits_per_weight=3.5, calibration=rows(), progress=False)
    weights = sum(one.bytes_before for one in report.layers)
    bits = sum(one.bits_per_weight * one.bytes_before for one in report.layers) / weights
    assert 3.3 < bits <= 3.5
    assert len({one.weight for one in report.layers}) > 1
    assert sqnr(run(small()), run(model)) > 25


def test_a_size_is_that_of_the_model(small, tmp_path):
    pytest.importorskip("diffusers")
    model = small()
    plan = plan_of(model)
    size = (plan.size_after.bytes + 5_000) / 1e6
    report = fewbit.quantize(
        model, "best", size=size, calibration=rows(), progress=False, transform="none"
    )
    assert report.bytes <= size * 1e6
    assert torch.isfinite(run(model)).all()


def test_inputs_get_as_many_directions_as_pay(small):
    """They are paid for once for all layers that read the input."""
    pytest.importorskip("diffusers")
    model = small()
    settings = {"bits": "w4a4", "bits_per_weight": 4.8, "calibration": rows(), "progress": False}
    fewbit.quantize(model, "best", **settings)
    layers = quantized_layers(model).values()
    apart = {id(one.stage): one.stage.principal for one in layers if one.stage is not None}
    kept = [one.codes for one in apart.values() if one is not None]
    stored = sum(layer.weight_bytes for layer in layers) + sum(one.nbytes for one in kept)
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    assert 4.6 < 8 * stored / weights <= 4.8
    assert len({len(one) for one in kept}) > 1
