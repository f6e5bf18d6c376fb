"""The stopwatch: what is inside a part counts for itself only."""

import time

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fewbit.bench.shares import PARTS, nothing_to_wait_for, shares
from fewbit.layers.stage import InputStage

SHORT = 0.01


class SlowStage(InputStage):
    def forward(self, x: Tensor, reader: object = None) -> Tensor:
        time.sleep(SHORT)
        return x


class SlowLinear(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.stage = SlowStage()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(x)
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
    # Sleeps of 2 : 1 : 3; wide enough for a machine that is slow to wake up.
    assert found["linear"] == pytest.approx(2 / 6, abs=0.12)
    assert found["quantize"] == pytest.approx(1 / 6, abs=0.1)
    assert found["other"] == pytest.approx(3 / 6, abs=0.12)
    assert 0 < found["attention"] < 0.2


def test_nothing_listens_afterwards() -> None:
    model = Slow()
    shares(model, lambda: model(torch.zeros(4)), nothing_to_wait_for)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
