"""How many directions each input keeps apart under one budget of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from fewbit.errors import BadArgument

TOGETHER = 8  # directions, as many columns as a product takes at a time


def ranks(powers: Sequence[Tensor], bytes_each: Sequence[int], budget: int) -> list[int]:
    """For each input the number of directions, a multiple of 8, whose gain for a byte is largest.

    `powers` are what an input's strongest directions have, descending, in a unit that makes inputs
    comparable: what the rest loses is proportional to the power it keeps, so `weigh` them by what
    a layer makes of it. No input gets more than its powers say, which are as many as it may have
    at most. `bytes_each` is what one direction of each costs.
    """
    if not len(powers) == len(bytes_each) or budget < 0 or min(bytes_each, default=1) < 1:
        raise BadArgument(
            f"{len(powers)} inputs need as many costs of 1 byte or more and a budget of 0 or more, "
            f"got {list(bytes_each)} and {budget}"
        )
    found = [0] * len(powers)
    for _, number in sorted(_steps(powers, bytes_each), reverse=True):
        cost = TOGETHER * bytes_each[number]
        if cost <= budget:
            budget -= cost
            found[number] += TOGETHER
    return found


def _steps(powers: Sequence[Tensor], bytes_each: Sequence[int]) -> list[tuple[float, int]]:
    """The gain for a byte of every eight directions, and whose they are."""
    return [
        (float(spectrum[first:last].sum()) / bytes_each[number], number)
        for number, spectrum in enumerate(powers)
        for first, last in pairwise(range(0, len(spectrum) + 1, TOGETHER))
    ]


def weigh(powers: Tensor, weights: Sequence[Tensor], moments: Tensor) -> Tensor:
    """Powers of an input as shares of what the layers that read it give: the noise that a rounding
    adds to all columns alike is as loud as the power that is rounded, and a layer passes on its
    weight's mean square of it."""
    passed = sum(
        float(weight.square().sum() / len(moments) / ((weight @ moments) * weight).sum())
        for weight in weights
    )
    return powers * passed
