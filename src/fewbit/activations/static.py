"""Inputs quantized by steps that are known beforehand: nothing is measured at run time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewbit.activations.activation import Activation, refuse_stored_levels, rotated
from fewbit.activations.clock import TimeBins
from fewbit.activations.fixed_dtype import FixedDtype
from fewbit.errors import BadArgument, BrokenFile
from fewbit.formats import Spec
from fewbit.kernels.reference import Coder, Reference
from fewbit.kernels.values import AdaLNInput, QuantizedRows, Rotation, has_integer_rows

KIND = "static"
MOST_PARTS = 10_000


class Static(Activation, FixedDtype):
    """One step for each time group and part; the parts are the second axis of x, as heads are."""

    steps: Tensor  # float32 [groups, parts]

    def __init__(self, spec: Spec, steps: Tensor, bins: TimeBins) -> None:
        super().__init__()
        refuse_stored_levels(spec)
        self.spec, self.bins = spec, bins
        self.register_buffer("steps", steps)

    def forward(self, x: Tensor) -> Tensor:
        step = of_rows(self.bins.pick(self.steps), x)[..., None]
        return non_finite_as_nan(one_region(by_part(x, step), step, self.spec).reshape(x.shape), x)

    def of_heads(self, heads: int) -> Tensor:
        """The steps of an operand of attention, [images or 1, heads]."""
        return self.bins.pick(self.steps).expand(-1, heads)

    @property
    def code_spec(self) -> Spec | None:
        one_step = self.steps.shape[1] == 1
        return self.spec if one_step and has_integer_rows(self.spec) else None

    def coder(self, backend: Reference, rotation: Rotation | None) -> Coder:
        known = self.code_spec is not None
        fixed = backend.fixed(self.spec.format, rotation) if known else None
        if fixed is None:
            return super().coder(backend, rotation)
        return lambda x: fixed(x, self.bins.pick(self.steps).view(1, -1))

    def code(
        self, backend: Reference, rotation: Rotation | None, x: Tensor | AdaLNInput
    ) -> QuantizedRows | Tensor:
        if self.code_spec is None:
            return super().code(backend, rotation, x)
        step, fmt = self.bins.pick(self.steps), self.spec.format
        x = rotated(backend, rotation, x)
        levels = fmt.round(in_steps(x, step))
        integers = levels if fmt.step == 1 else levels.div_(fmt.step)
        scales = row_scales(non_finite_rows(x), step) * fmt.step
        return QuantizedRows(integers.to(torch.int8), scales, fmt.integer_max)

    def check_width(self, columns: int) -> None:
        check_one_part(self.config())

    def check(self, name: str) -> None:
        check_steps(f"{name}.steps", self.steps)
        self.bins.check(f"{name}.bins")

    def config(self) -> dict[str, Any]:
        groups, parts = self.steps.shape
        return {"kind": KIND, "spec": str(self.spec), "groups": groups, "parts": parts}

    def extra_repr(self) -> str:
        return f"{self.spec.format}{times(self.bins)}"


def from_config(config: dict[str, Any]) -> Static:
    bins = TimeBins.empty(config["groups"])
    steps = torch.empty(len(bins.centres), checked_parts(config["parts"]))
    return Static(Spec.parse(config["spec"]), steps, bins)


def one_region(x: Tensor, step: Tensor, spec: Spec) -> Tensor:
    return spec.format.round(x * step.reciprocal()).mul_(step)


def non_finite_as_nan(rounded: Tensor, x: Tensor) -> Tensor:
    """Where x is not finite: what saturates must not look like a number."""
    return rounded.masked_fill_(~x.isfinite(), torch.nan)


def by_part(x: Tensor, step: Tensor) -> Tensor:
    """x as float32 [rows, parts, rest], so that step [rows or 1, parts, 1] fits; of one part
    [rows, rest, columns]."""
    if step.shape[-2] == 1:
        return x.float().reshape(len(step), -1, x.shape[-1])
    return x.float().flatten(2)


def of_rows(step: Tensor, x: Tensor) -> Tensor:
    """step [rows or 1, parts], which several of x share where it has more rows: frames, windows."""
    if step.shape[-1] == 1 or len(step) in (1, len(x)):
        return step
    return step.repeat_interleave(len(x) // len(step), 0)


def in_steps(x: Tensor, step: Tensor) -> Tensor:
    """[rows, columns], of one step for each image or for all."""
    return (by_part(x, step[..., None]) * step.reciprocal()[..., None]).reshape(-1, x.shape[-1])


def non_finite_rows(x: Tensor) -> Tensor:
    """[rows, 1]: those that hold what is not finite, which times zero is NaN."""
    return (x * 0).sum(-1).isnan().reshape(-1, 1)


def row_scales(non_finite: Tensor, step: Tensor) -> Tensor:
    """[rows, 1]"""
    return step.repeat_interleave(len(non_finite) // len(step), 0).masked_fill(
        non_finite, torch.nan
    )


def checked_parts(parts: object) -> int:
    if type(parts) is not int or not 1 <= parts <= MOST_PARTS:
        raise BadArgument(f"a tensor has 1 to {MOST_PARTS} parts with steps, got {parts!r}")
    return parts


def check_one_part(config: dict[str, Any]) -> None:
    """Only an attention knows how many parts, its heads, the second axis of an input has."""
    if config["parts"] != 1:
        raise BadArgument(f"the input of a layer has steps for 1 part, got {config['parts']}")


def check_steps(name: str, steps: Tensor) -> None:
    if not bool((torch.isfinite(steps) & (steps > 0)).all()):
        raise BrokenFile(f"{name} holds a step that is not positive and finite")


def times(bins: TimeBins) -> str:
    """How `inspect` shows that steps depend on the time."""
    groups = len(bins.centres)
    return f" t{groups}" if groups > 1 else " static"
