"""Choosing quantization steps among candidates, by whatever error they give."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LEAST, MOST = 0.01, 1.2  # of the step that clips nothing
STRIDE = 5
CACHED = 1 << 18  # float32 that stay in a core's cache from one pass to the next


def factors(count: int) -> Tensor:
    """Evenly spaced, the largest not included."""
    return LEAST + torch.arange(count) * ((MOST - LEAST) / count)


def powers(count: int) -> Tensor:
    """From 1 down to nearly 2^-20, evenly spaced in their logarithm."""
    return 2.0 ** (-20 * torch.arange(count) / count)


def in_cache(x: Tensor) -> list[slice]:
    """The rows of x, so few at a time that what is computed of them stays in the cache."""
    count = max(CACHED // max(x[0].numel(), 1), 1)
    return [slice(start, start + count) for start in range(0, len(x), count)]


class Search:
    """For each entry of a table of steps, the factor of its start that gives the least error.

    The first time every fifth candidate is tried and then those around the best; later, when the
    error has changed a little, those around the last best. The entries do not touch each other.
    """

    def __init__(self, start: Tensor, candidates: Tensor) -> None:
        self.start, self.candidates = start, candidates
        self.nearest_to_one = int((candidates - 1).abs().argmin())
        self.chosen: Tensor | None = None  # int64, as `start`

    @property
    def steps(self) -> Tensor:
        return self.start if self.chosen is None else self._steps(self.chosen)

    def run(self, error: Callable[[Tensor], Tensor]) -> None:
        """`error` gives a table like `start`."""
        if self.chosen is None:
            first = torch.full(self.start.shape, self.nearest_to_one)
            self._try(error, first, range(-len(self.candidates), len(self.candidates), STRIDE))
        assert self.chosen is not None
        self._try(error, self.chosen, range(1 - STRIDE, STRIDE))

    def _try(self, error: Callable[[Tensor], Tensor], around: Tensor, offsets: range) -> None:
        best, least = around, torch.full(self.start.shape, torch.inf)
        last = len(self.candidates) - 1
        for offset in sorted(offsets, key=abs):  # of equal errors the first counts
            index = around + offset
            if not bool(((index >= 0) & (index <= last)).any()):
                continue
            index = index.clamp(0, last)
            found = error(self._steps(index))
            better = found < least
            best, least = torch.where(better, index, best), torch.where(better, found, least)
        self.chosen = best

    def _steps(self, index: Tensor) -> Tensor:
        return self.start * self.candidates[index]
