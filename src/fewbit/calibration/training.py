"""Train what weights are made of, until a block gives what it gave in full precision."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewbit.calibration.reconstruction import Minibatch, Reconstruction
from fewbit.errors import BadCalibration
from fewbit.models.own_forward import refuse_bound_to_one


@dataclass(frozen=True)
class Group:
    """Parameters that learn at one rate."""

    parameters: Sequence[nn.Parameter]
    rate: float


@dataclass(frozen=True)
class Schedule:
    steps: int
    batch: int  # rows at a time
    seed: int


def trainable_copy(module: nn.Module) -> nn.Module:
    """In float32 and evaluation mode, nothing of it to be trained yet."""
    refuse_bound_to_one(module)
    return copy.deepcopy(module).float().eval().requires_grad_(False)


def nothing(progress: float) -> None:
    """What usually happens after a step."""


def train(
    loss: Callable[[Minibatch, float], Tensor],
    rows: Reconstruction,
    groups: Sequence[Group],
    schedule: Schedule,
    after: Callable[[float], None] = nothing,
) -> None:
    """Adam, its rates falling to zero along a cosine. `loss` and `after`, which is called after
    each step, are told what share of the training is done."""
    learning = [group for group in groups if group.parameters]
    parameters = [{"params": list(group.parameters)} for group in learning]
    optimizer = torch.optim.Adam(parameters, fused=True)
    minibatches = rows.minibatches(schedule.steps, schedule.batch, schedule.seed)
    with torch.enable_grad():
        for number, minibatch in enumerate(minibatches):
            progress = number / schedule.steps
            for group, state in zip(learning, optimizer.param_groups, strict=True):
                state["lr"] = group.rate * (1 + math.cos(math.pi * progress)) / 2
            error = loss(minibatch, progress)
            if not error.isfinite():
                raise BadCalibration(
                    f"training diverged: the loss is {error.item()} after {number} of "
                    f"{schedule.steps} steps; smaller rates help"
                )
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            after((number + 1) / schedule.steps)
