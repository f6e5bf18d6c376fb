"""The native CPU kernels as functions of tensors, each a registered torch operator.

Integers are exact whatever the instruction set. With one scale per row and per channel a result is
(sum * row scale) * channel scale + bias in exactly these roundings. A row that holds NaN or an
infinity has the scale NaN and codes of zero, so that whatever is made of it is NaN.

A weight is packed once, into a tensor that only these functions read:

    packed = pack_codes(codes, fmt)             # stored in 4 bits if the format does
    codes, scales = quantize_rows(x, fmt)       # counts of fmt.step, and their unit
    y = linear(codes, scales, packed, weight_scales, bias)

An operator is what torch.compile sees. Whoever calls the same layer again and again prepares it:
`Rows`, `Linear`, `FloatLinear` and `VectorLinear` do the same with fewer steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, prod
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.library import Library, infer_schema, register_fake
from torch.nn.functional import scaled_dot_product_attention

from fewbit.errors import BadArgument
from fewbit.formats import Format
from fewbit.kernels.native.library import (
    DTYPES,
    AttentionTask,
    RowsTask,
    address,
    available,
    failure,
    functions,
    has_attention,
    has_bf16,
    isa,
    most_depth,
    threads,
    why_not,
)
from fewbit.kernels.native.packing import VECTOR, pack_codes, pack_levels, pack_vectors, unpack
from fewbit.kernels.native.prepared import (
    LANES,
    MOST_ELEMENTS,
    MOST_HEAD,
    FloatLinear,
    Groups,
    Linear,
    Rows,
    Split,
    VectorLinear,
    levels_of,
    run_rows,
    too_large,
    unknown,
)
from fewbit.kernels.values import OperandRounding, Rotation

__all__ = [
    "DTYPES",
    "LANES",
    "VECTOR",
    "FloatLinear",
    "Groups",
    "Linear",
    "Rows",
    "Split",
    "VectorLinear",
    "attend",
    "attention",
    "available",
    "float_linear",
    "functions",
    "gelu",
    "hadamard_quantize_rows",
    "has_attention",
    "has_bf16",
    "has_rounding",
    "isa",
    "layer_norm_modulate",
    "linear",
    "modulate_quantize_rows",
    "most_depth",
    "pack_codes",
    "pack_levels",
    "pack_vectors",
    "quantize_rows",
    "threads",
    "unpack",
    "vector_linear",
    "why_not",
]

_OPERATORS = Library("fewbit_native", "DEF")
F = TypeVar("F", bound=Callable[..., Any])


def _operator(shape: Callable[..., Any]) -> Callable[[F], F]:
    """Registers a function with torch; `shape` makes an empty result of the same arguments."""

    def register(run: F) -> F:
        name = run.__name__
        _OPERATORS.define(name + infer_schema(run, mutates_args=()))
        _OPERATORS.impl(name, run, "CPU")
        register_fake(f"fewbit_native::{name}", shape, lib=_OPERATORS)
        operator: F = getattr(torch.ops.fewbit_native, name)
        return operator

    return register


def _same_shape(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


def _rows_shape(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    rows = prod(x.shape[:-1])
    codes = x.new_empty(rows, x.shape[-1], dtype=torch.int8)
    return codes, x.new_empty(rows, 1, dtype=torch.float32)


def _product_shape(x: Tensor, channels: Tensor, out_dtype: torch.dtype | None) -> Tensor:
    return x.new_empty(x.shape[0], channels.shape[0], dtype=out_dtype or x.dtype)


def _attention_shape(q: Tensor, *_: object) -> Tensor:
    batch, heads, queries, width = q.shape
    return q.new_empty(batch, queries, heads, width).transpose(1, 2)


def quantize_rows(x: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """x [..., K] to codes (int8 [M, K]) that count fmt.step, and scales (float32 [M, 1])."""
    return rows(x, levels_of(fmt), None, [])


def hadamard_quantize_rows(x: Tensor, rotation: Rotation, fmt: Format) -> tuple[Tensor, Tensor]:
    """As `quantize_rows`, after x / smooth * signs times the Kronecker product of the matrices over
    the root of its order: one matrix after another, each sum in ascending order in float32.
    """
    return rows(x, levels_of(fmt), rotation.signs, list(rotation.matrices), rotation.smooth)


def modulate_quantize_rows(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    fmt: Format,
    rotation: Rotation | None = None,
) -> tuple[Tensor, Tensor]:
    """`layer_norm_modulate` in float32 and what follows it."""
    if rotation is None:
        return rows(x, levels_of(fmt), None, [], None, shift, scale, eps)
    signs, matrices, smooth = rotation.signs, list(rotation.matrices), rotation.smooth
    return rows(x, levels_of(fmt), signs, matrices, smooth, shift, scale, eps)


@_operator(_rows_shape)
def rows(
    x: Tensor,
    levels: Sequence[float],
    signs: Tensor | None,
    matrices: Sequence[Tensor],
    smooth: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor]:
    rotation = None if signs is None else Rotation(signs, tuple(matrices), smooth)
    return Rows.by(levels, rotation)(x, shift, scale, eps)


@_operator(_same_shape)
def layer_norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift for x [B, T, C] and shift, scale [B, C]; as x."""
    if x.numel() > MOST_ELEMENTS:
        raise too_large(x)
    out = x.new_empty(x.shape)
    if out.numel():
        run_rows(functions().fewbit_rows, RowsTask(out=address(out)), x, shift, scale, eps)
    return out


