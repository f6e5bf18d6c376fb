"""The native CPU kernels as functions of tensors, each a registered torch operator.

Integers are exact whatever the instruction set. With one scale per row and per channel a result is
(sum * row scale) * channel scale + bias in exactly these roundings. A row that holds NaN or an
infinity has the scale NaN and codes of zero, so that whatever is made of it is NaN.

A weight is packed once, into a tensor that only these functions read:

    packed = pack_codes(codes, fmt)             # rests in 4 bits if the format does
    codes, scales = quantize_rows(x, fmt)       # counts of fmt.step, and their unit
    y = linear(codes, scales, packed, weight_scales, bias)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import c_int32, c_int64
from functools import lru_cache
from math import inf, prod
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.nn.functional import scaled_dot_product_attention

from fewbit.errors import BadArgument
from fewbit.formats import Format
from fewbit.kernels.native.library import Loaded, functions, load

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
MOST_OPTIONS = 4
MOST_MATRICES = 16
MOST_ELEMENTS = 2**31 - 1
FEW_ROWS = 8  # up to here floats meet codes where they rest, which is quicker: kFewRows
_ERRORS = {
    1: "the native kernels found no memory for their scratch",
    2: "the packed weight was not made by fewbit.kernels.native.ops, or for another shape",
}


def available() -> bool:
    return why_not() is None


def why_not() -> str | None:
    """Why the native kernels cannot run here, if they cannot."""
    loaded = load()
    return loaded if isinstance(loaded, str) else None


def isa() -> str | None:
    """The instruction set in use."""
    loaded = load()
    return loaded.isa if isinstance(loaded, Loaded) else None


def has_attention(dtype: torch.dtype) -> bool:
    """Whether there is a vector kernel of attention for this type here."""
    known = available() and dtype in DTYPES
    return known and bool(functions().fewbit_has_attention(DTYPES[dtype]))


def has_bf16() -> bool:
    """Whether bfloat16 is multiplied as such here."""
    return available() and bool(functions().fewbit_has_bf16())


def threads() -> int:
    """How many threads a large operation uses: as many as torch, but one in a forked child."""
    return int(functions().fewbit_threads())


def pack_codes(codes: Tensor, fmt: Format, choices: Tensor | None = None) -> Tensor:
    """Codes (uint8 [N, K]) of a format; where rows differ, also the option of each (uint8)."""
    if not fmt.exact_in(8) or len(fmt.options) > MOST_OPTIONS:
        raise BadArgument(f"{fmt} has no native kernel: its levels must be integers of 8 bits")
    if fmt.bits > 4:
        return pack_levels(_levels(fmt)[codes.int()])
    table = codes.new_zeros(len(fmt.options), 16, dtype=torch.int8)
    for row, option in enumerate(fmt.options):
        table[row, : 1 << fmt.bits] = _levels(option)
    return _pack(codes, table, choices, bits=4)


def pack_levels(levels: Tensor) -> Tensor:
    """Levels (int8 [N, K]) that rest in 8 bits and need no unpacking."""
    return _pack(levels, None, None, bits=8)


def unpack(packed: Tensor) -> Tensor:
    """What `pack_codes` was given if it rests in 4 bits, else int8 levels; [N, K]."""
    shape = (c_int32 * 3)()
    _check(functions().fewbit_packed_shape(_pointer(packed), packed.numel(), shape))
    bits, rows, columns = shape
    out = packed.new_empty(rows, columns, dtype=torch.uint8 if bits == 4 else torch.int8)
    _check(functions().fewbit_unpack(_pointer(packed), packed.numel(), _pointer(out)))
    return out


def quantize_rows(x: Tensor, fmt: Format, *, groups: int = 1) -> tuple[Tensor, Tensor]:
    """x [..., K] to codes (int8 [M, K]) that count fmt.step, and scales (float32 [M, groups])."""
    if x.shape[-1] % groups:
        raise BadArgument(f"{groups} groups do not divide {x.shape[-1]} columns")
    return _rows(x, None, None, None, (), groups, 0.0, _rounding(fmt))


def hadamard_quantize_rows(
    x: Tensor, signs: Tensor, matrices: Sequence[Tensor], fmt: Format
) -> tuple[Tensor, Tensor]:
    """As `quantize_rows`, after x * signs times the Kronecker product of the matrices over the root
    of its order: one matrix after another, each sum in ascending order in float32.
    """
    return _rows(x, None, None, signs, matrices, 1, 0.0, _rounding(fmt))


def modulate_quantize_rows(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    fmt: Format,
    rotation: tuple[Tensor, Sequence[Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """`layer_norm_modulate` in float32 and what follows it; `rotation` is signs and matrices."""
    signs, matrices = rotation or (None, ())
    return _rows(x, shift, scale, signs, matrices, 1, eps, _rounding(fmt))


def layer_norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift for x [B, T, C] and shift, scale [B, C]; as x."""
    return torch.ops.fewbit_native.modulate(x, shift, scale, eps)


