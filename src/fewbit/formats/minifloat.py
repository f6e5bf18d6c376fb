"""Few-bit floats: sign, exponent, mantissa, with subnormals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.formats.format import Arithmetic, Format


@dataclass(frozen=True)
class Minifloat(Format):
    """`eXmY`: one sign bit, X exponent bits, Y mantissa bits.

    `specials` says which codes are not numbers: none of them (our own formats and OCP's FP4 and
    FP6), `"nan"` for only the all-ones code (OCP E4M3, torch.float8_e4m3fn), or `"ieee"` for the
    whole last exponent (OCP E5M2, torch.float8_e5m2).
    """

    exponent: int
    mantissa: int
    specials: str = "none"

    @property
    def name(self) -> str:
        return f"e{self.exponent}m{self.mantissa}"

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        return (1 << (self.exponent - 1)) - 1

    @property
    def arithmetic(self) -> Arithmetic:
        return Arithmetic(self.mantissa, 2.0 ** (1 - self.bias))

    def code_values(self) -> tuple[float, ...]:
        magnitudes = [self._magnitude(c) for c in range(1 << (self.bits - 1))]
        return tuple(magnitudes) + tuple(-m for m in magnitudes)

    def _magnitude(self, code: int) -> float:
        exponent, mantissa = code >> self.mantissa, code & ((1 << self.mantissa) - 1)
        last_exponent = exponent == (1 << self.exponent) - 1
        if last_exponent and self.specials == "ieee":
            return float("nan") if mantissa else float("inf")
        if last_exponent and self.specials == "nan" and mantissa == (1 << self.mantissa) - 1:
            return float("nan")
        fraction = mantissa / (1 << self.mantissa)
        if exponent == 0:
            return fraction * 2.0 ** (1 - self.bias)
        return (1 + fraction) * 2.0 ** (exponent - self.bias)

    def encode(self, values: Tensor) -> Tensor:
        """As the definition, but a negative value that rounds to zero keeps its sign bit, and
        NaN becomes the all-ones NaN where the format has one."""
        sign = torch.signbit(values).to(torch.uint8) << (self.bits - 1)
        codes = super().encode(values.abs())
        if self.specials != "none":
            codes = codes.masked_fill(values.isnan(), (1 << (self.bits - 1)) - 1)
        return codes | sign

    def round(self, values: Tensor) -> Tensor:
        """The same values as the definition, by arithmetic on the bits of float32.

        A normal number drops mantissa bits; a subnormal is a multiple of `step`, which adding and
        subtracting 2^23 steps leaves behind.
        """
        magnitude = values.float().abs().clamp_(max=self.max)
        dropped = 23 - self.mantissa
        bits = magnitude.view(torch.int32)
        nearest = bits + ((bits >> dropped) & 1) + ((1 << (dropped - 1)) - 1)
        normal = (nearest & -(1 << dropped)).view(torch.float32)
        anchor = self.step * 2.0**23
        subnormal = (magnitude + anchor) - anchor
        return torch.where(magnitude < self.arithmetic.normal, subnormal, normal).copysign(values)


FORMATS = (
    *(Minifloat(e, m) for e, m in ((1, 1), (2, 0), (2, 1), (1, 2), (3, 0), (2, 3), (3, 2), (3, 4))),
    Minifloat(4, 3, specials="nan"),
    Minifloat(5, 2, specials="ieee"),
)
