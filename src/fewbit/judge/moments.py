"""Mean and covariance of features, streamed: a chunk at a time, in double precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.errors import BadArgument


@dataclass(frozen=True)
class Gaussian:
    """What a Fréchet distance knows of a set: `count` is None where nobody said how many."""

    mean: Tensor  # (D,) float64
    covariance: Tensor  # (D, D) float64
    count: int | None


class FeatureMoments:
    """Sums about the running mean, so that a large mean costs the covariance no digits."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """A chunk [N, D]."""
        rows = features.detach().cpu().double()
        if not len(rows):
            return
        mean = rows.mean(0)
        centred = rows - mean
        shift = mean - self.mean
        total = self.count + len(rows)
        self.scatter.addmm_(centred.T, centred)
        self.scatter.addr_(shift, shift, alpha=self.count * len(rows) / total)
        self.mean += shift * (len(rows) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """With the unbiased covariance, divided by N - 1."""
        if self.count < 2:
            raise BadArgument(f"a covariance needs at least 2 pictures, got {self.count}")
        symmetric = (self.scatter + self.scatter.T) / (2 * (self.count - 1))
        return Gaussian(self.mean.clone(), symmetric, self.count)
