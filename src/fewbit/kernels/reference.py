"""The definition of every run-time operation in plain torch.

A backend inherits it and replaces what it has a faster copy of: the integers of inputs are the same
bits, and products agree to 1e-6 of the largest, for only their float32 roundings differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from fewbit.formats import FORMATS, Format, QTensor, Spec
from fewbit.formats.scale import FP32
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
)

TILE = 1 << 20  # weights of a codebook that exist decoded at a time

INT8 = FORMATS["int8"]

_EXACT_FLOAT32 = 1 << 24


Coder = Callable[[Tensor | AdaLNInput], QuantizedRows | Tensor]  # an input to the rows of a product
Multiplier = Callable[[QuantizedRows | Tensor, torch.dtype, Epilogue], Tensor]  # rows to the result
Splitter = Callable[[Tensor | AdaLNInput], SplitRows]
FixedCoder = Callable[[Tensor | AdaLNInput, Tensor], QuantizedRows]  # an input and its steps
Grouper = Callable[[Tensor, Tensor | None], QuantizedRows]  # rows, and the means of their images
SplitMultiplier = Callable[[SplitRows, torch.dtype, Epilogue], Tensor]


class Reference:
    name = "reference"
    home: str | None = None  # the one type of device it is for

    def why_not(self, device: torch.device) -> str | None:
        """Why this backend cannot compute there; None if it can."""
        return None

    def path(self, weight: Spec, activation: Spec | None, shape: tuple[int, int]) -> str:
        """How a layer of that kind is computed, in words."""
        return "definition: float32 products of unpacked weights"

    def accepts_codes(self, spec: Spec) -> bool:
        """Whether inputs rounded by `spec` reach the product as `QuantizedRows`, not as float32."""
        return has_integer_rows(spec)

    def multiplies_codes(self, weight: Spec) -> bool:
        return has_integers(weight)

    def rotate(self, x: Tensor, rotation: Rotation) -> Tensor:
        """x [rows, columns] rotated. The order of the sums is part of the definition, float32 of
        the input: one matrix after another, each summed over its rows upwards."""
        refuse_other_width(x, len(rotation.signs))
        rotated, inner = x.to(_wide(x)), rotation.order
        rotated = rotated if rotation.smooth is None else rotated / rotation.smooth
        rotated = rotated * rotation.signs
        for matrix in rotation.matrices:
            inner //= len(matrix)
            tokens = rotated.reshape(-1, len(matrix), 1, inner)
            terms = tokens * matrix.to(rotated)[..., None]  # [..., rows, columns, inner]
            rotated = terms[:, 0]
            for k in range(1, len(matrix)):
                rotated = rotated + terms[:, k]
        return (rotated * rotation.scale).reshape(x.shape)

    def modulate(self, given: AdaLNInput) -> Tensor:
        """float32 [images, tokens, columns]. Mean and deviation are taken in double precision, so
        that the order of their sums does not matter."""
        x = given.x.float()
        centred = x - x.double().mean(-1, keepdim=True).float()
        variance = centred.double().square().mean(-1, keepdim=True)
        normal = centred * (variance + given.eps).sqrt().reciprocal().float()
        return normal * (1 + given.scale[:, None]) + given.shift[:, None]

    def tokens(self, x: Tensor | AdaLNInput) -> Tensor:
        """x, modulated if it is yet to be."""
        return self.modulate(x) if isinstance(x, AdaLNInput) else x

    def rows(self, x: Tensor | AdaLNInput) -> Tensor:
        """[rows, columns]"""
        return self.tokens(x).reshape(-1, x.shape[-1])

    def coder(self, spec: Spec, rotation: Rotation | None) -> Coder:
        """`quantize`, bound to a spec that is accepted and a rotation."""
        return partial(self.quantize, fmt=spec.format, rotation=rotation)

    def splitter(
        self, directions: Tensor, rotation: Rotation | None, spec: Spec | None = None
    ) -> Splitter:
        """`split`, bound to directions, a rotation and a spec that is accepted."""
        fmt = None if spec is None else spec.format
        return partial(self.split, directions=directions, rotation=rotation, fmt=fmt)

    def grouper(self, spec: Spec, stretches: Sequence[float]) -> Grouper | None:
        """What rounds rows around means in groups, the scale of each stretched by what loses least;
        None where such inputs are multiplied as float32."""
        return None

    def multiplier(self, weight: Weight, bias: Tensor | None) -> Multiplier:
        """`linear`, bound to a weight and a bias."""
        return partial(_multiply, self, weight, bias)

    def added(self, main: Multiplier, side: Multiplier) -> SplitMultiplier:
        """What multiplies both parts of an input; the side is added first in the epilogue."""
        return partial(_added, main, side)

    def quantize(
        self, x: Tensor | AdaLNInput, fmt: Format, rotation: Rotation | None = None
    ) -> QuantizedRows:
        """Each row of x [..., columns] to the nearest levels at the scale that clips nothing."""
        x = self.rows(x)
        x = x.float() if rotation is None else self.rotate(x, rotation).float()
        largest = x.abs().amax(1, keepdim=True) if x.numel() else x.new_ones(len(x), 1)
        scales = FP32.from_absmax(largest, fmt.max, fmt.zero_scale)
        scales = scales.masked_fill(scales.isinf(), torch.nan)
        levels = fmt.round(x * scales.reciprocal()) / fmt.step
        integers = levels.masked_fill(scales.isnan(), 0).to(torch.int8)
        return QuantizedRows(integers, scales * fmt.step, fmt.integer_max)

    def split(
        self,
        x: Tensor | AdaLNInput,
        directions: Tensor,
        rotation: Rotation | None = None,
        fmt: Format | None = None,
    ) -> SplitRows:
        """Rows as their components along `directions`, int8 [r, columns], and a rest, which is
        rounded to `fmt` if there is one. The components are taken of rows in int8, and the rest
        with the components as they were rounded, so all sums are exact and no rounding is lost."""
        rows = self.rows(x)
        rows = rows.float() if rotation is None else self.rotate(rows, rotation).float()
        refuse_other_width(rows, directions.shape[1])
        coarse, squares = self.quantize(rows, INT8), directions.double().square().sum(1).float()
        along = self.sums(coarse.integers, directions).float() * coarse.scales
        side = self.quantize(along / squares, INT8)
        rest = rows - self.sums(side.integers, directions.T).float() * side.scales
        return SplitRows(rest if fmt is None else self.quantize(rest, fmt), side)

    def fixed(
        self, fmt: Format, rotation: Rotation | None, regions: int = 1, whole: int = 0
    ) -> FixedCoder | None:
        """What rotates an input and rounds it by steps [regions, images] that it is given, where a
        backend does so in one pass; of two regions, the first columns, `whole`, have only the upper
        one."""
        return None

    def sums(self, rows: Tensor, others: Tensor) -> Tensor:
        """rows · othersᵀ of int8, exactly, in whatever type holds it."""
        wide = _exact(rows.shape[1] << 14)
        return rows.to(wide) @ others.to(wide).T

    def linear(
        self,
        x: QuantizedRows | Tensor,
        weight: Weight,
        bias: Tensor | None,
        dtype: torch.dtype,
        epilogue: Epilogue = NOTHING,
    ) -> Tensor:
        """after(x · weightᵀ + bias), [rows, out]. Integers are multiplied and summed as such."""
        refuse_other_width(x.integers if isinstance(x, QuantizedRows) else x, weight.packed.columns)
        bias = None if bias is None else bias.float()
        exact = dtype if epilogue is NOTHING else torch.float32
        exactly = isinstance(x, QuantizedRows) and x.is_scaled_by_row
        if exactly and isinstance(x, QuantizedRows) and self.multiplies_codes(weight.spec):
            if x.parts == 1:
                return self.integer_linear(x, weight, bias, dtype, epilogue)
            each = replace(x, parts=1)
            product = x.summed(self.integer_linear(each, weight, None, torch.float32))
            product = product if bias is None else product.add_(bias)
        else:
            given = x if isinstance(x, Tensor) else x.values()
            product = (
                self.codebook_linear(given, weight.packed, bias, exact)
                if weight.spec.format.learned
                else self.float_linear(given, weight, bias, exact)
            )
        return epilogue(product).to(dtype)

    def integer_linear(
        self,
        x: QuantizedRows,
        weight: Weight,
        bias: Tensor | None,
        dtype: torch.dtype,
        epilogue: Epilogue = NOTHING,
    ) -> Tensor:
        """Exact sums, one for each group of columns, then the scales in float32."""
        integers, scales = weight.integers(), weight.integer_scales()
        products = x.scales.new_zeros(len(x.integers), len(integers))
        width = integers.shape[1] // scales.shape[1]
        wide = _exact(width * weight.spec.integer_max * x.largest)
        for group, scale in enumerate(scales.unbind(1)):
            columns = slice(group * width, (group + 1) * width)
            sums = x.integers[:, columns].to(wide) @ integers[:, columns].to(wide).T
            if scales.shape[1] == 1:
                products = (sums.float() * x.scales) * scale
            else:
                products = products + sums.float() * scale
        products = products if scales.shape[1] == 1 else products * x.scales
        return epilogue(products if bias is None else products + bias).to(dtype)

    def float_linear(
        self, x: Tensor, weight: Weight, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Of inputs that are not rounded, or not to integers: float32 products and sums."""
        return linear(x.float(), weight.packed.dequantize(), bias).to(dtype)

    def codebook_linear(
        self, x: Tensor, packed: QTensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """As `float_linear`, some output channels after the others: only the packed codes and the
        codebook rest in memory. A bfloat16 input meets a codebook in bfloat16."""
        if x.dtype == torch.bfloat16:
            packed = packed.with_codebook_in(x.dtype)
        rows, columns = packed.shape
        step, given = max(TILE // columns, 1), x.float()
        parts = [
            linear(given, packed.rows(slice(start, start + step)).dequantize())
            for start in range(0, rows, step)
        ]
        product = torch.cat(parts, -1)
        return (product if bias is None else product + bias).to(dtype)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

    def rounded_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        rounding: OperandRounding,
    ) -> Tensor | None:
        """`attention` of operands that are rounded, as q; None where there is no quick one."""
        return None

    def recorded(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A function of contiguous tensors and of what never changes, perhaps as one operation."""
        return function

    def gelu(self, x: Tensor) -> Tensor:
        return gelu(x, approximate="tanh")

    def layout(self, packed: QTensor, activation: Spec | None, fast: bool | None) -> Tensor | None:
        """The backend's own layout of the codes for inputs rounded so, None where it works on the
        packed bytes. `fast` says whether it may take more memory than those; None leaves that to
        the backend."""
        return None

    def codes_in(self, layout: Tensor, stored: QTensor) -> Tensor:
        """The packed bytes that `layout` was made of, where it `replaces_codes`; `stored` is all
        else of the matrix."""
        raise NotImplementedError

    def replaces_codes(self, spec: Spec, activation: Spec | None) -> bool:
        """Whether a layout for inputs rounded so holds the codes bit for bit, and stands in for
        them."""
        return False


def _added(
    main: Multiplier, side: Multiplier, x: SplitRows, dtype: torch.dtype, epilogue: Epilogue
) -> Tensor:
    return main(x.main, dtype, epilogue.plus(side(x.side, torch.float32, NOTHING)))


def _multiply(
    backend: Reference,
    weight: Weight,
    bias: Tensor | None,
    x: QuantizedRows | Tensor,
    dtype: torch.dtype,
    epilogue: Epilogue,
) -> Tensor:
    return backend.linear(x, weight, bias, dtype, epilogue)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _exact(largest_sum: int) -> torch.dtype:
    """The narrowest float in which every sum of integers is exact, whatever its order."""
    return torch.float32 if largest_sum <= _EXACT_FLOAT32 else torch.float64