@_operator(
    lambda codes, scales, packed, weight_scales, *_, out_dtype=torch.float32, **__: _product_shape(
        codes, weight_scales, out_dtype
    )
)
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
    factors: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Codes [M, K] with scales [M, 1] times a packed weight with scales [N, G]; see `Linear`."""
    product = Linear(packed, weight_scales, bias, factors)
    return product(codes, scales, out_dtype, gelu, gate, residual)


@_operator(
    lambda x, packed, weight_scales, bias=None, *, out_dtype=None: _product_shape(
        x, weight_scales, out_dtype
    )
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
    return FloatLinear(packed, weight_scales, bias)(x, out_dtype or x.dtype)


@_operator(lambda x, assignments, *_, out_dtype=None: _product_shape(x, assignments, out_dtype))
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
    return VectorLinear(assignments, codebook, weight_scales, bias)(x, out_dtype or x.dtype)


@_operator(_same_shape)
def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution up to x, by its approximation with a tanh."""
    if x.dtype not in DTYPES:
        raise unknown(x.dtype)
    x = x.contiguous()
    out = x.new_empty(x.shape)
    status = functions().fewbit_gelu(address(x), address(out), x.numel(), DTYPES[x.dtype])
    if status:
        raise failure(status)
    return out


@_operator(_attention_shape)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """scaled_dot_product_attention, [B, H, L, D]; laid out in memory as [B, L, H, D]."""
    return attend(q, k, v, mask, scale)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    rounding: OperandRounding | None = None,
) -> Tensor:
    """`attention` past torch's dispatcher; where `has_attention`, operands may be rounded."""
    _refuse_unequal(q, k, v)
    out = _attention_shape(q)
    if rounding is not None:
        _refuse_unfit(rounding, q)
    if not has_attention(q.dtype):
        return out.copy_(scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale))
    if not out.numel():
        return out
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k, v))
    task = AttentionTask(
        q=address(q),
        k=address(k),
        v=address(v),
        out=address(out),
        b=batch,
        h=heads,
        queries=queries,
        keys=keys,
        d=width,
        q_stride=q.stride()[:3],
        k_stride=k.stride()[:3],
        v_stride=v.stride()[:3],
        dtype=DTYPES[q.dtype],
        scale=width**-0.5 if scale is None else scale,
    )
    if mask is not None:
        mask = _added(mask).expand(batch, heads, queries, keys)
        task.mask, task.mask_stride = address(mask), mask.stride()
    if rounding is not None:
        mantissa, *numbers = levels_of(rounding.format)
        task.top, task.step, task.smallest_normal, task.zero = numbers
        task.by_row, task.mantissa = rounding.steps is None, int(mantissa)
        task.bottom = rounding.format.min
    if rounding is not None and rounding.steps is not None:
        steps = rounding.steps.float().contiguous()
        task.steps, task.step_images = address(steps), steps.shape[1]
    if rounding is not None and rounding.regions is not None:
        regions = rounding.regions.float().contiguous()
        task.regions, task.many_regions = address(regions), regions.shape[0] > 1
    status = functions().fewbit_attention(task)
    if status:
        raise failure(status)
    return out


def _refuse_unequal(q: Tensor, k: Tensor, v: Tensor) -> None:
    if k.shape != v.shape or k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3]:
        raise BadArgument(
            f"attention of queries {list(q.shape)} to keys {list(k.shape)} and values "
            f"{list(v.shape)}: all but the lengths must agree"
        )
    if not k.dtype == v.dtype == q.dtype:
        raise BadArgument(f"attention of {q.dtype}, {k.dtype} and {v.dtype}: they must agree")


def has_rounding(rounding: OperandRounding, width: int) -> bool:
    """Whether operands of so many columns are rounded so on their way: to a format of arithmetic,
    and by steps to one of integers."""
    fmt = rounding.format
    known = fmt.arithmetic is not None and fmt.exact_in(8)
    if rounding.steps is None:
        return known and width <= MOST_HEAD
    return known and fmt.step == 1 and fmt.codes_are_levels


def _refuse_unfit(rounding: OperandRounding, q: Tensor) -> None:
    images, heads = q.shape[:2]
    steps, regions = rounding.steps, rounding.regions
    fits = steps is None or steps.shape in ((3, 1, heads), (3, images, heads))
    whole = regions is None or regions.shape in ((1, 8), (images, 8))
    known = has_attention(q.dtype) and has_rounding(rounding, q.shape[3])
    if not (fits and whole and known):
        given = [None if one is None else list(one.shape) for one in (steps, regions)]
        raise BadArgument(
            f"operands {list(q.shape)} of {q.dtype} are rounded natively to integers by steps "
            f"[3, 1 or {images}, {heads}], or row by row to formats of 8 bits at most, and by "
            f"regions [1 or {images}, 8]; got {rounding.format}, {given[0]} and {given[1]}"
        )


def _added(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.float()
    return mask.new_zeros(mask.shape, dtype=torch.float32).masked_fill_(~mask, -inf)
