"""Where the largest code lies: on the largest value, or lower where that loses less."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewbit.formats import Scales, Spec
from fewbit.formats.scale import FP32

SHRINKS = tuple(1 - 0.05 * step for step in range(1, 13))  # 0.95 … 0.4 of the largest value
RATIOS = (*reversed(SHRINKS), 1.0)
FAR = 1e6  # times the full scale: further out are groups of zeros


@dataclass(frozen=True)
class Fit:
    """For each row the scale, full or shrunk, at which its squared rounding error is smallest; a
    zero point stays where it is. `importance` [columns] is what the error of a column weighs."""

    shrinks: tuple[float, ...] = ()

    def __call__(
        self, weight: Tensor, spec: Spec, outer: Tensor | None, importance: Tensor | None = None
    ) -> Scales:
        """Of one group of columns, whose outer scale is known."""
        best = spec.fit(weight, outer)
        if not self.shrinks:
            return best
        full, least = _full_scale(weight, spec), _row_error(weight, spec, best, importance)
        for shrink in self.shrinks:
            candidate = replace(spec.store(full * shrink, outer), zeros=best.zeros)
            error = _row_error(weight, spec, candidate, importance)
            better = error < least
            least = torch.where(better, error, least)
            stored = torch.where(better, candidate.stored, best.stored)
            best = replace(candidate, stored=stored)
        return best

    def outer(self, weight: Tensor, spec: Spec, importance: Tensor | None = None) -> Tensor | None:
        """The outer scale of all groups. Integer factors of it are few, so the one is chosen at
        which they lose least."""
        full = spec.fit(weight).outer
        if full is None or not spec.scale.factors or not self.shrinks:
            return full
        tried = [full, *(spec.fit(weight * shrink).outer for shrink in self.shrinks)]
        outers = torch.cat([outer for outer in tried if outer is not None], 1)
        least = _Losses(weight, spec, importance).at(outers).argmin(1, keepdim=True)
        return outers.gather(1, least)


no_clipping, least_error = Fit(), Fit(SHRINKS)


def _full_scale(weight: Tensor, spec: Spec) -> Tensor:
    """What spans the largest magnitude, or with a zero point all values and 0."""
    if spec.symmetric:
        most = weight.abs().amax(1, keepdim=True)
    else:
        low, high = spec.ends(*weight.aminmax(dim=1, keepdim=True))
        most = high - low
    return spec.scale_of(most)


def _row_error(
    weight: Tensor, spec: Spec, scales: Scales, importance: Tensor | None = None
) -> Tensor:
    error = (spec.round(weight, scales) - weight).square()
    return (error if importance is None else error * importance).sum(1, keepdim=True)


class _Losses:
    """What each group loses, tabulated at evenly spaced scales: so that many outer scales can be
    compared, each with the best factor for every group, without rounding the weight anew."""

    def __init__(self, weight: Tensor, spec: Spec, importance: Tensor | None) -> None:
        self.groups, self.factors = spec.groups(weight.shape[1]), spec.scale.factors
        parts, plain = (
            weight.reshape(len(weight) * self.groups, -1),
            replace(spec.one_group, scale=FP32),
        )
        self.full, zeros = _full_scale(parts, plain), plain.fit(parts).zeros
        scales = (replace(plain.store(self.full * ratio), zeros=zeros) for ratio in RATIOS)
        weighs = (
            None if importance is None else importance.view(self.groups, -1).repeat(len(weight), 1)
        )
        errors = [_row_error(parts, plain, scale, weighs) for scale in scales]
        self.table = torch.cat(errors, 1)

    def at(self, outers: Tensor) -> Tensor:
        """[rows, outer scales]"""
        least = torch.full((len(self.full), outers.shape[1]), torch.inf, device=outers.device)
        for factor in range(1, self.factors + 1):
            scales = outers.repeat_interleave(self.groups, 0) * factor
            least = least.minimum(self._interpolated(scales / self.full))
        return least.unflatten(0, (-1, self.groups)).sum(1)

    def _interpolated(self, ratio: Tensor) -> Tensor:
        """Beyond the full scale a loss grows with its square; below the table none is known."""
        place = (ratio - RATIOS[0]) / (RATIOS[1] - RATIOS[0])
        below = place.long().clamp(0, len(RATIOS) - 2)
        low, high = self.table.gather(1, below), self.table.gather(1, below + 1)
        loss = low + (high - low) * (place - below).clamp(0, 1)
        loss = loss * ratio.clamp(1, FAR).square()
        return loss.masked_fill(place < 0, torch.inf)