def linear(
    codes: Tensor,
    scales: Tensor,
    packed: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None = None,
    *,
    gelu: bool = False,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Codes [M, K] with scales [M, 1 or G] times a packed weight with scales [N, G].

    In float32, before it is rounded, GELU may be taken of the result, or what comes of it is
    residual [M, N] + gate [images, N] * result, an image having as many rows as another.
    """
    return torch.ops.fewbit_native.linear(
        codes, scales, packed, weight_scales, bias, gelu, gate, residual, out_dtype
    )


def float_linear(
    x: Tensor,
    packed: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x [M, K], not quantized, times a packed weight, with exact products and float32 sums."""
    return torch.ops.fewbit_native.float_linear(
        x, packed, weight_scales, bias, out_dtype or x.dtype
    )


def vector_linear(
    x: Tensor,
    assignments: Tensor,
    codebook: Tensor,
    weight_scales: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x [M, K] times vectors of a codebook [k, d], of which `assignments` [N, K/d] names each; the
    codebook is rounded to bfloat16 if x is."""
    return torch.ops.fewbit_native.vector_linear(
        x, assignments, codebook, weight_scales, bias, out_dtype or x.dtype
    )


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution up to x, by its approximation with a tanh."""
    return torch.ops.fewbit_native.gelu(x)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    regions: Tensor | None = None,
) -> Tensor:
    """scaled_dot_product_attention, [B, H, L, D]; laid out in memory as [B, L, H, D].

    Where `has_attention` of float32, the shares of the softmax may be rounded, by `regions` [1 or
    B, 8] of `fewbit.activations.multi_region`.
    """
    return torch.ops.fewbit_native.attention(q, k, v, mask, scale or q.shape[-1] ** -0.5, regions)


@lru_cache
def _levels(fmt: Format) -> Tensor:
    """The level of each code, counted in steps."""
    return (fmt.decode(torch.arange(1 << fmt.bits, device="cpu")) / fmt.step).to(torch.int8)


def _rounding(fmt: Format) -> list[float]:
    # The compiler sees through caches, but not without a warning.
    return _known_rounding(fmt) if not torch.compiler.is_compiling() else _find_rounding(fmt)


def _find_rounding(fmt: Format) -> list[float]:
    """Mantissa bits, the largest level, the step, and where subnormal numbers end."""
    how = fmt.arithmetic
    if how is not None and fmt.exact_in(8):
        return [how.mantissa, fmt.max, fmt.step, how.normal]
    raise BadArgument(
        f"activations in {fmt} have no native kernel: it takes signed integers and few-bit floats "
        "whose levels are integers of 8 bits"
    )


_known_rounding = lru_cache(_find_rounding)


def _pack(codes: Tensor, table: Tensor | None, choices: Tensor | None, *, bits: int) -> Tensor:
    rows, columns = codes.shape
    codes = codes.contiguous()
    tables = 0 if table is None else len(table)
    if tables > 1:
        if choices is None or choices.numel() != rows or int(choices.max()) >= tables:
            raise BadArgument(f"each of {rows} rows needs one of {tables} options")
        choices = choices.contiguous()
    size = functions().fewbit_packed_bytes(rows, columns, bits, tables)
    out = codes.new_empty(size, dtype=torch.uint8)
    functions().fewbit_pack(
        _pointer(codes), _pointer(table), _pointer(choices), rows, columns, bits, tables,
        _pointer(out),
    )  # fmt: skip
    return out


def _rows(
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    signs: Tensor | None,
    matrices: Sequence[Tensor],
    groups: int,
    eps: float,
    rounding: list[float],
) -> tuple[Tensor, Tensor]:
    return torch.ops.fewbit_native.rows(
        x, shift, scale, signs, list(matrices), groups, eps, rounding
    )


def _run_rows(
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    signs: Tensor | None,
    matrices: Sequence[Tensor],
    groups: int,
    eps: float,
    rounding: list[float],
) -> tuple[Tensor, Tensor]:
    _counted(x)
    codes, scales = _rows_shapes(x, shift, scale, signs, matrices, groups, eps, rounding)
    _call_rows(x, shift, scale, signs, matrices, codes, scales, None, eps, rounding)
    return codes, scales


def _rows_shapes(
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    signs: Tensor | None,
    matrices: Sequence[Tensor],
    groups: int,
    eps: float,
    rounding: list[float],
) -> tuple[Tensor, Tensor]:
    columns = x.shape[-1]
    rows = prod(x.shape[:-1])
    return (
        x.new_empty(rows, columns, dtype=torch.int8),
        x.new_empty(rows, groups, dtype=torch.float32),
    )


def _run_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    out = x.new_empty(x.shape)
    _call_rows(x, shift, scale, None, (), None, None, out, eps, [1.0, 1.0, 1.0, 1.0])
    return out


def _call_rows(
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    signs: Tensor | None,
    matrices: Sequence[Tensor],
    codes: Tensor | None,
    scales: Tensor | None,
    out: Tensor | None,
    eps: float,
    rounding: list[float],
) -> None:
    dtype, columns = _dtype(x.dtype), x.shape[-1]
    rows = _counted(x) // columns if columns else 0
    x = x.contiguous()
    groups = 1 if scales is None else scales.shape[1]
    tokens, order = 1, prod(map(len, matrices))
    if shift is not None and scale is not None:
        shift, scale = _floats(shift), _floats(scale)
        if x.dim() != 3 or shift.shape != (x.shape[0], columns) or scale.shape != shift.shape:
            raise BadArgument(
                f"an input {list(x.shape)} needs shift and scale [{x.shape[0]}, {columns}], "
                f"got {list(shift.shape)} and {list(scale.shape)}"
            )
        tokens = x.shape[1]
    entries: Tensor | None = None
    if signs is not None:
        if signs.numel() != columns or columns % order or len(matrices) > MOST_MATRICES:
            raise BadArgument(f"{columns} columns are not rotated by blocks of {order}")
        signs, entries = _bytes(signs), torch.cat([_bytes(matrix).flatten() for matrix in matrices])
    mantissa, top, step, smallest_normal = rounding
    _check(
        functions().fewbit_rows(
            _pointer(x), _pointer(shift), _pointer(scale), _pointer(signs),
            _pointer(entries), (c_int32 * len(matrices))(*map(len, matrices)), _pointer(codes),
            _pointer(scales), _pointer(out), rows, columns, tokens, len(matrices), groups, dtype,
            int(mantissa), order**-0.5, top, step, smallest_normal, eps,
        )
    )  # fmt: skip


def _run_linear(
    codes: Tensor,
    scales: Tensor,
    packed: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    gelu: bool,
    gate: Tensor | None,
    residual: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    _counted(codes)
    rows, columns = codes.shape
    channels, groups = weight_scales.shape
    tokens = 1
    if gate is not None and residual is not None:
        gate, residual = _floats(gate), residual.to(out_dtype).contiguous()
        images, tokens = len(gate), rows // max(len(gate), 1)
        right = gate.shape == (images, channels) and residual.shape == (rows, channels)
        if gelu or not right or images * tokens != rows:
            raise BadArgument(
                f"a result [{rows}, {channels}], not of GELU, is gated by [images, {channels}] and "
                f"added to [{rows}, {channels}], got {list(gate.shape)}, {list(residual.shape)}"
            )
    out = codes.new_empty(rows, channels, dtype=out_dtype)
    scale_groups = scales.shape[1]
    if groups > 1 and columns % (8 * groups):
        raise BadArgument(f"{groups} groups of {columns} columns are not multiples of 8 columns")
    if len(scales) != rows or scale_groups not in (1, groups):
        raise BadArgument(f"{rows} rows need scales [{rows}, 1 or {groups}]")
    codes, scales, weight_scales = _bytes(codes), _floats(scales), _floats(weight_scales)
    bias = _bias(bias, channels)
    _check(
        functions().fewbit_linear(
            _pointer(codes), _pointer(scales), _pointer(packed), packed.numel(),
            _pointer(weight_scales), _pointer(bias), _pointer(gate), _pointer(residual),
            _pointer(out), rows, channels, columns, tokens, groups,
            scale_groups, gelu, _dtype(out_dtype),
        )
    )  # fmt: skip
    return out


def _run_float_linear(
    x: Tensor,
    packed: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    _counted(x)
    rows, columns = x.shape
    channels, groups = weight_scales.shape
    if groups > 1 and columns % (8 * groups):
        raise BadArgument(f"{groups} groups of {columns} columns are not multiples of 8 columns")
    if not columns:
        return _bias_alone(x, bias, channels, out_dtype)
    x = _floats(x) if rows <= FEW_ROWS else _as_multiplied(x)
    weight_scales, bias = _floats(weight_scales), _bias(bias, channels)
    out = x.new_empty(rows, channels, dtype=out_dtype)
    _check(
        functions().fewbit_float_linear(
            _pointer(x), _pointer(packed), packed.numel(), None, None, _pointer(weight_scales),
            _pointer(bias), _pointer(out), rows, channels, columns, 1, groups, _dtype(x.dtype),
            _dtype(out_dtype),
        )
    )  # fmt: skip
    return out


def _run_vector_linear(
    x: Tensor,
    assignments: Tensor,
    codebook: Tensor,
    weight_scales: Tensor | None,
    bias: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    _counted(x)
    rows, columns = x.shape
    channels, vectors = assignments.shape
    entries, length = codebook.shape
    if vectors * length != columns or not 0 < length <= 256 or entries > 256:
        raise BadArgument(
            f"{vectors} vectors of {length} do not make {columns} columns, or the codebook has "
            f"more than 256 entries ({entries})"
        )
    if assignments.dtype != torch.uint8:
        raise BadArgument(f"assignments are uint8, got {assignments.dtype}")
    if weight_scales is not None and weight_scales.numel() != channels:
        raise BadArgument(f"{channels} channels have as many scales, got {weight_scales.numel()}")
    if not columns:
        return _bias_alone(x, bias, channels, out_dtype)
    if entries < 256 and assignments.numel() and int(assignments.max()) >= entries:
        raise BadArgument(f"an assignment is beyond the {entries} entries of its codebook")
    out = x.new_empty(rows, channels, dtype=out_dtype)
    codebook = codebook.to(x.dtype) if x.dtype == torch.bfloat16 else codebook
    x = _as_multiplied(x) if length % 2 == 0 else _floats(x)
    codebook, bias = codebook.to(x.dtype).contiguous(), _bias(bias, channels)
    scales = None if weight_scales is None else _floats(weight_scales)
    assignments = assignments.contiguous()
    _check(
        functions().fewbit_float_linear(
            _pointer(x), None, 0, _pointer(assignments), _pointer(codebook), _pointer(scales),
            _pointer(bias), _pointer(out), rows, channels, columns, length, 1, _dtype(x.dtype),
            _dtype(out.dtype),
        )
    )  # fmt: skip
    return out


def _run_gelu(x: Tensor) -> Tensor:
    x = x.contiguous()
    out = x.new_empty(x.shape)
    _check(functions().fewbit_gelu(_pointer(x), _pointer(out), x.numel(), _dtype(x.dtype)))
    return out


def _run_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, regions: Tensor | None
) -> Tensor:
    out = _attention_shape(q)
    batch, heads, queries, width = q.shape
    if k.shape != v.shape or k.shape[:2] != q.shape[:2] or k.shape[3] != width:
        raise BadArgument(
            f"attention of queries {list(q.shape)} to keys {list(k.shape)} and values "
            f"{list(v.shape)}: all but the lengths must agree"
        )
    if not k.dtype == v.dtype == q.dtype:
        raise BadArgument(f"attention of {q.dtype}, {k.dtype} and {v.dtype}: they must agree")
    many = regions is not None and len(regions) > 1
    if regions is not None:
        fits = regions.dim() == 2 and regions.shape[1] == 8 and len(regions) in (1, batch)
        if not fits or q.dtype != torch.float32 or not has_attention(q.dtype):
            raise BadArgument("only shares of a float32 attention are rounded, by [1 or B, 8]")
        regions = _floats(regions)
    if not has_attention(q.dtype):
        return out.copy_(scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale))
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k, v))
    strides = [s for t in (q, k, v) for s in t.stride()[:3]]
    if mask is not None:
        mask = _added(mask).expand(batch, heads, queries, k.shape[2])
        strides += mask.stride()
    _check(
        functions().fewbit_attention(
            _pointer(q), _pointer(k), _pointer(v), _pointer(mask), _pointer(regions),
            _pointer(out), batch, heads, queries, k.shape[2], width, (c_int64 * 13)(*strides),
            DTYPES[q.dtype], many, scale,
        )
    )  # fmt: skip
    return out


