"""Gradients pass a rounding as if nothing had been rounded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, but gradients reach x as if it had not been rounded."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return rounded
    passed: Tensor = _StraightThrough.apply(x, rounded)
    return passed


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
