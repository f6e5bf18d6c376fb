"""Learned rounding: its start, its gradients, what a step moves, and what is packed."""

import pytest
import torch
from torch import nn

from fewbit.formats import FORMATS, QTensor, Spec
from fewbit.rounding.adaround import STRETCH, Pull, RoundingLinear

SPECS = ["e2m1/g8/bf16", "e1m2/row/fp32", "e3m0/g16/fp16", "int4/g8/bf16", "uint4/row/fp32"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(spec="e2m1/g8/bf16", aware=True, bias=True):
    weight = normal(12, 32)
    start = QTensor.quantize(weight, Spec.parse(spec))
    return weight, RoundingLinear(weight, start, normal(12, seed=1) if bias else None, None, aware)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_neighbours_are_the_levels_on_both_sides(fmt):
    values = torch.cat([torch.tensor(fmt.levels), 1.3 * fmt.max * normal(500).tanh()])
    lower, upper = fmt.neighbours(values)
    levels = torch.tensor(fmt.levels)
    for value, below, above in zip(values.tolist(), lower.tolist(), upper.tolist(), strict=True):
        if value >= fmt.max:
            assert below == above == fmt.max
        elif value < fmt.min:
            assert below == above == fmt.min
        else:
            place = fmt.levels.index(below)
            assert below <= value < above == fmt.levels[place + 1]
    nearest = fmt.round(values)
    assert bool(((nearest == lower) | (nearest == upper)).all())
    assert torch.equal(fmt.neighbours(levels)[0], levels)


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("spec", SPECS)
def test_it_begins_at_the_weight_and_its_nearest_levels(spec, aware):
    weight, made = layer(spec, aware)
    inside = made.gap > 0
    assert inside.float().mean() > 0.9
    assert torch.allclose(made.weight()[inside], weight[inside], atol=1e-5)
    assert torch.equal(made.packed().dequantize(), made.start.dequantize())


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_packed_is_what_counted_when_settled(spec):
    _, made = layer(spec)
    with torch.no_grad():
        made.auxiliary += normal(12, 32, seed=3)
    made.settled = True
    packed = made.packed()
    assert torch.allclose(packed.dequantize(), made.weight(), rtol=1e-6, atol=0)
    assert not torch.equal(packed.packed, made.start.packed)
    again = QTensor.quantize(packed.dequantize(), packed.spec, packed.scales)
    assert torch.equal(again.packed, packed.packed)


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_gradients_are_those_of_the_definition(aware, strength):
    _, made = layer(aware=aware)
    made.pull = Pull(strength, 3.5)
    towards = normal(12, 32, seed=4)
    with torch.no_grad():
        made.auxiliary += 2 * normal(12, 32, seed=3)  # some beyond the stretch
    (made.weight() * towards).sum().backward()
    found, made.auxiliary.grad = made.auxiliary.grad, None
    sigmoid = torch.sigmoid(made.auxiliary * made.sharpness)
    share = (sigmoid * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)
    undecided = 1 - (2 * share - 1).abs().pow(3.5).mean()
    loss = ((made.lower + made.gap * share) * towards).sum() + strength * undecided
    loss.backward()
    assert torch.allclose(found, made.auxiliary.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("aware", [True, False])
def test_a_step_moves_all_binades_alike_if_scale_aware(aware):
    """In the middle of its gap a weight moves by its gap times how far h goes."""
    _, made = layer("e3m0/row/fp32", aware, bias=False)
    with torch.no_grad():
        made.auxiliary.zero_()
        before = made.weight()
        made.auxiliary += 1e-3
        moved = (made.weight() - before)[made.gap > 0]
    spread = float(moved.max() / moved.min())
    assert spread == pytest.approx(1, rel=1e-2) if aware else spread > 50


@pytest.mark.parametrize("exponent", [20.0, 2.0])
def test_the_pull_leads_away_from_the_middle(exponent):
    share = torch.tensor([0.1, 0.4, 0.6, 0.9])
    gradient = Pull(1.0, exponent).of(share)
    assert torch.equal(gradient.sign(), torch.tensor([1.0, 1.0, -1.0, -1.0]))
    assert gradient[0] > gradient[1]


@pytest.mark.parametrize("spec", ["e2m1/g8/bf16", "int4/g8/bf16", "e3m0/row/fp32"])
def test_training_lowers_the_error_of_what_the_layer_gives(spec):
    """Inputs that go together let the errors of their weights cancel."""
    weight, made = layer(spec, bias=False)
    x = normal(256, 8, seed=5) @ normal(8, 32, seed=6)
    exact = x @ weight.T

    def lost(candidate):
        return float((x @ candidate.T - exact).square().sum())

    before = lost(made.start.dequantize())
    optimizer = torch.optim.Adam([made.auxiliary], lr=0.2)
    for step in range(300):
        made.pull = Pull(100 * before / len(x), 20 - 18 * step / 300)
        loss = (made(x) - exact).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert lost(made.packed().dequantize()) < before / 2


def test_rounded_inputs_pass_gradients_and_are_computed_once_for_all_consumers():
    calls = []

    class Stage(nn.Module):
        def values(self, x, consumer):
            calls.append((consumer, torch.is_grad_enabled()))
            return x.round()

    weight, _ = layer()
    start = QTensor.quantize(weight, Spec.parse("e2m1/g8/bf16"))
    made = RoundingLinear(weight, start, None, Stage(), True)
    x = normal(4, 32, seed=7).requires_grad_()
    y = made(x)
    assert torch.equal(y, x.detach().round() @ made.weight().detach().T)
    y.sum().backward()
    assert torch.allclose(x.grad, made.weight().detach().sum(0).expand(4, 32))
    assert calls == [(made, False)]
