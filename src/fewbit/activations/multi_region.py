"""Two regions of one tensor, each with a step of its own; a bit of the code says which region.

`signed`, for what comes out of a GELU: below zero a small step, above zero a large one.
`fused`, for an attention's result with that of a GELU beside it: the first columns have one region,
all codes in the large step; the others are as `signed`.
`unit`, for what comes out of a softmax: a fine grid from zero on, a coarse one beyond its end, and
every value becomes the nearest level of both. The regions never overlap.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fewbit.activations.activation import Activation, refuse_stored_levels, rotated
from fewbit.activations.clock import TimeBins
from fewbit.activations.fixed_dtype import FixedDtype
from fewbit.activations.static import (
    by_part,
    check_one_part,
    check_steps,
    checked_parts,
    in_steps,
    non_finite_as_nan,
    non_finite_rows,
    of_rows,
    row_scales,
    times,
)
from fewbit.errors import BadArgument
from fewbit.formats import FORMATS, Spec
from fewbit.kernels.reference import Coder, Reference
from fewbit.kernels.values import AdaLNInput, QuantizedRows, Rotation, has_integer_rows

KIND = "multi_region"
Regions = Literal["signed", "fused", "unit"]


class MultiRegion(Activation, FixedDtype):
    """steps[0] is of the lower region, steps[1] of the upper."""

    steps: Tensor  # float32 [2, groups, parts]

    def __init__(
        self, spec: Spec, regions: Regions, steps: Tensor, bins: TimeBins, whole: int = 0
    ) -> None:
        super().__init__()
        refuse_stored_levels(spec)
        if regions not in ("signed", "fused", "unit"):
            raise BadArgument(f"regions cannot be {regions!r}; allowed: signed, fused, unit")
        self.spec, self.regions, self.bins = spec, regions, bins
        self.whole = whole  # columns of `fused` that have one region
        self.register_buffer("steps", steps)

    def forward(self, x: Tensor) -> Tensor:
        low, high = (of_rows(self.bins.pick(steps), x)[..., None] for steps in self.steps)
        rounded = two_regions(by_part(x, low), low, high, self.spec, self.regions, self.whole)
        return non_finite_as_nan(rounded.reshape(x.shape), x)

    @property
    def code_spec(self) -> Spec | None:
        summed = self.regions != "unit" and self.steps.shape[2] == 1
        return self.spec if summed and has_integer_rows(self.spec) else None

    def coder(self, backend: Reference, rotation: Rotation | None) -> Coder:
        fixed = None
        if self.code_spec is not None:
            integer = FORMATS[f"int{self.spec.format.bits}"]
            fixed = backend.fixed(integer, rotation, 2, self.whole)
        if fixed is None:
            return super().coder(backend, rotation)
        return lambda x: fixed(x, self.bins.pick(self.steps[..., 0].t()).t())

    def code(
        self, backend: Reference, rotation: Rotation | None, x: Tensor | AdaLNInput
    ) -> QuantizedRows | Tensor:
        """Each region is zero where the other has its say: their sum is what they stand for."""
        if self.code_spec is None:
            return super().code(backend, rotation, x)
        x = rotated(backend, rotation, x)
        half, non_finite = 1 << (self.spec.format.bits - 1), non_finite_rows(x)
        low, high = (self.bins.pick(steps) for steps in self.steps)
        levels = _signed_levels(in_steps(x, low), in_steps(x, high), half, self.whole)
        integers = torch.cat([part.to(torch.int8) for part in levels])
        scales = torch.cat([row_scales(non_finite, step) for step in (low, high)])
        return QuantizedRows(integers, scales, half, parts=2)

    def of_weights(self) -> Tensor | None:
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
        whole = {"whole": self.whole} if self.regions == "fused" else {}
        return {"kind": KIND, "spec": str(self.spec), **shape, **whole}

    def extra_repr(self) -> str:
        return f"{self.spec.format}x2{times(self.bins)}"


def from_config(config: dict[str, Any]) -> MultiRegion:
    regions, bins = config["regions"], TimeBins.empty(config["groups"])
    steps = torch.empty(2, len(bins.centres), checked_parts(config["parts"]))
    whole = _checked_whole(config) if regions == "fused" else 0
    return MultiRegion(Spec.parse(config["spec"]), regions, steps, bins, whole)


def _checked_whole(config: dict[str, Any]) -> int:
    whole, parts = config["whole"], config["parts"]
    if type(whole) is not int or whole < 1 or parts != 1:
        raise BadArgument(
            f"fused regions have one part and columns of one region, got parts {parts!r} and "
            f"whole {whole!r}; allowed: 1, and a positive integer"
        )
    return whole


def two_regions(
    x: Tensor, low: Tensor, high: Tensor, spec: Spec, regions: Regions, whole: int = 0
) -> Tensor:
    """Half of the codes for each region; x rounded to the levels of the region it lies in."""
    half = 1 << (spec.format.bits - 1)
    if regions != "unit":
        scaled = x * low.reciprocal(), x * high.reciprocal()
        below, above = _signed_levels(*scaled, half, whole)
        return below.mul_(low).add_(above.mul_(high))
    first, split = _coarse(low, high, half)
    fine = (x * low.reciprocal()).round_().clamp_(0, half - 1).mul_(low)
    coarse = (x * high.reciprocal()).round_().clamp_(max=half).clamp_(min=first).mul_(high)
    return torch.where(x < split, fine, coarse)


def _signed_levels(low: Tensor, high: Tensor, half: int, whole: int) -> tuple[Tensor, Tensor]:
    """x in steps of either region to its levels there: each is zero where the other has its say.
    Overwrites what it is given."""
    below, above = low.round_(), high.round_()
    below[..., :whole].zero_()
    below[..., whole:].clamp_(-half, 0)
    above[..., :whole].clamp_(-half, half - 1)
    above[..., whole:].clamp_(0, half - 1)
    return below, above


def _coarse(low: Tensor, high: Tensor, half: float) -> tuple[Tensor, Tensor]:
    """The first of the coarse levels beyond the fine region, and the middle between the two."""
    end = (half - 1) * low
    first = ((end / high).floor() + 1).clamp(max=half)
    return first, (end + first * high) / 2
