"""How a scale is stored: a cast, a power of two, or small numbers times an outer float32 scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMALLEST = torch.finfo(torch.float32).tiny  # its reciprocal is still finite
SMALLEST_E4M3 = 2.0**-9
INT8_END = 127  # of the symmetric integers


@dataclass(frozen=True)
class Scales:
    """What gives the codes of one matrix their values: scales as stored, [rows or 1, groups]."""

    stored: Tensor
    outer: Tensor | None = None  # float32, [rows or 1, 1]
    zeros: Tensor | None = None  # as `stored`: zero points, uint8, or minima, float16
    choices: Tensor | None = None  # uint8 [rows, 1], which option a row uses
    codebook: Tensor | None = None  # [entries, columns], levels of this matrix alone

    def rows(self, part: slice) -> Scales:
        """Those of some rows of the matrix, sharing memory with all."""
        per_row = {
            name: tensor[part]
            for name in ("stored", "outer", "zeros", "choices")
            if (tensor := getattr(self, name)) is not None and len(tensor) > 1
        }
        return replace(self, **per_row)


@dataclass(frozen=True)
class ScaleFormat:
    """A positive scale kept as a plain float of `dtype`, rounded to nearest even."""

    name: str
    dtype: torch.dtype
    outer: str | None = None  # what one outer float32 scale spans: None, "tensor" or "row"
    factors: int = 0  # the largest integer factor of the outer scale; 0 where a scale is a float

    @property
    def has_minima(self) -> bool:
        """Whether a group of unsigned levels begins at a float of its own, in the place of a zero
        point: value = level * scale + minimum."""
        return False

    @property
    def by_row(self) -> bool:
        """Whether groups become part of the levels, so that each row has one float scale."""
        return bool(self.factors)

    def beside(self, integer_max: int) -> ScaleFormat:
        """This scale beside levels of that magnitude in units of their step."""
        return self

    def from_absmax(self, absmax: Tensor, top: float, zero: float = 1.0) -> Tensor:
        """The scale that puts `absmax` on the largest level of a format (`zero` where it is 0)."""
        return torch.where(absmax == 0, zero, absmax / top).clamp_(min=SMALLEST)

    def outer_scale(self, scale: Tensor) -> Tensor | None:
        return None

    def store(self, scale: Tensor, outer: Tensor | None = None) -> Tensor:
        finfo = torch.finfo(self.dtype)
        smallest = max(SMALLEST, finfo.tiny * finfo.eps)  # in fp16 a subnormal number
        return scale.clamp(smallest, finfo.max).to(self.dtype)

    def load(self, stored: Tensor, outer: Tensor | None = None) -> Tensor:
        return stored.float()

    def split(self, stored: Tensor, outer: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """Integer factors of levels, if there are any, and float scales; `load` is the product."""
        return None, self.load(stored, outer)

    def sound(self, stored: Tensor, outer: Tensor | None = None) -> bool:
        """Whether all are positive and finite."""
        return bool((stored.isfinite() & (stored > 0)).all())


@dataclass(frozen=True)
class GgufScale(ScaleFormat):
    """float16 that may have any sign, and be 0 where all of a group is."""

    @property
    def has_minima(self) -> bool:
        return True

    def sound(self, stored: Tensor, outer: Tensor | None = None) -> bool:
        return bool(stored.isfinite().all())


@dataclass(frozen=True)
class PowerOfTwo(ScaleFormat):
    """OCP E8M0: the byte is the exponent plus 127; 255 is NaN. Other scales are rounded down."""

    def from_absmax(self, absmax: Tensor, top: float, zero: float = 1.0) -> Tensor:
        """The OCP MX rule: the block's largest exponent minus the format's largest exponent."""
        power = torch.ldexp(torch.ones_like(absmax), torch.frexp(absmax).exponent - 1)
        scale = (power / 2.0 ** (math.frexp(top)[1] - 1)).clamp_(min=2.0**-127)
        return torch.where(absmax == 0, zero, torch.where(absmax.isfinite(), scale, torch.nan))

    def store(self, scale: Tensor, outer: Tensor | None = None) -> Tensor:
        byte = (torch.frexp(scale).exponent + 126).clamp(0, 254)
        return byte.masked_fill(scale.isnan(), 255).to(torch.uint8)

    def load(self, stored: Tensor, outer: Tensor | None = None) -> Tensor:
        power = torch.ldexp(torch.ones_like(stored, dtype=torch.float32), stored.int() - 127)
        return power.masked_fill(stored == 255, torch.nan)

    def sound(self, stored: Tensor, outer: Tensor | None = None) -> bool:
        return not bool((stored == 255).any())


@dataclass(frozen=True)
class Fp8Scale(ScaleFormat):
    """E4M3 under an outer float32 scale that puts the largest scale of its span on 448."""

    def from_absmax(self, absmax: Tensor, top: float, zero: float = 1.0) -> Tensor:
        """Where all is 0 the scale is 0, so that it has no say in the outer scale."""
        return absmax / top

    def outer_scale(self, scale: Tensor) -> Tensor:
        largest = scale.amax() if self.outer == "tensor" else scale.amax(-1, keepdim=True)
        return (largest / 448.0).clamp_(min=SMALLEST / SMALLEST_E4M3).reshape(-1, 1)

    def store(self, scale: Tensor, outer: Tensor | None = None) -> Tensor:
        assert outer is not None
        return (scale / outer).clamp(SMALLEST_E4M3, 448.0).to(torch.float8_e4m3fn)

    def load(self, stored: Tensor, outer: Tensor | None = None) -> Tensor:
        assert outer is not None
        return stored.float() * outer

    def sound(self, stored: Tensor, outer: Tensor | None = None) -> bool:
        """The bytes of positive numbers are those from 1 to 126."""
        assert outer is not None
        positive = bool((stored.view(torch.uint8) - 1 < 126).all())
        return positive and FP32.sound(outer * 448.0) and FP32.sound(outer * SMALLEST_E4M3)


@dataclass(frozen=True)
class TableScale(Fp8Scale):
    """E4M3 that a table's numbers are multiplied with to become int8, under the outer float32 scale
    of its row, which is all that is left then."""

    @property
    def by_row(self) -> bool:
        return True

    def outer_scale(self, scale: Tensor) -> Tensor:
        return (scale.amax(-1, keepdim=True) / INT8_END).clamp_(min=SMALLEST)

    def load(self, stored: Tensor, outer: Tensor | None = None) -> Tensor:
        assert outer is not None
        return outer.masked_fill(stored.isnan().any(1, keepdim=True), torch.nan)

    def sound(self, stored: Tensor, outer: Tensor | None = None) -> bool:
        assert outer is not None
        return super().sound(stored, torch.ones_like(outer)) and FP32.sound(outer)


@dataclass(frozen=True)
class IntegerFactor(ScaleFormat):
    """A positive integer times the outer float32 scale of its row.

    Its product with a level, in units of the step, is at most 127. So the row is one of int8 with
    one scale. An outer scale has 17 significant bits: times a factor it is exact, and a level is
    the same float whether the factor is multiplied with it first or with the outer scale.
    """

    def beside(self, integer_max: int) -> ScaleFormat:
        return replace(self, factors=INT8_END // integer_max)

    def from_absmax(self, absmax: Tensor, top: float, zero: float = 1.0) -> Tensor:
        """Where all is 0 the scale is 0, so that it has no say in the outer scale."""
        return absmax / top

    def outer_scale(self, scale: Tensor) -> Tensor:
        """The least at which the largest factor clips nothing."""
        exact = (scale.amax(-1, keepdim=True) / self.factors).clamp_(min=SMALLEST)
        return (exact.view(torch.int32) + 127 & -128).view(torch.float32)

    def store(self, scale: Tensor, outer: Tensor | None = None) -> Tensor:
        """The least factor that clips nothing; 0 is NaN."""
        assert outer is not None
        factors = (scale / outer).ceil().clamp(1, self.factors)
        return factors.nan_to_num(0).to(torch.uint8)

    def load(self, stored: Tensor, outer: Tensor | None = None) -> Tensor:
        assert outer is not None
        return (stored.float() * outer).masked_fill(stored == 0, torch.nan)

    def split(self, stored: Tensor, outer: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert outer is not None
        return stored, outer

    def sound(self, stored: Tensor, outer: Tensor | None = None) -> bool:
        assert outer is not None
        in_range = bool(((stored > 0) & (stored <= self.factors)).all())
        return in_range and FP32.sound(outer) and FP32.sound(outer * self.factors)


FP32 = ScaleFormat("fp32", torch.float32)
FP16 = ScaleFormat("fp16", torch.float16)
BF16 = ScaleFormat("bf16", torch.bfloat16)
GGUF = GgufScale("gguf", torch.float16)
E8M0 = PowerOfTwo("e8m0", torch.uint8)
E4M3_PER_TENSOR = Fp8Scale("e4m3", torch.float8_e4m3fn, outer="tensor")
E4M3_PER_ROW = Fp8Scale("e4m3row", torch.float8_e4m3fn, outer="row")
TABLE = TableScale("table", torch.float8_e4m3fn, outer="row")
FACTOR = IntegerFactor("factor", torch.uint8, outer="row", factors=INT8_END)

_ALL = (FP32, FP16, BF16, GGUF, E8M0, E4M3_PER_TENSOR, E4M3_PER_ROW, TABLE, FACTOR)
SCALES = {scale.name: scale for scale in _ALL}
