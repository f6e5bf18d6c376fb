"""Books: few levels that are small integers, placed where a normal distribution wants them."""

from __future__ import annotations

from dataclasses import dataclass

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


FORMATS = tuple(  # the smallest integers within 0.1 dB of the best levels: studies/books.py
    Book(positive) for positive in ((1, 3), (1, 3, 5, 8), (1, 3, 5, 7, 9, 12, 15, 20))
)
