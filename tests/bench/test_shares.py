"""The stopwatch: what is inside a part counts for itself only."""

import time

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fewbit.activations.dynamic import Dynamic
from fewbit.bench.shares import PARTS, nothing_to_wait_for, shares
from fewbit.formats import QTensor, Spec
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage

SHORT = 0.01


class SlowLinear(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(2 * SHORT)
        return x


class Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = SlowLinear()

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        time.sleep(3 * SHORT)
        q = torch.zeros(1, 1, 4, 4)
        return scaled_dot_product_attention(q, q, q) + x


def test_each_part_has_its_own_time() -> None:
    model = Slow()
    found = shares(model, lambda: model(torch.zeros(4)), nothing_to_wait_for)
    assert tuple(found) == PARTS
    assert sum(found.values()) == pytest.approx(1, abs=1e-3)  # rounded to four places
    # Sleeps of 2 : 3; wide enough for a machine that is slow to wake up.
    assert found["linear"] == pytest.approx(2 / 5, abs=0.15)
    assert found["other"] == pytest.approx(3 / 5, abs=0.15)
    assert 0 < found["attention"] < 0.2
    assert found["quantize"] == 0


@torch.no_grad()
def test_a_bound_layer_is_listened_to_inside_and_stays_as_it_was() -> None:
    weight = QTensor.quantize(torch.randn(24, 32), Spec.parse("int8/row/fp32"))
    layer = QLinear(weight, None, InputStage(activation=Dynamic(Spec.parse("int8/row/fp32"))))
    x = torch.randn(5, 32)
    before = layer(x)
    attributes = dict(vars(layer.bound()))
    found = shares(layer, lambda: layer(x), nothing_to_wait_for)
    assert found["linear"] > 0
    assert found["quantize"] > 0
    assert vars(layer.bound()) == attributes
    assert "attention" not in vars(layer.bound().backend)
    assert torch.equal(layer(x), before)


def test_nothing_listens_afterwards() -> None:
    model = Slow()
    shares(model, lambda: model(torch.zeros(4)), nothing_to_wait_for)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
