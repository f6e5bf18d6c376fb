"""The inception score (Salimans et al. 2016): each of one class, together of all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewbit.errors import BadArgument

SPLIT = 5000  # pictures scored together; the score is the mean over splits


class InceptionScore:
    """exp(H(mean p) - mean H(p)), streamed: a split is two running sums."""

    def __init__(self, classes: int, split: int = SPLIT) -> None:
        self.split = split
        self.finished: list[float] = []
        self.total = torch.zeros(classes, dtype=torch.float64)
        self.entropy = 0.0
        self.count = 0

    def add(self, probabilities: Tensor) -> None:
        """A chunk [N, classes] of probabilities."""
        rows = probabilities.detach().cpu().double()
        while len(rows):
            part, rows = rows.tensor_split([self.split - self.count])
            self.total += part.sum(0)
            self.entropy += _entropy(part).sum().item()
            self.count += len(part)
            if self.count == self.split:
                self.finished.append(self._score())
                self.total.zero_()
                self.entropy, self.count = 0.0, 0

    def value(self) -> float:
        scores = [*self.finished, *([self._score()] if self.count else [])]
        if not scores:
            raise BadArgument("an inception score needs at least 1 picture, got 0")
        return sum(scores) / len(scores)

    def _score(self) -> float:
        together = _entropy(self.total / self.count).item()
        return math.exp(together - self.entropy / self.count)


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(-1)
