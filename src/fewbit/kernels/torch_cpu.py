"""Faster copies of the definition in torch alone, for any CPU: integer matmuls and few passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from math import inf, log2, pi

import torch
from torch import Tensor

from fewbit.formats import Format, QTensor, Spec
from fewbit.formats.format import Arithmetic
from fewbit.formats.scale import SMALLEST
from fewbit.kernels.reference import Reference
from fewbit.kernels.values import (
    NOTHING,
    AdaLNInput,
    Epilogue,
    QuantizedRows,
    Rotation,
    Weight,
    has_integers,
    refuse_other_width,
)

CACHED = 1 << 19  # float32 that stay near a core from one pass to the next
LOOKED_UP = 1 << 17  # pairs of bytes at a time, for the same reason
TOGETHER = 32  # rows that torch reduces at once where they stand side by side; fewer are slow
SMALLEST_GROUP = 64  # columns: below, a product for each group costs more than it saves
SHORT = 512  # tokens; beyond, the table of attention weights leaves the cache
GELU_LINEAR = 2 * (2 / pi) ** 0.5
GELU_CUBIC = 0.044715 * GELU_LINEAR
DEEPEST = (1 << 17) - 1  # columns of int8 products whose sums fit into int32
DIGITS = 3  # of 8 bits, that together hold a float32 row to 2^-22 of its largest


class Portable(Reference):
    name = "torch"
    home = "cpu"

    def why_not(self, device: torch.device) -> str | None:
        if device.type != "cpu":
            return f"it computes on the CPU, not on {device.type}"
        if not torch.backends.mkldnn.is_available():
            return "this torch was built without oneDNN, whose integer products it needs"
        return None

    def path(self, weight: Spec, activation: Spec | None, shape: tuple[int, int]) -> str:
        if not _worth_it(weight, shape[1]):
            return "float32 products of weights unpacked at each call"
        if activation is None or not self.accepts_codes(activation):
            return "torch._int_mm on the input's 8-bit digits"
        return "torch._int_mm"

    def rotate(self, x: Tensor, rotation: Rotation) -> Tensor:
        if x.dtype == torch.float64 or torch.compiler.is_compiling() or x.device.type != "cpu":
            return _turned_and_rotated(x, rotation)[0].t().contiguous()
        out = x.new_empty(x.shape, dtype=torch.float32)
        scratch = out.new_empty(2, min(len(x), _rows_cached(*x.shape)), x.shape[1])
        rotation = _in_floats(rotation)
        for part in _cached(x):
            out[part] = _turned_and_rotated(x[part], rotation, *scratch[:, : len(x[part])])[0].t()
        return out

    def modulate(self, given: AdaLNInput) -> Tensor:
        x = given.x.float()
        centred = x - x.double().mean(-1, keepdim=True).float()
        length = torch.linalg.vector_norm(centred, dim=-1, keepdim=True, dtype=torch.float64)
        variance = length.square() / x.shape[-1]
        normal = centred.mul_((variance + given.eps).sqrt().reciprocal().float())
        return normal.mul_(1 + given.scale[:, None]).add_(given.shift[:, None])

    def quantize(
        self, x: Tensor | AdaLNInput, fmt: Format, rotation: Rotation | None = None
    ) -> QuantizedRows:
        given = x.x if isinstance(x, AdaLNInput) else x
        if not given.numel():
            return super().quantize(x, fmt, rotation)
        if torch.compiler.is_compiling() or given.device.type != "cpu":
            return _quantize(self.rows(x), fmt, rotation)
        columns = given.shape[-1]
        rows = given.numel() // columns
        transposed = rotation is not None  # and stays so: the product reads it as quickly
        unit, dtype = _unit(fmt)
        integers = given.new_empty((columns, rows) if transposed else (rows, columns), dtype=dtype)
        integers = integers.t() if transposed else integers
        scales = given.new_empty(rows, 1, dtype=torch.float32)
        scratch = scales.new_empty(2, min(rows, _rows_cached(rows, columns)), columns)
        rotation = None if rotation is None else _in_floats(rotation)
        for part, some in _parts(x):
            levels, scales[part] = to_levels(self.rows(some), fmt, rotation, scratch)
            integers[part] = levels if unit == 1 else levels.mul_(1 / unit)
        scales *= unit
        return QuantizedRows(integers, scales, fmt.integer_max)

    def sums(self, rows: Tensor, others: Tensor) -> Tensor:
        if not rows.numel() or not 1 < rows.shape[1] <= DEEPEST:
            return super().sums(rows, others)
        return torch._int_mm(rows, others.t())

    def integer_linear(
        self,
        x: QuantizedRows,
        weight: Weight,
        bias: Tensor | None,
        dtype: torch.dtype,
        epilogue: Epilogue = NOTHING,
    ) -> Tensor:
        scales = weight.integer_scales()
        if not x.integers.numel() or not _worth_it(weight.spec, x.integers.shape[1]):
            return epilogue(self.float_linear(x.values(), weight, bias, torch.float32)).to(dtype)
        integers = self._integers(weight)
        if scales.shape[1] > 1:
            return epilogue(_grouped(x, integers, scales, bias)).to(dtype)
        sums = torch._int_mm(x.integers, integers.t())
        return scaled(sums, x.scales, scales.view(1, -1), bias, dtype, epilogue)

    def float_linear(
        self, x: Tensor, weight: Weight, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Rows cut into digits of 8 bits, each of which multiplies like any integer input; a few
        rows at a time, for all that is made of them is larger than they are."""
        if (
            weight.spec.float_group is not None
            or not x.numel()
            or not _worth_it(weight.spec, x.shape[1])
        ):
            return super().float_linear(x, weight, bias, dtype)
        integers, columns = self._integers(weight), weight.integer_scales().reshape(1, -1)
        out = x.new_empty(len(x), len(integers), dtype=dtype)
        for part in _cached(x if x.shape[1] > out.shape[1] else out):
            digits, rows = _digits(x[part].float())
            sums = torch._int_mm(digits.flatten(0, 1), integers.t())
            high, middle, low = sums.view(DIGITS, len(rows), -1)
            total = high.float().mul_(256.0).add_(middle).mul_(256.0).add_(low)
            out[part] = scaled(total, rows, columns, bias, dtype)
        return out

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        """Two matmuls around a softmax, where torch's own wastes bfloat16 on short sequences."""
        short = q.shape[2] <= SHORT and k.shape[2] <= SHORT and q.shape[:2] == k.shape[:2]
        if mask is not None or not short or q.dtype != torch.bfloat16 or not q.numel():
            return super().attention(q, k, v, mask, scale)
        images, heads, _, width = q.shape
        q, k, v = (tensor.reshape(images * heads, -1, width) for tensor in (q, k, v))
        scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.mT, beta=0, alpha=scale)
        return torch.bmm(scores.softmax(-1), v).view(images, heads, -1, width)

    def gelu(self, x: Tensor) -> Tensor:
        if x.dtype not in (torch.float32, torch.bfloat16) or not x.numel():
            return super().gelu(x)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        rows, results = x.reshape(-1, x.shape[-1]), out.view(-1, x.shape[-1])
        for part in _cached(rows):
            results[part] = _gelu(rows[part].float())
        return out

    def layout(self, packed: QTensor, activation: Spec | None, fast: bool | None) -> Tensor | None:
        wanted = fast and _worth_it(packed.spec, packed.columns)
        return integers_of(packed) if wanted and not _is_int8(packed.spec) else None

    def _integers(self, weight: Weight) -> Tensor:
        return integers_of(weight.packed) if weight.layout is None else weight.layout