def _attention_shape(q: Tensor, *_: object) -> Tensor:
    batch, heads, queries, width = q.shape
    return q.new_empty(batch, queries, heads, width).transpose(1, 2)


def _added(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.float()
    return mask.new_zeros(mask.shape, dtype=torch.float32).masked_fill_(~mask, -inf)


def _dtype(dtype: torch.dtype) -> int:
    if dtype not in DTYPES:
        raise BadArgument(f"the native kernels take float32 and bfloat16, got {dtype}")
    return DTYPES[dtype]


def _floats(x: Tensor) -> Tensor:
    return x.float().contiguous()


def _bias_alone(x: Tensor, bias: Tensor | None, channels: int, dtype: torch.dtype) -> Tensor:
    """Of inputs without columns."""
    bias = _bias(bias, channels)
    nothing = x.new_zeros(len(x), channels, dtype=dtype)
    return nothing if bias is None else nothing + bias.to(dtype)


def _as_multiplied(x: Tensor) -> Tensor:
    """bfloat16 where there are products of it; their sums are float32 all the same."""
    if x.dtype != torch.bfloat16 or not has_bf16():
        return _floats(x)
    x = x.contiguous()
    return x if x.data_ptr() % 4 == 0 else x.clone()  # two are read at a time


def _bytes(x: Tensor) -> Tensor:
    if x.dtype != torch.int8:
        raise BadArgument(f"codes, signs and Hadamard matrices are int8, got {x.dtype}")
    return x.contiguous()


def _bias(bias: Tensor | None, channels: int) -> Tensor | None:
    if bias is None:
        return None
    if bias.numel() != channels:
        raise BadArgument(f"{channels} channels have as many biases, got {bias.numel()}")
    return _floats(bias)


def _counted(x: Tensor) -> int:
    if x.numel() > MOST_ELEMENTS:
        raise BadArgument(
            f"an input {list(x.shape)} is beyond the {MOST_ELEMENTS} elements allowed"
        )
    return x.numel()


def _pointer(x: Tensor | None) -> int | None:
    """Where the numbers of a tensor lie; one that has none here would end the process."""
    if x is None:
        return None
    if not x.is_cpu:
        raise BadArgument(f"the native kernels compute on the CPU, got a tensor on {x.device.type}")
    return x.data_ptr()


def _check(status: int) -> None:
    if status:
        raise BadArgument(_ERRORS[status])


_OPERATORS = Library("fewbit_native", "DEF")
_IMPLEMENTED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "rows(Tensor x, Tensor? shift, Tensor? scale, Tensor? signs, Tensor[] matrices, "
    "int groups, float eps, float[] rounding) -> (Tensor, Tensor)": (_run_rows, _rows_shapes),
    "modulate(Tensor x, Tensor shift, Tensor scale, float eps) -> Tensor": (
        _run_modulate,
        lambda x, *_: x.new_empty(x.shape),
    ),
    "linear(Tensor codes, Tensor scales, Tensor packed, Tensor weight_scales, Tensor? bias, "
    "bool gelu, Tensor? gate, Tensor? residual, ScalarType out_dtype) -> Tensor": (
        _run_linear,
        lambda codes, scales, packed, weight_scales, bias, gelu, gate, residual, out_dtype: (
            codes.new_empty(codes.shape[0], weight_scales.shape[0], dtype=out_dtype)
        ),
    ),
    "float_linear(Tensor x, Tensor packed, Tensor weight_scales, Tensor? bias, "
    "ScalarType out_dtype) -> Tensor": (
        _run_float_linear,
        lambda x, packed, weight_scales, bias, out_dtype: x.new_empty(
            x.shape[0], weight_scales.shape[0], dtype=out_dtype
        ),
    ),
    "vector_linear(Tensor x, Tensor assignments, Tensor codebook, Tensor? weight_scales, "
    "Tensor? bias, ScalarType out_dtype) -> Tensor": (
        _run_vector_linear,
        lambda x, assignments, codebook, weight_scales, bias, out_dtype: x.new_empty(
            x.shape[0], assignments.shape[0], dtype=out_dtype
        ),
    ),
    "gelu(Tensor x) -> Tensor": (_run_gelu, lambda x: x.new_empty(x.shape)),
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale, Tensor? regions) "
    "-> Tensor": (_run_attention, _attention_shape),
}
for _schema, (_run, _shape) in _IMPLEMENTED.items():
    _name = _OPERATORS.define(_schema)
    _OPERATORS.impl(_name, _run, "CPU")
    torch.library.register_fake(f"fewbit_native::{_name}", _shape, lib=_OPERATORS)
