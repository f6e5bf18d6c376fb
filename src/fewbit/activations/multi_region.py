"""Two regions of one tensor, each with a step of its own; a bit of the code says which region.

`signed`, for what comes out of a GELU: below zero a small step, above zero a large one.
`unit`, for what comes out of a softmax: a fine grid from zero on, a coarse one beyond its end, and
every value becomes the nearest level of both. The regions never overlap.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fewbit.activations.activation import Activation, refuse_stored_levels, rotated
from fewbit.activations.kept import Kept
from fewbit.activations.static import (
    by_part,
    check_one_part,
    check_steps,
    checked_parts,
    in_steps,
    lost_as_nan,
    lost_rows,
    row_scales,
    times,
)
from fewbit.activations.time_groups import TimeBins
from fewbit.errors import BadArgument
from fewbit.formats import Spec
from fewbit.kernels.coded import Coded, Modulated, Rotation, has_integer_rows

KIND = "multi_region"
Regions = Literal["signed", "unit"]


class MultiRegion(Activation, Kept):
    """steps[0] is of the lower region, steps[1] of the upper."""

    steps: Tensor  # float32 [2, groups, parts]

    def __init__(self, spec: Spec, regions: Regions, steps: Tensor, bins: TimeBins) -> None:
        super().__init__()
        refuse_stored_levels(spec)
        if regions not in ("signed", "unit"):
            raise BadArgument(f"regions cannot be {regions!r}; allowed: signed, unit")
        self.spec, self.regions, self.bins = spec, regions, bins
        self.register_buffer("steps", steps)

    def forward(self, x: Tensor) -> Tensor:
        low, high = (self.bins.pick(steps)[..., None] for steps in self.steps)
        rounded = two_regions(by_part(x, low), low, high, self.spec, self.regions)
        return lost_as_nan(rounded.view(x.shape), x)

    @property
    def handed_on(self) -> Spec | None:
        summed = self.regions == "signed" and self.steps.shape[2] == 1
        return self.spec if summed and has_integer_rows(self.spec) else None

    def code(self, x: Tensor | Modulated, rotation: Rotation | None) -> Coded | Tensor:
        """Each region is zero where the other has its say: their sum is what they stand for."""
        if self.handed_on is None:
            return super().code(x, rotation)
        x = rotated(x, rotation)
        half, lost = 1 << (self.spec.format.bits - 1), lost_rows(x)
        integers, scales = [], []
        for steps, least, most in ((self.steps[0], -half, 0), (self.steps[1], 0, half - 1)):
            step = self.bins.pick(steps)
            scales.append(row_scales(lost, step))
            integers.append(in_steps(x, step).round_().clamp_(least, most).to(torch.int8))
        return Coded(torch.cat(integers), torch.cat(scales), half, parts=2)

    def of_shares(self) -> Tensor | None:
        """[rows or 1, 8], what `two_regions` makes of the steps, for code that rounds on its way;
        None if the parts have steps of their own, or the regions are not `unit`."""
        if self.regions != "unit" or self.steps.shape[2] > 1:
            return None
        low, high = (self.bins.pick(steps) for steps in self.steps)
        half = float(1 << (self.spec.format.bits - 1))
        first, split = _coarse(low, high, half)
        fine = [low, low.reciprocal(), torch.full_like(low, half - 1)]
        coarse = [high, high.reciprocal(), first, torch.full_like(high, half)]
        return torch.cat([*fine, *coarse, split], 1)

    def check_width(self, columns: int) -> None:
        check_one_part(self.config())

    def check(self, name: str) -> None:
        check_steps(f"{name}.steps", self.steps)
        self.bins.check(f"{name}.bins")

    def config(self) -> dict[str, Any]:
        _, groups, parts = self.steps.shape
        shape = {"regions": self.regions, "groups": groups, "parts": parts}
        return {"kind": KIND, "spec": str(self.spec), **shape}

    def extra_repr(self) -> str:
        return f"{self.spec.format}x2{times(self.bins)}"


def from_config(config: dict[str, Any]) -> MultiRegion:
    bins = TimeBins.empty(config["groups"])
    steps = torch.empty(2, len(bins.centres), checked_parts(config["parts"]))
    return MultiRegion(Spec.parse(config["spec"]), config["regions"], steps, bins)


def two_regions(x: Tensor, low: Tensor, high: Tensor, spec: Spec, regions: Regions) -> Tensor:
    """Half of the codes for each region; x rounded to the levels of the region it lies in."""
    half = 1 << (spec.format.bits - 1)
    if regions == "signed":  # each region is zero where the other has its say
        below = (x * low.reciprocal()).round_().clamp_(-half, 0).mul_(low)
        above = (x * high.reciprocal()).round_().clamp_(0, half - 1).mul_(high)
        return below.add_(above)
    first, split = _coarse(low, high, half)
    fine = (x * low.reciprocal()).round_().clamp_(0, half - 1).mul_(low)
    coarse = (x * high.reciprocal()).round_().clamp_(max=half).clamp_(min=first).mul_(high)
    return torch.where(x < split, fine, coarse)


def _coarse(low: Tensor, high: Tensor, half: float) -> tuple[Tensor, Tensor]:
    """The first of the coarse levels beyond the fine region, and the middle between the two."""
    end = (half - 1) * low
    first = ((end / high).floor() + 1).clamp(max=half)
    return first, (end + first * high) / 2
