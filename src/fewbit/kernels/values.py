"""What run-time operations hand to one another: rows as small integers, rotations, weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import gelu

from fewbit.errors import BadArgument
from fewbit.formats import Format, QTensor, Spec


@dataclass(frozen=True)
class QuantizedRows:
    """Integer codes and one float32 scale per row, or per group of its columns. A row or group with
    NaN or inf has the scale NaN and the codes 0.

    The codes are int8, in units of the format's smallest step; or where those would be wider, and
    a backend multiplies such, the levels themselves in bfloat16 or E4M3, both exactly.
    """

    integers: Tensor  # [rows, columns]
    scales: Tensor  # float32 [rows, 1] or [rows, groups]
    largest: int  # magnitude in units of the smallest step: how wide an exact sum must be
    parts: int = 1  # an input may be a sum: the rows of the first part, then of the second
    mean: Tensor | None = None  # float32 [images, columns], which the rows of an image lack

    @property
    def is_scaled_by_row(self) -> bool:
        return self.scales.shape[1] == 1 and self.mean is None

    def values(self) -> Tensor:
        """What the integers stand for, float32 [rows, columns]."""
        scaled = _grouped(self.integers.float(), self.scales) * self.scales[..., None]
        rows = self.summed(scaled.flatten(1))
        if self.mean is None:
            return rows
        return (rows.unflatten(0, (len(self.mean), -1)) + self.mean[:, None]).flatten(0, 1)

    def part(self, number: int) -> QuantizedRows:
        """One of the parts, alone."""
        rows = len(self.integers) // self.parts
        own = slice(number * rows, (number + 1) * rows)
        return replace(self, integers=self.integers[own], scales=self.scales[own], parts=1)

    def summed(self, rows: Tensor) -> Tensor:
        return rows if self.parts == 1 else rows.unflatten(0, (self.parts, -1)).sum(0)


@dataclass(frozen=True)
class SplitRows:
    """An input in two parts that are multiplied apart and added: its components along a few
    directions, in int8, and what they leave of it."""

    main: QuantizedRows | Tensor  # [rows, columns]
    side: QuantizedRows  # [rows, directions]

    def values(self, directions: Tensor) -> Tensor:
        """What both parts stand for together, float32 [rows, columns]."""
        main = self.main.values() if isinstance(self.main, QuantizedRows) else self.main
        return main + self.side.values() @ directions.float()


@dataclass(frozen=True)
class AdaLNInput:
    """Tokens before an adaptive layer norm, and the vectors that it shifts and scales them with:
    LayerNorm(x) * (1 + scale) + shift, in float32."""

    x: Tensor  # [images, tokens, columns]
    shift: Tensor  # float32 [images, columns]
    scale: Tensor  # float32 [images, columns]
    eps: float

    @property
    def shape(self) -> torch.Size:
        return self.x.shape


@dataclass(frozen=True)
class OperandRounding:
    """How attention rounds what it multiplies: queries, keys and values to a format, and its
    weights, if at all, to the two regions of `fewbit.activations.multi_region`."""

    format: Format
    steps: Tensor | None  # float32 [3, images or 1, heads]; None: each row by its largest magnitude
    regions: Tensor | None  # float32 [images or 1, 8]


@dataclass(frozen=True)
class Epilogue:
    """The float32 operations on a product before it is rounded to its dtype: product + addend, of
    that GELU by its tanh, or residual + gate * that."""

    gelu: bool = False
    gate: Tensor | None = None  # float32 [images, columns]
    residual: Tensor | None = None  # [rows, columns], as many rows of each image
    addend: Tensor | None = None  # float32 [rows, columns], a part of the product made before

    @property
    def tokens(self) -> int | None:
        """Rows that share a gate."""
        if self.gate is None or self.residual is None:
            return None
        return len(self.residual) // len(self.gate)

    def plus(self, addend: Tensor) -> Epilogue:
        """The same of a product that lacks `addend`."""
        return Epilogue(self.gelu, self.gate, self.residual, addend)

    def __call__(self, product: Tensor, first: int = 0) -> Tensor:
        """Of the rows from `first` on, which are whole images or part of one."""
        product = self.complete(product, first)
        return gelu(product, approximate="tanh") if self.gelu else self.gated(product, first)

    def complete(self, product: Tensor, first: int = 0) -> Tensor:
        if self.addend is None:
            return product
        return product + self.addend[first : first + len(product)]

    def gated(self, product: Tensor, first: int = 0) -> Tensor:
        if self.gate is None or self.residual is None:
            return product
        end, tokens = first + len(product), len(self.residual) // len(self.gate)
        gates = self.gate[first // tokens : -(-end // tokens), None]
        rows = product.view(len(gates), -1, product.shape[1])
        residual = self.residual[first:end].view(rows.shape)
        return (residual.float() + gates * rows).view(product.shape)


NOTHING = Epilogue()


@dataclass(frozen=True)
class Rotation:
    """x -> (x / smooth * signs) · (the Kronecker product of `matrices`) / √n for every n columns.
    Without matrices it only smooths."""

    signs: Tensor  # int8 ±1 [columns]
    matrices: tuple[Tensor, ...]  # int8 ±1, square
    smooth: Tensor | None = None  # float32 [columns], positive

    @property
    def order(self) -> int:
        """n, which is the product of their orders."""
        return prod([len(matrix) for matrix in self.matrices])

    @property
    def scale(self) -> float:
        return float(self.order**-0.5)


@dataclass(frozen=True)
class Weight:
    """A packed matrix and, where a backend has made one, its own layout of the same codes."""

    packed: QTensor
    layout: Tensor | None = None
    kept_scales: Tensor | None = None  # `integer_scales`, made beforehand

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + (0 if self.layout is None else self.layout.nbytes)

    @property
    def spec(self) -> Spec:
        return self.packed.spec

    def integer_scales(self) -> Tensor:
        """float32 [rows, groups]: what `integers` are multiplied with."""
        if self.kept_scales is not None:
            return self.kept_scales
        rows, columns = self.packed.shape
        scales = self._split()[1] * self._step()
        return scales.expand(rows, self.spec.float_groups(columns))

    def group_scales(self) -> Tensor:
        """float32 [rows, groups]: what levels in steps are multiplied with, factors included."""
        rows, columns = self.packed.shape
        scales = self.spec.load(self.packed.scales) * self._step()
        return scales.expand(rows, self.spec.groups(columns))

    @property
    def factors(self) -> Tensor | None:
        """uint8 [rows, groups], where the scales of groups are integers."""
        return self._split()[0]

    def integers(self) -> Tensor:
        """Levels as int8 [rows, columns], in units of their format's smallest step, counted from
        the zero point where there is one and times the factor of their group."""
        packed, zeros = self.packed, self.packed.scales.zeros
        levels = self.spec.format.decode_rows(packed.codes(), packed.scales) / self._step()
        if zeros is not None:
            levels = (_grouped(levels, zeros) - zeros[..., None]).flatten(1)
        return self.times_factors(levels).to(torch.int8)

    def codes_of(self, integers: Tensor) -> Tensor:
        """The codes that gave such `integers`, uint8 [rows, codes of a row]."""
        levels, (zeros, factors) = integers.float(), (self.packed.scales.zeros, self.factors)
        if factors is not None:
            levels = (_grouped(levels, factors) / factors[..., None]).flatten(1)
        if zeros is not None:
            levels = (_grouped(levels, zeros) + zeros[..., None]).flatten(1)
        return self.spec.format.encode_rows(levels * self._step(), self.packed.scales)

    def times_factors(self, levels: Tensor) -> Tensor:
        """Levels [rows, columns] times the integer factors of their groups, if those have any."""
        factors = self.factors
        if factors is None:
            return levels
        return (_grouped(levels, factors) * factors.to(levels.dtype)[..., None]).flatten(1)

    def _split(self) -> tuple[Tensor | None, Tensor]:
        """Integer factors and float scales."""
        scales = self.packed.scales
        return self.spec.scale.split(scales.stored, scales.outer)

    def _step(self) -> Tensor | float:
        """The smallest step, of each row where formats differ."""
        return self.spec.format.step_of_rows(self.packed.scales)


def _grouped(levels: Tensor, groups: Tensor) -> Tensor:
    return levels.unflatten(1, (groups.shape[1], -1))


def refuse_other_width(x: Tensor, columns: int) -> None:
    """The one error of all layers and backends for an input that does not fit."""
    if x.shape[-1:] != (columns,):
        raise BadArgument(
            f"an input {list(x.shape)} meets {columns} columns; its last dimension must be "
            f"{columns}"
        )


def has_integer_rows(spec: Spec) -> bool:
    """Whether an input rounded by `spec` is handed on as integers."""
    fmt = spec.format
    return scaled_by_row(spec) and len(fmt.options) == 1 and fmt.exact_in(8)


def scaled_by_row(spec: Spec) -> bool:
    return spec.span in ("row", "tensor") and spec.scale.name == "fp32" and spec.symmetric


def has_integers(spec: Spec) -> bool:
    """Whether the levels of a weight, counted from its zero point, are int8."""
    return spec.format.exact_in(8) and not spec.has_minima
