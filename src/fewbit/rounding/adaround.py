"""Learned rounding (AdaRound; Nagel et al., 2020) on the levels of any format.

Each weight lies between two levels and becomes lower + h·(upper - lower), where h is a stretched
sigmoid of an auxiliary variable, clipped to 0 … 1. A regulariser drives h to one of its ends.

Scale-aware (FP4DiT, 2025): on the levels of a float the gap differs from weight to weight. The
auxiliary variable is divided by it, so that a step of the optimizer moves all weights alike and not
those in the upper binades farthest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.formats import QTensor
from fewbit.rounding.trainable import TrainableLinear

STRETCH = 0.1  # of the sigmoid beyond 0 and 1, so that both are reached


@dataclass(frozen=True)
class Pull:
    """The regulariser, strength times the mean of 1 - |2h - 1|^exponent: flat in the middle while
    the exponent is large, so that at first only those decide that nearly have."""

    strength: float
    exponent: float

    def of(self, share: Tensor) -> Tensor:
        """Its gradient."""
        off = share.mul(2).sub_(1)
        steep = off.abs().pow_(self.exponent - 1).mul_(-2 * self.exponent * self.strength)
        return steep.copysign_(off.neg_()).div_(share.numel())


class RoundingLinear(TrainableLinear):
    """A linear layer whose rounding is being learned."""

    settled = False  # whether each weight counts as the level it is nearer to
    pull = Pull(0.0, 1.0)

    def __init__(
        self,
        weight: Tensor,
        start: QTensor,
        bias: Tensor | None,
        stage: nn.Module | None,
        scale_aware: bool,
    ) -> None:
        super().__init__(bias, stage)
        self.start = start
        lower, upper = start.spec.neighbours(weight, start.scales)
        gap = upper - lower
        share = torch.where(gap > 0, (weight.float() - lower) / gap, 0.0).clamp(0, 1)
        step = gap / gap[gap > 0].mean() if scale_aware else torch.ones_like(gap)
        step = torch.where(gap > 0, step, 1.0)
        self.register_buffer("lower", lower)
        self.register_buffer("gap", gap)
        self.register_buffer("sharpness", step.reciprocal())
        self.auxiliary = nn.Parameter(_logit(share) * step)

    lower: Tensor
    gap: Tensor
    sharpness: Tensor  # one over the gap where that is 1 on average

    def weight(self) -> Tensor:
        if self.settled:
            return torch.addcmul(self.lower, self.gap, (self.auxiliary >= 0).float())
        weight: Tensor = _Between.apply(
            self.auxiliary, self.sharpness, self.lower, self.gap, self.pull
        )
        return weight

    @torch.no_grad()
    def packed(self) -> QTensor:
        """Every weight as the level it is nearer to."""
        nearer = torch.where(self.auxiliary >= 0, self.lower + self.gap, self.lower)
        return QTensor.quantize(nearer, self.start.spec, self.start.scales)


class _Between(torch.autograd.Function):
    """lower + h·gap; the gradient of the regulariser joins where that of the loss reaches h."""

    @staticmethod
    def forward(
        ctx: Any, auxiliary: Tensor, sharpness: Tensor, lower: Tensor, gap: Tensor, pull: Pull
    ) -> Tensor:
        sigmoid = (auxiliary * sharpness).sigmoid_()
        ctx.save_for_backward(sigmoid, sharpness, gap)
        ctx.pull = pull
        return torch.addcmul(lower, gap, _share(sigmoid))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sigmoid, sharpness, gap = ctx.saved_tensors
        grad = grads[0] * gap
        if ctx.pull.strength:
            grad += ctx.pull.of(_share(sigmoid))
        inside = (sigmoid - 0.5).abs_() < 0.5 / (1 + 2 * STRETCH)
        slope = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1).mul_(1 + 2 * STRETCH)
        return grad.mul_(slope).mul_(sharpness).mul_(inside), None, None, None, None


def _share(sigmoid: Tensor) -> Tensor:
    """h, how far up in its gap each weight lies."""
    return sigmoid.mul(1 + 2 * STRETCH).sub_(STRETCH).clamp_(0, 1)


def _logit(share: Tensor) -> Tensor:
    return torch.logit((share + STRETCH) / (1 + 2 * STRETCH))
