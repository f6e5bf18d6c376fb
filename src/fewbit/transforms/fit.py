"""Choosing the transform of an input: that with which plain rounding of the input and of the
weights that read it loses least."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.formats import Spec
from fewbit.transforms.principal import Principal, principal
from fewbit.transforms.transform import Transform


@dataclass(frozen=True)
class Consumer:
    """A layer that reads the input: what it has seen, its weight, and how both are rounded."""

    sample: Tensor  # [rows, in]
    squares: Tensor  # [in], the mean of x² of each channel
    weight: Tensor  # float32 [out, in]
    weight_spec: Spec
    input_spec: Spec | None
    directions: int = 0  # of the input, that are kept beside what is rounded
    moments: Tensor | None = None  # [in, in], the mean of x·xᵀ, where there are directions

    @property
    def rms(self) -> Tensor:
        """How loud each channel is."""
        return self.squares.sqrt()

    def lost(self, transform: Transform | None) -> float:
        """The share of the output that plain rounding loses."""
        x, weight = self.sample, self.weight
        if transform is not None:
            x, weight = transform(x), transform.weight(weight)
        exact = left = x @ weight.T
        if self.directions:
            x = self._principal(transform).rest(x)
            left = x @ weight.T
        rows = x if self.input_spec is None else self.input_spec.round(x)
        error = rows @ self.weight_spec.round(weight).T - left
        return float(error.square().sum() / exact.square().sum())

    def _principal(self, transform: Transform | None) -> Principal:
        assert self.moments is not None
        moments = self.moments if transform is None else transform(transform(self.moments).T)
        return principal(moments, self.directions)


def loudness(consumers: Sequence[Consumer]) -> tuple[Tensor, Tensor]:
    """How loud each channel is in what the consumers see, and in their weights."""
    loud = torch.stack([one.rms for one in consumers]).norm(dim=0)
    return loud, torch.cat([one.weight for one in consumers]).norm(dim=0)


def least_lost(
    options: Iterable[Transform | None], consumers: Sequence[Consumer]
) -> Transform | None:
    """The first of those with which all consumers together lose least."""
    return min(options, key=lambda option: sum(one.lost(option) for one in consumers))
