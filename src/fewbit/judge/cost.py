"""What a network weighs and how long a step takes, beside the same network in bfloat16."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from fewbit.calibration import CalibrationSet
from fewbit.engine.measured import BATCH, seconds_in_turns
from fewbit.engine.stored_size import Size, Stored, size_of, smaller


@dataclass(frozen=True)
class Cost:
    """seconds: of one forward of a few rows, both networks in turn."""

    size: Size
    bf16_bytes: int
    seconds: float
    bf16_seconds: float

    @property
    def smaller(self) -> float:
        return smaller(self.size.bytes, self.bf16_bytes)

    @property
    def faster(self) -> float:
        return self.bf16_seconds / self.seconds


def cost_of(network: nn.Module, reference: nn.Module, rows: CalibrationSet) -> Cost:
    plain = copy.deepcopy(reference).to(torch.bfloat16)
    times = seconds_in_turns(network, plain, next(rows.batches(BATCH)))
    return Cost(size_of(network), Stored.of(reference).bf16_bytes, *times)
