"""Integers: equally spaced levels, signed (symmetric grids) or unsigned (with a zero point)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from fewbit.formats.format import Arithmetic, Format


@dataclass(frozen=True)
class Integer(Format):
    """`intN` holds -2^(N-1) .. 2^(N-1)-1 in two's complement, `uintN` holds 0 .. 2^N-1."""

    width: int
    unsigned: bool = False

    @property
    def name(self) -> str:
        return f"{'u' if self.unsigned else ''}int{self.width}"

    @property
    def bits(self) -> int:
        return self.width

    @property
    def arithmetic(self) -> Arithmetic | None:
        return None if self.unsigned else Arithmetic(22, inf)

    @property
    def codes_are_levels(self) -> bool:
        return not self.unsigned

    def code_values(self) -> tuple[float, ...]:
        count = 1 << self.width
        wrap = count if self.unsigned else count // 2
        return tuple(float(c if c < wrap else c - count) for c in range(count))

    def encode(self, values: Tensor) -> Tensor:
        level = torch.round(values.float()).clamp_(self.min, self.max)
        return level.to(torch.int16).bitwise_and_((1 << self.width) - 1).to(torch.uint8)

    def round(self, values: Tensor) -> Tensor:
        return torch.round(values.float()).clamp_(self.min, self.max).add_(0.0)  # no minus zero


FORMATS = tuple(Integer(width, unsigned) for unsigned in (False, True) for width in range(2, 9))
