"""Where the largest code lies: on the largest value, or lower where that loses less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

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
    """For each row the scale, full or shrunk, at which its squared rounding error is smallest;
    a zero point stays where it is."""
    best = no_clipping(weight, spec, outer)
    full, least = _full_scale(weight, spec), _row_error(weight, spec, best)
    for shrink in SHRINKS:
        candidate = replace(spec.store(full * shrink, outer), zeros=best.zeros)
        error = _row_error(weight, spec, candidate)
        better = error < least
        least = torch.where(better, error, least)
        stored = torch.where(better, candidate.stored, best.stored)
        best = replace(candidate, stored=stored)
    return best


def _full_scale(weight: Tensor, spec: Spec) -> Tensor:
    """What spans the largest magnitude, or with a zero point all values and 0."""
    if spec.symmetric:
        most = weight.abs().amax(1, keepdim=True)
    else:
        low, high = weight.aminmax(dim=1, keepdim=True)
        most = high.clamp(min=0) - low.clamp(max=0)
    return spec.scale_of(most)


def _row_error(weight: Tensor, spec: Spec, scales: Scales) -> Tensor:
    return (spec.round(weight, scales) - weight).square().sum(1, keepdim=True)
