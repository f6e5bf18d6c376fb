"""Where the largest code lies: on the largest value, or lower where that loses less."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewbit.formats import Scales, Spec

SHRINKS = tuple(1 - 0.05 * step for step in range(1, 13))  # 0.95 … 0.4 of the largest value

Fit = Callable[[Tensor, Spec, Tensor | None], Scales]  # a group's weight, its spec, outer scale


def no_clipping(weight: Tensor, spec: Spec, outer: Tensor | None) -> Scales:
    """The largest code lies on the largest value of each row."""
    if not spec.symmetric:
        return spec.fit(weight)
    return spec.store(_full_scale(weight, spec), outer)


def least_error(weight: Tensor, spec: Spec, outer: Tensor | None) -> Scales:
    """For each row the scale, full or shrunk, at which its squared rounding error is smallest."""
    best = no_clipping(weight, spec, outer)
    if not spec.symmetric:
        return best
    full, least = _full_scale(weight, spec), _row_error(weight, spec, best)
    for shrink in SHRINKS:
        candidate = spec.store(full * shrink, outer)
        error = _row_error(weight, spec, candidate)
        better = error < least
        least = torch.where(better, error, least)
        best = Scales(torch.where(better, candidate.stored, best.stored), candidate.outer)
    return best


def _full_scale(weight: Tensor, spec: Spec) -> Tensor:
    return spec.scale.from_absmax(weight.abs().amax(1, keepdim=True), spec.format.max)


def _row_error(weight: Tensor, spec: Spec, scales: Scales) -> Tensor:
    return (spec.round(weight, scales) - weight).square().sum(1, keepdim=True)
