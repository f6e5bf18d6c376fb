"""Books: few levels that are small integers, placed where a normal distribution wants them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewbit.formats.format import Format


@dataclass(frozen=True)
class Book(Format):
    """`bookN`: 2^(N-1) positive integers and their negatives, without zero.

    The first codes are the positive levels, ascending; the complement of a code is the code of the
    negative level. So codes of neighbouring levels are even and odd by turns, and a zero, which
    lies between two levels, becomes the smallest positive one.
    """

    positive: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"book{self.bits}"

    @property
    def bits(self) -> int:
        return len(self.positive).bit_length()

    def code_values(self) -> tuple[float, ...]:
        upper = tuple(map(float, self.positive))
        return upper + tuple(-level for level in reversed(upper))

    def round(self, values: Tensor) -> Tensor:
        """The same values as the definition. Two levels meet at a half of an integer, so a table
        says where each half goes, and where all that lies between two of them goes."""
        if values.device.type != "cpu":
            return super().round(values)
        end = 2 * self.max
        halves = (2 * values.detach().float()).nan_to_num_().clamp_(-end, end)
        places = halves.floor().add_(halves.ceil_()).add_(2 * end).int()
        return self._nearest.index_select(0, places.flatten()).view(values.shape)

    @cached_property
    def _nearest(self) -> Tensor:
        """Of all multiples of a quarter; those that are no halves stand for what is between."""
        end = int(4 * self.max)
        return super().round(torch.arange(-end, end + 1, device="cpu") / 4)


FORMATS = tuple(  # the smallest integers within 0.1 dB of the best levels: studies/books.py
    Book(positive) for positive in ((1, 3), (1, 3, 5, 8), (1, 3, 5, 7, 9, 12, 15, 20))
)
