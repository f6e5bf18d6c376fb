"""What a network weighs and how long a step takes, beside the same network in bfloat16."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.calibration import CalibrationSet
from fewbit.calibration.modes import evaluating
from fewbit.calibration.tree import map_tensors
from fewbit.engine.size import Size, Stored, size_of, smaller
from fewbit.judge.trajectory import noise_prediction

ROWS, REPEATS = 2, 5


@dataclass(frozen=True)
class Cost:
    """seconds: of one forward of ROWS rows, the median of REPEATS, both networks in turn."""

    size: Size
    bf16_bytes: int
    seconds: float
    bf16_seconds: float

    @property
    def smaller(self) -> float:
        return smaller(self.size, self.bf16_bytes)

    @property
    def faster(self) -> float:
        return self.bf16_seconds / self.seconds


@torch.no_grad()
def cost_of(network: nn.Module, reference: nn.Module, rows: CalibrationSet) -> Cost:
    plain = copy.deepcopy(reference).to(torch.bfloat16)
    inputs = next(rows.batches(ROWS))
    halved = map_tensors(inputs, _to_bfloat16)
    with evaluating(network, plain):
        turns = [(_seconds(network, inputs), _seconds(plain, halved)) for _ in range(REPEATS + 1)]
    ours, theirs = zip(*turns[1:], strict=True)  # the first warms up
    return Cost(size_of(network), Stored.of(reference).bf16_bytes, median(ours), median(theirs))


def _to_bfloat16(tensor: Tensor) -> Tensor:
    return tensor.bfloat16() if tensor.is_floating_point() else tensor


def _seconds(network: nn.Module, inputs: dict[str, Any]) -> float:
    started = time.perf_counter()
    noise_prediction(network, inputs)
    return time.perf_counter() - started
