"""Inputs rounded around the mean of their image: what all tokens have in common costs no levels.

The product of the mean is one row more for each image. The scale of a group puts its largest value
on the largest level, on a lower one (Cook et al., 2025, "4/6") or beyond, whatever loses least.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewbit.activations.activation import Activation, refuse_stored_levels, rotated
from fewbit.errors import BadArgument
from fewbit.formats import Spec
from fewbit.kernels.reference import Coder, Grouper, Reference
from fewbit.kernels.values import AdaLNInput, QuantizedRows, Rotation

KIND = "centred"
STRETCHES = (0.8, 0.9, 1.5, 2.0)  # of the scale at which the largest value is on the largest level


class Centred(Activation):
    """The mean over the tokens of x [images, tokens, in], in bfloat16, and what each token differs
    from it, rounded to `spec`; rows without an image are rounded as they are."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        refuse_stored_levels(spec)
        if spec.span == "tensor" or spec.scale.outer == "tensor" or not spec.symmetric:
            raise BadArgument(
                f"centred activations cannot use {spec}: an image must not depend on its batch "
                "mates, and what is left around a mean has no zero point; allowed: signed formats "
                "with a scale for each row or group"
            )
        self.spec = spec

    @property
    def code_spec(self) -> Spec:
        return self.spec

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        mean = _mean(x)
        return self._rounded(x) if mean is None else self._rounded(x - mean) + mean

    def coder(self, backend: Reference, rotation: Rotation | None) -> Coder:
        group = backend.grouper(self.spec, STRETCHES)
        if group is None:
            return super().coder(backend, rotation)
        return partial(_integers, group, backend, rotation)

    def _rounded(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        full = self.spec.fit(rows)
        rounded = self.spec.round(rows, full)
        for stretch in STRETCHES:
            stored = self.spec.store(self.spec.load(full) * stretch, full.outer).stored
            other = self.spec.round(rows, replace(full, stored=stored))
            better = self._error(other, rows) < self._error(rounded, rows)
            rounded = torch.where(better, other, rounded)
        return rounded.view(x.shape)

    def _error(self, rounded: Tensor, rows: Tensor) -> Tensor:
        """What each group loses, for each of its columns; in double precision, so that the order of
        the sum does not matter."""
        groups = (
            (rounded - rows).double().square().unflatten(1, (self.spec.groups(rows.shape[1]), -1))
        )
        return groups.sum(-1, keepdim=True).expand_as(groups).flatten(1)

    def check_width(self, columns: int) -> None:
        self.spec.groups(columns)

    def config(self) -> dict[str, Any]:
        return {"kind": KIND, "spec": str(self.spec)}

    def extra_repr(self) -> str:
        return f"centred {self.spec}"


def _mean(x: Tensor) -> Tensor | None:
    """Of the tokens, [..., 1, columns]; of rows without an image none."""
    return None if x.dim() < 3 else x.mean(-2, keepdim=True).bfloat16().float()


def _integers(
    group: Grouper, backend: Reference, rotation: Rotation | None, x: Tensor | AdaLNInput
) -> QuantizedRows:
    tokens = rotated(backend, rotation, x).float()
    mean = _mean(tokens)
    columns = tokens.shape[-1]
    return group(tokens.reshape(-1, columns), None if mean is None else mean.reshape(-1, columns))


def from_config(config: dict[str, Any]) -> Centred:
    return Centred(Spec.parse(config["spec"]))