def integers_of(packed: QTensor) -> Tensor:
    """As `Weight.integers`; four 4-bit codes, two bytes, are looked up at a time."""
    if _is_int8(packed.spec):
        return packed.packed.view(torch.int8)
    fmt, quick = packed.spec.format, packed.columns % 4 == 0 and packed.scales.zeros is None
    stored = fmt.by_group or fmt.learned  # what a code means
    if fmt.bits != 4 or len(fmt.options) > 1 or stored or not quick:
        return Weight(packed).integers()
    compiling = torch.compiler.is_compiling()
    table = _four_at_once(fmt) if compiling else _four_at_once_kept(fmt)
    pairs = packed.packed.view(torch.uint16).flatten()
    if compiling or pairs.device.type != "cpu":
        found = table.to(pairs.device).index_select(0, pairs.int())
    else:
        found = pairs.new_empty(len(pairs), dtype=torch.int32)
        for some, out in zip(pairs.split(LOOKED_UP), found.split(LOOKED_UP), strict=True):
            torch.index_select(table, 0, some.int(), out=out)
    return Weight(packed).times_factors(found.view(torch.int8).view(packed.shape))


def _four_at_once(fmt: Format) -> Tensor:
    """int32 [65536]: the four levels of every two bytes of packed codes."""
    step = fmt.step
    levels = torch.tensor(
        [int(v / step) for v in fmt.code_values()], dtype=torch.int8, device="cpu"
    )
    codes = torch.arange(1 << 16, device="cpu")
    return torch.stack([levels[(codes >> 4 * j) & 15] for j in range(4)], 1).view(torch.int32)[:, 0]


