"""How sure a mean over pictures is: percentile intervals over resampled seeds (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def interval(values: Sequence[float]) -> Interval:
    """Of the mean over the pictures; the same numbers give the same interval."""
    known = np.asarray(values, np.float64)
    draws = np.random.default_rng(0).integers(len(known), size=(RESAMPLES, len(known)))
    ends = np.quantile(known[draws].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(*ends.tolist())


def difference(one: Sequence[float], other: Sequence[float]) -> Interval:
    """Of one's mean less the other's, over the same seeds in both."""
    return interval([a - b for a, b in zip(one, other, strict=True)])
