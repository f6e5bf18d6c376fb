"""The native library as a backend: thin calls, for what it does not do the portable copies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from fewbit.formats import Format, QTensor, Spec
from fewbit.formats.pack import pack
from fewbit.kernels.native import ops as native
from fewbit.kernels.native.prepared import (
    FixedRows,
    FloatLinear,
    Groups,
    Linear,
    Rows,
    VectorLinear,
    has_groups,
    has_rows,
)
from fewbit.kernels.native.recording import Function, Recorded
from fewbit.kernels.precision import is_traced
from fewbit.kernels.reference import (
    INT8,
    Coder,
    FixedCoder,
    Grouper,
    Multiplier,
    SplitMultiplier,
    Splitter,
)
from fewbit.kernels.torch_cpu import Portable
from fewbit.kernels.values import (
    NOTHING,
    AdaLNInput,
    Epilogue,
    OperandRounding,
    QuantizedRows,
    Rotation,
    SplitRows,
    Weight,
    has_integer_rows,
    has_integers,
    refuse_other_width,
    scaled_by_row,
)


class Native(Portable):
    name = "native"

    def why_not(self, device: torch.device) -> str | None:
        if device.type != "cpu":
            return f"it computes on the CPU, not on {device.type}"
        return native.why_not()

    def path(self, weight: Spec, activation: Spec | None, shape: tuple[int, int]) -> str:
        if _has_vectors(weight) and not _in_vectors(weight, activation):
            return f"native {native.isa()}, float products with vectors of a codebook"
        if not _takes(weight, shape[1]):
            return super().path(weight, activation, shape)
        coded = activation is not None and _are_integers(weight, activation, shape[1])
        how = f"{'integer' if coded else 'float'} products"
        bits = 2 if _in_vectors(weight, activation) else 4 if _in_nibbles(weight) else 8
        return f"native {native.isa()}, {how}, weights stored in {bits} bits"

    def accepts_codes(self, spec: Spec) -> bool:
        """Also integers in groups, unless something traces; and what is exact in bfloat16, FP8,
        where that is multiplied as such."""
        if super().accepts_codes(spec) or torch.compiler.is_compiling():
            return super().accepts_codes(spec)
        if _has_groups(spec):
            return not is_traced()
        return spec.format.arithmetic is not None and scaled_by_row(spec) and native.has_bf16()

    def modulate(self, given: AdaLNInput) -> Tensor:
        if torch.compiler.is_compiling() or not given.x.numel():
            return super().modulate(given)
        return native.layer_norm_modulate(given.x.float(), given.shift, given.scale, given.eps)

    def quantize(
        self, x: Tensor | AdaLNInput, fmt: Format, rotation: Rotation | None = None
    ) -> QuantizedRows:
        given = x.x if isinstance(x, AdaLNInput) else x
        compiling = torch.compiler.is_compiling()  # a compiler fuses passes itself
        if compiling or not given.numel() or not has_rows(fmt):
            return super().quantize(x, fmt, rotation)
        given = given if given.dtype in native.DTYPES else given.float()
        if rotation is not None:
            refuse_other_width(given, len(rotation.signs))
        if isinstance(x, AdaLNInput):
            coded = native.modulate_quantize_rows(given, x.shift, x.scale, x.eps, fmt, rotation)
        elif rotation is not None:
            coded = native.hadamard_quantize_rows(given, rotation, fmt)
        else:
            coded = native.quantize_rows(given, fmt)
        return QuantizedRows(*coded, fmt.integer_max)

    def coder(self, spec: Spec, rotation: Rotation | None) -> Coder:
        if not has_rows(spec.format) or is_traced():  # what traces sees no prepared calls
            return super().coder(spec, rotation)
        return _Coder(Rows(spec.format, rotation, _groups(spec)), spec.integer_max)

    def splitter(
        self, directions: Tensor, rotation: Rotation | None, spec: Spec | None = None
    ) -> Splitter:
        general = super().splitter(directions, rotation, spec)
        unknown = spec is not None and not has_rows(spec.format)
        if unknown or is_traced() or directions.shape[1] > native.most_depth():
            return general
        if spec is None:
            return _Splitter(native.Split(directions, rotation), 0, general)
        split = native.Split(directions, rotation, spec.format, _groups(spec))
        return _Splitter(split, spec.integer_max, general)

    def grouper(self, spec: Spec, stretches: Sequence[float]) -> Grouper | None:
        if not _has_groups(spec) or is_traced():
            return None
        rows = Rows(spec.format, None, _groups(spec, stretches))
        return partial(_around_means, rows, spec.integer_max)

    def fixed(
        self, fmt: Format, rotation: Rotation | None, regions: int = 1, whole: int = 0
    ) -> FixedCoder | None:
        if not has_rows(fmt) or is_traced():
            return None
        return partial(_by_steps, FixedRows(fmt, rotation, regions, whole), fmt.integer_max)

    def multiplier(self, weight: Weight, bias: Tensor | None) -> Multiplier:
        general = super().multiplier(weight, bias)
        if weight.layout is not None and _takes(weight.spec, weight.packed.columns):
            return _Multiplier(weight, weight.layout, bias, general)
        return _of_vectors(weight.packed, bias, general)

    def added(self, main: Multiplier, side: Multiplier) -> SplitMultiplier:
        general = super().added(main, side)
        if isinstance(main, _Multiplier) and isinstance(side, _Multiplier):
            return _Both(main, side, general)
        return general

    def integer_linear(
        self,
        x: QuantizedRows,
        weight: Weight,
        bias: Tensor | None,
        dtype: torch.dtype,
        epilogue: Epilogue = NOTHING,
    ) -> Tensor:
        if x.integers.dtype != torch.int8:
            return epilogue(self._wide_linear(x, weight, bias)).to(dtype)
        if epilogue.addend is not None:
            return epilogue(self.integer_linear(x, weight, bias, torch.float32)).to(dtype)
        layout = self._layout(weight)
        if layout is None or not x.integers.numel():
            return super().integer_linear(x, weight, bias, dtype, epilogue)
        return native.linear(
            x.integers,
            x.scales,
            layout,
            weight.integer_scales(),
            bias,
            gelu=epilogue.gelu,
            gate=epilogue.gate,
            residual=epilogue.residual,
            factors=_factors(weight),
            out_dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32,
        ).to(dtype)

    def _wide_linear(self, x: QuantizedRows, weight: Weight, bias: Tensor | None) -> Tensor:
        layout, scales = self._layout(weight), _float_scales(weight)
        if layout is None or not x.integers.numel():
            return super().float_linear(x.values(), weight, bias, torch.float32)
        rows = x.integers.contiguous()
        product = native.float_linear(rows, layout, scales, out_dtype=torch.float32)
        product.mul_(x.scales)
        return product if bias is None else product.add_(bias)

    def float_linear(
        self, x: Tensor, weight: Weight, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        layout = self._layout(weight)
        if layout is None or not x.numel():
            return super().float_linear(x, weight, bias, dtype)
        out = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        x = x if x.dtype in native.DTYPES else x.float()
        return native.float_linear(x, layout, _float_scales(weight), bias, out_dtype=out).to(dtype)

    def codebook_linear(
        self, x: Tensor, packed: QTensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        codebook, spec = packed.scales.codebook, packed.spec
        if not _has_vectors(spec) or not x.numel():
            return super().codebook_linear(x, packed, bias, dtype)
        assert codebook is not None
        x = x if x.dtype in native.DTYPES else x.float()
        scales = spec.load(packed.scales).expand(packed.shape[0], 1)
        out = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        product = native.vector_linear(x, packed.codes(), codebook, scales, bias, out_dtype=out)
        return product.to(dtype)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        if not native.has_attention(q.dtype) or not q.numel():
            return super().attention(q, k, v, mask, scale)
        attention = native.attention if is_traced() else native.attend
        return attention(q, k, v, mask, scale)

    def recorded(self, function: Function) -> Function:
        return Recorded(function)

    def rounded_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        rounding: OperandRounding,
    ) -> Tensor | None:
        known = native.has_attention(q.dtype) and native.has_rounding(rounding, q.shape[-1])
        if not known or not q.numel() or is_traced():
            return None
        return native.attend(q, k, v, mask, scale, rounding)

    def gelu(self, x: Tensor) -> Tensor:
        return native.gelu(x) if x.dtype in native.DTYPES else super().gelu(x)

    def layout(self, packed: QTensor, activation: Spec | None, fast: bool | None) -> Tensor | None:
        spec = packed.spec
        if not _takes(spec, packed.columns):
            return None
        codebook = packed.scales.codebook
        if codebook is not None and _in_vectors(spec, activation):
            return native.pack_vectors(packed.codes(), codebook)
        return None if fast is False and not _rests(spec) else _panels(packed)

    def replaces_codes(self, spec: Spec, activation: Spec | None) -> bool:
        return _rests(spec) or _in_vectors(spec, activation)

    def codes_in(self, layout: Tensor, stored: QTensor) -> Tensor:
        rests = native.unpack(layout.cpu()).to(layout.device)
        are_codes = _in_nibbles(stored.spec) or stored.spec.format.learned
        codes = rests if are_codes else Weight(stored).codes_of(rests)
        return pack(codes, stored.spec.format.bits)

    def _layout(self, weight: Weight) -> Tensor | None:
        given = weight.layout is not None or is_traced()
        if given or not _takes(weight.spec, weight.packed.columns):
            return weight.layout
        return _panels(weight.packed)


class _Coder:
    """`Native.quantize`, prepared."""

    def __init__(self, rows: Rows, largest: int) -> None:
        self.rows, self.largest = rows, largest

    def __call__(self, x: Tensor | AdaLNInput) -> QuantizedRows:
        given = x.x if isinstance(x, AdaLNInput) else x
        if given.dtype not in native.DTYPES:
            given = given.float()
        if isinstance(x, AdaLNInput):
            return QuantizedRows(*self.rows(given, x.shift, x.scale, x.eps), self.largest)
        return QuantizedRows(*self.rows(given), self.largest)


class _Splitter:
    """`Native.split`, prepared: in one pass over a row."""

    def __init__(self, split: native.Split, largest: int, general: Splitter) -> None:
        self.split, self.largest, self.general = split, largest, general

    def __call__(self, x: Tensor | AdaLNInput) -> SplitRows:
        given = x.x if isinstance(x, AdaLNInput) else x
        if not given.numel():
            return self.general(x)
        if given.dtype not in native.DTYPES:
            given = given.float()
        modulation = (x.shift, x.scale, x.eps) if isinstance(x, AdaLNInput) else ()
        aside, left, scales = self.split(given, *modulation)
        main = left if scales is None else QuantizedRows(left, scales, self.largest)
        return SplitRows(main, QuantizedRows(*aside, INT8.integer_max))


class _Multiplier:
    """`Native.linear`, prepared for a weight in panels; `general` does what is rare."""

    def __init__(
        self, weight: Weight, panels: Tensor, bias: Tensor | None, general: Multiplier
    ) -> None:
        self.integers = Linear(panels, weight.integer_scales(), bias, _factors(weight))
        self.floats = FloatLinear(panels, _float_scales(weight), bias)
        self.general = general
        self.adds = weight.integer_scales().shape[1] == 1  # to a product with itself

    def __call__(self, x: QuantizedRows | Tensor, dtype: torch.dtype, epilogue: Epilogue) -> Tensor:
        out = dtype if dtype in native.DTYPES else torch.float32
        if isinstance(x, Tensor):
            if x.dtype not in native.DTYPES:
                return self.general(x, dtype, epilogue)
            exact = out if epilogue is NOTHING else torch.float32
            product = epilogue(self.floats(x, exact))
        elif self.takes(x) and epilogue.addend is None:
            return self.exactly(x, dtype, epilogue)
        elif x.parts == 2 and self.adds and epilogue.addend is None:
            one, other = x.part(0), x.part(1)
            if not self.takes(one):
                return self.general(x, dtype, epilogue)
            side = self.integers, other.integers, other.scales
            return self.exactly(one, dtype, epilogue, side)
        else:
            return self.general(x, dtype, epilogue)
        return product.to(dtype)

    def takes(self, x: QuantizedRows) -> bool:
        is_plain = x.parts == 1 and x.integers.dtype == torch.int8
        return is_plain and self.integers.takes(x.scales)

    def exactly(
        self,
        x: QuantizedRows,
        dtype: torch.dtype,
        epilogue: Epilogue,
        side: tuple[Linear, Tensor, Tensor] | None = None,
    ) -> Tensor:
        out = dtype if dtype in native.DTYPES else torch.float32
        after = epilogue.gelu, epilogue.gate, epilogue.residual
        common = None if x.mean is None else self.floats(x.mean, torch.float32)
        return self.integers(x.integers, x.scales, out, *after, side, common).to(dtype)


class _Both:
    """`Native.added`, both products in one pass over the results."""

    def __init__(self, main: _Multiplier, side: _Multiplier, general: SplitMultiplier) -> None:
        self.main, self.side, self.general = main, side.integers, general

    def __call__(self, x: SplitRows, dtype: torch.dtype, epilogue: Epilogue) -> Tensor:
        if isinstance(x.main, Tensor) or not self.main.takes(x.main):
            return self.general(x, dtype, epilogue)
        side = self.side, x.side.integers, x.side.scales
        return self.main.exactly(x.main, dtype, epilogue, side)


def _by_steps(
    rows: FixedRows, largest: int, x: Tensor | AdaLNInput, steps: Tensor
) -> QuantizedRows:
    given = x.x if isinstance(x, AdaLNInput) else x
    given = given if given.dtype in native.DTYPES else given.float()
    modulation = (x.shift, x.scale, x.eps) if isinstance(x, AdaLNInput) else ()
    return QuantizedRows(*rows(given, steps, *modulation), largest, parts=len(steps))


def _around_means(rows: Rows, largest: int, x: Tensor, mean: Tensor | None) -> QuantizedRows:
    return QuantizedRows(*rows(x, mean=mean), largest, mean=mean)


def _of_vectors(packed: QTensor, bias: Tensor | None, general: Multiplier) -> Multiplier:
    """Prepared where the codes are whole bytes: others are unpacked at each call."""
    codebook, codes = packed.scales.codebook, packed.packed
    if codebook is None or not _has_vectors(packed.spec) or packed.spec.format.bits != 8:
        return general
    scales = packed.spec.load(packed.scales).expand(packed.shape[0], 1)
    product = VectorLinear(codes.view(torch.uint8), codebook, scales, bias)

    def multiply(x: QuantizedRows | Tensor, dtype: torch.dtype, epilogue: Epilogue) -> Tensor:
        if (
            isinstance(x, Tensor)
            and epilogue is NOTHING
            and {x.dtype, dtype} <= native.DTYPES.keys()
        ):
            return product(x, dtype)
        return general(x, dtype, epilogue)

    return multiply


def _panels(packed: QTensor) -> Tensor:
    """In 4 bits where the codes are: measured, panels of 8 bits are not read any quicker."""
    if _in_nibbles(packed.spec):
        return native.pack_codes(packed.codes(), packed.spec.format, packed.scales.choices)
    return native.pack_levels(Weight(packed).integers())


def _has_vectors(spec: Spec) -> bool:
    """Of one scale for a channel or for all."""
    return spec.format.learned and not isinstance(spec.span, int)


def _are_integers(weight: Spec, activation: Spec, columns: int) -> bool:
    """Whether inputs rounded so are multiplied as integers: groups that lie within those of the
    weight."""
    if has_integer_rows(activation) or not _has_groups(activation):
        return has_integer_rows(activation)
    groups = activation.float_groups(columns)
    return groups == 1 or groups % weight.float_groups(columns) == 0


def _has_groups(spec: Spec) -> bool:
    """Whether inputs rounded so are integers in groups of whole lanes."""
    if not isinstance(spec.span, int) or spec.span % native.LANES or not spec.symmetric:
        return False
    known = len(spec.format.options) == 1 and has_rows(spec.format)
    return known and has_groups(spec.span, spec.scale)


def _groups(spec: Spec, stretches: Sequence[float] = ()) -> Groups | None:
    return Groups(spec.span, spec.scale, stretches) if isinstance(spec.span, int) else None


def _takes(spec: Spec, columns: int) -> bool:
    """Whether there are panels for it: groups of whole lanes whose sums fit into int32."""
    width = columns // spec.float_groups(columns)
    return has_integers(spec) and width % native.LANES == 0 and width <= native.most_depth()


def _rests(spec: Spec) -> bool:
    """Whether the codes can be had back from panels: from nibbles, or from integers that no two
    codes of a group give."""
    return _in_nibbles(spec) or (spec.format.is_injective and not spec.format.by_group)


def _in_vectors(spec: Spec, activation: Spec | None) -> bool:
    """Whether panels hold the codes of vectors of integers: for inputs that are integers too."""
    vectors = spec.format.learned and spec.format.columns_per_code == native.VECTOR
    integers = activation is not None and has_integer_rows(activation)
    return vectors and integers and spec.format.exact_in(8)


def _in_nibbles(spec: Spec) -> bool:
    """Whether panels hold the codes themselves, in 4 bits. Factors are multiplied into nibbles for
    whole lanes."""
    fmt = spec.format
    small = spec.symmetric and fmt.bits <= 4 and not (fmt.by_group or fmt.learned)
    whole = isinstance(spec.span, str) or spec.span % native.LANES == 0
    return small and (whole or not spec.scale.factors)


def _factors(weight: Weight) -> Tensor | None:
    """The factors of groups that panels do not have in them: those that hold codes."""
    return weight.factors if _in_nibbles(weight.spec) else None


def _float_scales(weight: Weight) -> Tensor:
    """The scales of a product of floats, where factors are part of the scales of their groups."""
    return weight.integer_scales() if _factors(weight) is None else weight.group_scales()
