"""How a scale is stored: a cast, a power of two, or FP8 under an outer float32 scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class ScaleFormat:
    """A positive scale kept as a plain float of `dtype`, rounded to nearest even."""

    name: str
    dtype: torch.dtype
    outer: str | None = None  # what one outer float32 scale spans: None, "tensor" or "row"

    def from_absmax(self, absmax: Tensor, top: float) -> Tensor:
        """The scale that puts `absmax` on the format's largest level `top` (1 where all is 0)."""
        return torch.where(absmax == 0, 1.0, absmax / top).clamp_(min=SMALLEST)

    def outer_scale(self, scale: Tensor) -> Tensor | None:
        return None

    def store(self, scale: Tensor, outer: Tensor | None = None) -> Tensor:
        finfo = torch.finfo(self.dtype)
        return scale.clamp(finfo.tiny, finfo.max).to(self.dtype)

    def load(self, stored: Tensor, outer: Tensor | None = None) -> Tensor:
        return stored.float()


@dataclass(frozen=True)
class PowerOfTwo(ScaleFormat):
    """OCP E8M0: the byte is the exponent plus 127; 255 would be NaN and is never written."""

    def from_absmax(self, absmax: Tensor, top: float) -> Tensor:
        """The OCP MX rule: the block's largest exponent minus the format's largest exponent."""
        return torch.where(absmax == 0, 1.0, _floor_power(absmax) / 2.0 ** _exponent(top))

    def store(self, scale: Tensor, outer: Tensor | None = None) -> Tensor:
        return (torch.log2(_floor_power(scale)) + 127).clamp(0, 254).to(torch.uint8)

    def load(self, stored: Tensor, outer: Tensor | None = None) -> Tensor:
        exponent = stored.int() - 127
        return torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)


@dataclass(frozen=True)
class Fp8Scale(ScaleFormat):
    """E4M3 under an outer float32 scale that puts the largest scale of its span on 448."""

    def outer_scale(self, scale: Tensor) -> Tensor:
        largest = scale.amax() if self.outer == "tensor" else scale.amax(-1, keepdim=True)
        return (largest / 448.0).clamp_(min=SMALLEST).reshape(-1, 1)

    def store(self, scale: Tensor, outer: Tensor | None = None) -> Tensor:
        assert outer is not None
        smallest_subnormal = 2.0**-9
        return (scale / outer).clamp(smallest_subnormal, 448.0).to(torch.float8_e4m3fn)

    def load(self, stored: Tensor, outer: Tensor | None = None) -> Tensor:
        assert outer is not None
        return stored.float() * outer


def _floor_power(x: Tensor) -> Tensor:
    """The largest power of two that is not above x."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.ones_like(mantissa), exponent - 1)


def _exponent(top: float) -> int:
    return int(torch.frexp(torch.tensor(top)).exponent) - 1


FP32 = ScaleFormat("fp32", torch.float32)
FP16 = ScaleFormat("fp16", torch.float16)
BF16 = ScaleFormat("bf16", torch.bfloat16)
E8M0 = PowerOfTwo("e8m0", torch.uint8)
E4M3_PER_TENSOR = Fp8Scale("e4m3", torch.float8_e4m3fn, outer="tensor")
E4M3_PER_ROW = Fp8Scale("e4m3row", torch.float8_e4m3fn, outer="row")

SCALES = {s.name: s for s in (FP32, FP16, BF16, E8M0, E4M3_PER_TENSOR, E4M3_PER_ROW)}
