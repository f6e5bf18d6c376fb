"""How the values of a layer's input are spread: a histogram and the kurtosis.

Every token is divided by its own root mean square first, for that is what one scale a token sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EDGE, BINS = 8.0, 48  # what lies further out is counted in the outermost bins


@dataclass(frozen=True)
class Spread:
    """kurtosis: in excess of a normal distribution's.
    counts:   of values in BINS equal bins from -EDGE to EDGE root mean squares.
    """

    kurtosis: float
    counts: tuple[int, ...]


class SpreadOfTokens:
    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.powers = torch.zeros(5, dtype=torch.float64)  # sums of x⁰ to x⁴

    def add(self, values: Tensor) -> None:
        """[..., channels]"""
        tokens = values.detach().flatten(0, -2).double().cpu()
        size = tokens.square().mean(1, keepdim=True).sqrt()
        flat = (tokens / size.clamp(min=torch.finfo(torch.float32).tiny)).flatten()
        self.counts += torch.histc(flat.clamp(-EDGE, EDGE), BINS, -EDGE, EDGE)
        self.powers += torch.stack([flat.pow(n).sum() for n in range(5)])

    def spread(self) -> Spread:
        counts = tuple(int(count) for count in self.counts)
        total = self.powers[0].item()
        if not total:
            return Spread(math.nan, counts)
        m1, m2, m3, m4 = (self.powers[1:] / total).tolist()
        variance = m2 - m1**2
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        return Spread(fourth / variance**2 - 3 if variance > 0 else math.nan, counts)