_four_at_once_kept = lru_cache(maxsize=8)(_four_at_once)


def _parts(x: Tensor | AdaLNInput) -> Iterator[tuple[slice, Tensor | AdaLNInput]]:
    """Rows, few enough at a time that the passes over them stay in the cache."""
    if isinstance(x, Tensor):
        rows = x.reshape(-1, x.shape[-1])
        yield from ((part, rows[part]) for part in _cached(rows))
        return
    rows, tokens = x.x.flatten(0, 1), x.x.shape[1]
    for part in _cached(rows, tokens):
        image = part.start // tokens
        shift, scale = x.shift[image, None], x.scale[image, None]
        yield part, AdaLNInput(rows[None, part], shift, scale, x.eps)


def _cached(x: Tensor, tokens: int | None = None) -> Iterator[slice]:
    """Rows, none of them of two images if those have so many tokens."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        yield slice(0, len(x))
        return
    tokens = tokens or len(x)
    count = _rows_cached(tokens, x.shape[1])
    for image in range(0, len(x), max(tokens, 1)):
        for start in range(image, image + tokens, count):
            yield slice(start, min(start + count, image + tokens))


def _rows_cached(rows: int, columns: int) -> int:
    """Of parts about as long as each other."""
    parts = max(-(-rows * columns // CACHED), 1)
    return max(-(-rows // (parts * TOGETHER)), 1) * TOGETHER


def _in_floats(rotation: Rotation) -> Rotation:
    matrices = tuple(matrix.float() for matrix in rotation.matrices)
    return replace(rotation, signs=rotation.signs.float(), matrices=matrices)


def _turned_and_rotated(
    x: Tensor, rotation: Rotation, one: Tensor | None = None, two: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Tokens as columns, and which of the scratch is free again.

    By matmuls: libraries sum so few terms one after another, as the definition does. They want long
    rows behind the axis that is mixed, so tokens stand side by side.
    """
    refuse_other_width(x, len(rotation.signs))
    signs = rotation.signs.to(x.dtype if x.dtype == torch.float64 else torch.float32)
    wide = x.to(signs.dtype) if one is None else one.copy_(x)  # quicker than a product of two types
    wide = wide if rotation.smooth is None else torch.div(wide, rotation.smooth, out=one)
    flipped = torch.mul(wide, signs, out=one).t()
    tokens = flipped.contiguous() if two is None else two.view(flipped.shape).copy_(flipped)
    spare, inner = one, rotation.order
    for matrix in rotation.matrices:
        groups = x.shape[1] // inner
        inner //= len(matrix)
        rows = tokens.view(groups, len(matrix), inner * len(x))
        factor = matrix.to(signs).t().expand(groups, -1, -1)
        out = None if spare is None else spare.view(rows.shape)
        mixed = torch.bmm(factor, rows, out=out).view(tokens.shape)
        tokens, spare = mixed, None if spare is None else tokens
    return tokens.mul_(rotation.scale), spare


def _quantize(x: Tensor, fmt: Format, rotation: Rotation | None) -> QuantizedRows:
    levels, scales = to_levels(x, fmt, rotation)
    unit, dtype = _unit(fmt)
    integers = levels if unit == 1 else levels.mul_(1 / unit)
    return QuantizedRows(integers.to(dtype).contiguous(), scales * unit, fmt.integer_max)


def _unit(fmt: Format) -> tuple[float, torch.dtype]:
    """What levels are counted in, and how: those too wide for int8 stay as they are."""
    return (fmt.step, torch.int8) if fmt.exact_in(8) else (1.0, torch.bfloat16)


