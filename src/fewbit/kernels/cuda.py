"""The tensor cores of a GPU: few-bit floats as FP8, integers as int8, the rest as halves.

Every operation here also runs on the CPU, slowly, which is where its tests run.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from fewbit.formats import Format, QTensor, Spec
from fewbit.kernels.torch_cpu import Portable, integers_of, scaled, to_levels
from fewbit.kernels.values import (
    NOTHING,
    AdaLNInput,
    Epilogue,
    QuantizedRows,
    Rotation,
    Weight,
    has_integer_rows,
    has_integers,
    scaled_by_row,
)

FP8 = torch.float8_e4m3fn
SIXTEEN = 16  # both sides of an FP8 or int8 product are multiples of it
FEWEST_ROWS = 32  # of an int8 product, which wants more than 16
SMALL_INTEGER = 12  # to here FP8's quick accumulators, of about 14 bits, lose nothing in practice


class Cuda(Portable):
    name = "cuda"
    home = "cuda"

    def why_not(self, device: torch.device) -> str | None:
        if device.type != "cuda":
            built = (
                f"torch built for CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
            )
            return f"it computes on CUDA devices, not on {device.type} ({built} here)"
        return None

    def path(self, weight: Spec, activation: Spec | None, shape: tuple[int, int]) -> str:
        how = self._product(weight, activation, torch.device(self.name))
        if how is None or not fits_tensor_cores(weight, *shape):
            return "unpacked at each call and multiplied in the model's dtype"
        if how == FP8:
            return "FP8 tensor cores, torch._scaled_mm"
        return "int8 tensor cores, torch._int_mm"

    def _product(
        self, weight: Spec, activation: Spec | None, device: torch.device
    ) -> torch.dtype | None:
        """What both sides are multiplied as; None for the dtype of the model."""
        if activation is None or not self.accepts_codes(activation):
            return None
        if is_fp8(activation.format) and _has_fp8(device):
            return FP8 if _is_fp8(weight) else None
        return torch.int8 if has_integers(weight) else None

    def accepts_codes(self, spec: Spec) -> bool:
        return has_integer_rows(spec) or (is_fp8(spec.format) and scaled_by_row(spec))

    def multiplies_codes(self, weight: Spec) -> bool:
        return has_integers(weight) or _is_fp8(weight)

    def quantize(
        self, x: Tensor | AdaLNInput, fmt: Format, rotation: Rotation | None = None
    ) -> QuantizedRows:
        """Of a float the levels themselves as FP8, of an integer format int8."""
        x = self.rows(x)
        if not is_fp8(fmt) or not _has_fp8(x.device):
            return super().quantize(x, fmt, rotation)
        if not x.numel():
            return QuantizedRows(x.to(FP8), x.new_ones(len(x), 1), fmt.integer_max)
        levels, scales = to_levels(x, fmt, rotation)
        return QuantizedRows(levels.to(FP8).contiguous(), scales, fmt.integer_max)

    def sums(self, rows: Tensor, others: Tensor) -> Tensor:
        count, deeper = len(rows), -rows.shape[1] % SIXTEEN
        padded = pad(rows, (0, deeper, 0, max(FEWEST_ROWS - count, 0)))
        found = super().sums(padded, pad(others, (0, deeper, 0, -len(others) % SIXTEEN)))
        return found[:count, : len(others)]

    def integer_linear(
        self,
        x: QuantizedRows,
        weight: Weight,
        bias: Tensor | None,
        dtype: torch.dtype,
        epilogue: Epilogue = NOTHING,
    ) -> Tensor:
        if epilogue is not NOTHING:
            return epilogue(self.integer_linear(x, weight, bias, torch.float32)).to(dtype)
        sizes = weight.packed.shape
        if x.integers.numel() and fits_tensor_cores(weight.spec, *sizes):
            if x.integers.dtype == FP8 and _is_fp8(weight.spec):
                return self._fp8_linear(x, weight, bias, dtype)
            if x.integers.dtype == torch.int8 and has_integers(weight.spec):
                return self._int8_linear(x, weight, bias, dtype)
        return self.float_linear(x.values(), weight, bias, dtype)

    def float_linear(
        self, x: Tensor, weight: Weight, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """In the dtype of the model: half types run on tensor cores, float32 is the definition."""
        half = dtype if dtype in (torch.bfloat16, torch.float16) else torch.float32
        bias = None if bias is None else bias.to(half)
        return linear(x.to(half), weight.packed.dequantize().to(half), bias).to(dtype)

    def layout(self, packed: QTensor, activation: Spec | None, fast: bool | None) -> Tensor | None:
        how = self._product(packed.spec, activation, packed.packed.device)
        if not fast or how is None or not fits_tensor_cores(packed.spec, *packed.shape):
            return None
        return fp8_levels(packed) if how == FP8 else integers_of(packed)

    def _fp8_linear(
        self, x: QuantizedRows, weight: Weight, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Row-wise scales where the result may be bfloat16; else the sums, scaled in float32."""
        packed, one = weight.packed, x.scales.new_ones(())
        levels = fp8_levels(packed) if weight.layout is None else weight.layout
        scales = weight.integer_scales() / weight.spec.format.step
        quick = max(x.largest, weight.spec.integer_max) <= SMALL_INTEGER
        if dtype == torch.bfloat16:
            return torch._scaled_mm(
                x.integers,
                levels.t(),
                x.scales,
                scales.view(1, -1),
                bias=None if bias is None else bias.to(dtype),
                out_dtype=dtype,
                use_fast_accum=quick,
            )
        sums = torch._scaled_mm(
            x.integers, levels.t(), one, one, out_dtype=torch.float32, use_fast_accum=quick
        )
        return scaled(sums, x.scales, scales.view(1, -1), bias, dtype)

    def _int8_linear(
        self, x: QuantizedRows, weight: Weight, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        integers = weight.layout if weight.layout is not None else integers_of(weight.packed)
        rows = len(x.integers)
        padded = pad(x.integers, (0, 0, 0, max(FEWEST_ROWS - rows, 0)))
        sums = torch._int_mm(padded, integers.t())[:rows]
        return scaled(sums, x.scales, weight.integer_scales().reshape(1, -1), bias, dtype)


def fits_tensor_cores(spec: Spec, rows: int, columns: int) -> bool:
    return spec.float_group is None and rows % SIXTEEN == 0 and columns % SIXTEEN == 0


def _is_fp8(weight: Spec) -> bool:
    """A factor makes levels wider than that."""
    return is_fp8(weight.format) and not weight.scale.factors


@lru_cache
def is_fp8(fmt: Format) -> bool:
    """Whether every level is a number of E4M3; integers have int8 products of their own."""
    if fmt.learned or len(fmt.options) > 1 or not fmt.signed or fmt.codes_are_levels:
        return False
    levels = torch.tensor(fmt.levels, device="cpu")
    return torch.equal(levels.to(FP8).float(), levels)


def fp8_levels(packed: QTensor) -> Tensor:
    """Codes as the E4M3 bytes of their levels."""
    codes = packed.codes()
    bytes_of = torch.tensor(packed.spec.format.code_values(), device=codes.device).to(FP8)
    return bytes_of.view(torch.uint8)[codes.int()].view(FP8)


def _has_fp8(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)