def to_levels(
    x: Tensor, fmt: Format, rotation: Rotation | None, scratch: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Each row's nearest levels, as float32, and the scale they are multiplied with; of a rotated
    input both are views of its columns.

    `scratch`, float32 [2, at least as many rows, columns], is overwritten instead of memory that
    the system would have to clear first.
    """
    one, two = (None, None) if scratch is None else scratch[:, : len(x)]
    if rotation is None:
        x = x.float()
        scales = _scales(x, fmt, 1)
        return _nearest(torch.mul(x, scales.reciprocal(), out=one), fmt, two), scales
    columns, spare = _turned_and_rotated(x, rotation, one, two)
    columns, scales = columns.float(), _scales(columns.float(), fmt, 0)
    return _nearest(columns.mul_(scales.reciprocal()), fmt, spare).t(), scales.t()


def _scales(x: Tensor, fmt: Format, along: int) -> Tensor:
    largest = torch.maximum(x.amax(along, keepdim=True), -x.amin(along, keepdim=True))
    scales = torch.where(largest == 0, fmt.zero_scale, largest / fmt.max).clamp_(min=SMALLEST)
    return scales.masked_fill_(scales.isinf(), torch.nan)


def _nearest(units: Tensor, fmt: Format, out: Tensor | None) -> Tensor:
    how = fmt.arithmetic
    if how is None:
        return fmt.round(units).masked_fill_(units.isnan(), 0)
    return units.round_() if how.normal == inf else _minifloat(units, how, out)


def _minifloat(x: Tensor, how: Arithmetic, out: Tensor | None) -> Tensor:
    """To the nearest level, x within the ends. Adding and subtracting so large a number that a
    float32 keeps just the mantissa bits that x keeps in the format; ties go to its even multiples,
    which are the even codes. Without mantissa bits those are every other power of two, and before
    them an odd number is added."""
    exponents = x.new_full((1,), 0xFF << 23, dtype=torch.int32)
    out = None if out is None else out.view(x.shape).view(torch.int32)
    power = torch.bitwise_and(x.view(torch.int32), exponents, out=out)
    power.clamp_(min=127 + int(log2(how.normal)) << 23)
    times = 1.5 * 2.0 ** (23 - how.mantissa)
    if how.mantissa == 0:
        odd = (power >> 23 & 1) ^ 1
        power.view(torch.float32).mul_(times)
        power, times = power.add_(odd), 1.0
    large = power.view(torch.float32)
    return x.add_(large, alpha=times).sub_(large, alpha=times)


def _digits(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [3, rows, columns], highest first, and the scale of the lowest: -128 .. 127 each."""
    largest = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True))
    exponent = torch.frexp(largest).exponent.clamp(min=-100)
    scales = torch.ldexp(torch.ones_like(largest), exponent - 22)
    rest = (x * scales.reciprocal()).round_().to(torch.int32)
    parts = []
    for _ in range(DIGITS - 1):
        low = ((rest + 128) & 255) - 128
        parts.append(low.to(torch.int8))
        rest = (rest - low) >> 8
    digits = torch.stack([rest.to(torch.int8), *reversed(parts)])
    return digits, scales.masked_fill(~largest.isfinite(), torch.nan)


def _grouped(x: QuantizedRows, integers: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    width = integers.shape[1] // scales.shape[1]
    total: Tensor | None = None
    for group, scale in enumerate(scales.unbind(1)):
        columns = slice(group * width, (group + 1) * width)
        ours, theirs = x.integers[:, columns].contiguous(), integers[:, columns].contiguous()
        part = torch._int_mm(ours, theirs.t()) * scale
        total = part if total is None else total.add_(part)
    assert total is not None
    total.mul_(x.scales)
    return total if bias is None else total.add_(bias)


def scaled(
    sums: Tensor,
    rows: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    epilogue: Epilogue = NOTHING,
) -> Tensor:
    """after(sums · rows · columns + bias), a few rows at a time."""
    out = sums.new_empty(sums.shape, dtype=dtype)
    for part in _cached(sums, epilogue.tokens):
        product = sums[part].float().mul_(rows[part]).mul_(columns)
        product = product if bias is None else product.add_(bias)
        product = epilogue.complete(product, part.start)
        out[part] = _gelu(product) if epilogue.gelu else epilogue.gated(product, part.start)
    return out


def _gelu(x: Tensor) -> Tensor:
    """x * (1 + tanh(z)) / 2, which is x * sigmoid(2 z), and sigmoids are quick."""
    twice = torch.mul(x, x).mul_(GELU_CUBIC).add_(GELU_LINEAR).mul_(x)
    return twice.sigmoid_().mul_(x)


def _worth_it(weight: Spec, columns: int) -> bool:
    wide = weight.float_group is None or weight.float_group >= SMALLEST_GROUP
    return has_integers(weight) and wide and columns > 1  # of one, torch._int_mm reads beyond


def _is_int8(spec: Spec) -> bool:
    return spec.format.codes_are_levels and spec.format.bits == 8  # so there is no factor
