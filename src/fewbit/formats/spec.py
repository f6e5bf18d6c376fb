"""What one matrix is stored as: a format, the span of one scale, and how the scale is kept.

A matrix has rows and columns. A row is an output channel of a weight or a token of an activation;
columns are the input features in both, so one vocabulary serves both sides of a product.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from fewbit.errors import BadArgument
from fewbit.formats.format import MOST_COLUMNS, Format
from fewbit.formats.minifloat import Minifloat
from fewbit.formats.names import format_named, formats
from fewbit.formats.pack import packed_width
from fewbit.formats.scale import (
    E4M3_PER_ROW,
    E4M3_PER_TENSOR,
    E8M0,
    FP32,
    INT8_END,
    SCALES,
    TABLE,
    ScaleFormat,
    Scales,
)


@dataclass(frozen=True)
class Spec:
    """Unsigned formats are asymmetric: they carry a zero point, value = (level - zero) * scale, or
    beside scales that have them a minimum, value = level * scale + minimum."""

    format: Format
    span: str | int = "row"  # one scale per "tensor", per "row", or per that many columns
    scale: ScaleFormat = FP32

    def __post_init__(self) -> None:
        """Integer factors are as large as the levels leave room for."""
        self._refuse_half_a_table()
        if not self.scale.factors:
            return
        narrow = self.format.exact_in(8) and len(self.format.options) == 1
        scale = self.scale.beside(self.format.integer_max if narrow else INT8_END)
        object.__setattr__(self, "scale", scale)
        if scale.factors < 2 or self.span == "tensor":
            raise BadArgument(
                f"{self.format}/{self.span} has no integer factors: groups of a row have them, "
                "where twice the largest level, in steps of its one format, is at most 127"
            )

    def _refuse_half_a_table(self) -> None:
        whole = self.scale is TABLE and self.span != "tensor"
        if self.format.by_group != whole or (self.scale is TABLE and not whole):
            raise BadArgument(
                f"{self} is no format: lut16 has the scale {TABLE.name}, of groups or of rows, and "
                "no other format has it"
            )

    def __str__(self) -> str:
        span = f"g{self.span}" if isinstance(self.span, int) else self.span
        return f"{self.format}/{span}/{self.scale.name}"

    @classmethod
    @lru_cache
    def parse(cls, text: str) -> Spec:
        """The inverse of `str`: format/span/scale, as in `e2m1/row/fp32` or `int4/g128/fp16`."""
        match = re.fullmatch(r"([\w|]+)/(?:(tensor|row)|g([1-9]\d*))/(\w+)", text)
        fmt = format_named(match[1]) if match else None
        if not match or fmt is None or match[4] not in SCALES:
            raise BadArgument(
                f"not a number format: {text!r}; it is FORMAT/SPAN/SCALE with FORMAT one of "
                f"{', '.join(formats())}, lut16 (a table), vqKxD (a codebook), SPAN one of tensor, "
                f"row, gN, SCALE one of {', '.join(SCALES)}"
            )
        return cls(fmt, match[2] or int(match[3]), SCALES[match[4]])

    @property
    def symmetric(self) -> bool:
        return self.format.signed

    @property
    def has_minima(self) -> bool:
        return self.scale.has_minima and not self.symmetric

    @property
    def one_group(self) -> Spec:
        """For a part of a matrix that lies within one group: a scale per row."""
        return replace(self, span="row")

    def groups(self, columns: int) -> int:
        """How many scales a row of `columns` has."""
        self.codes(columns)
        if not isinstance(self.span, int):
            return 1
        if columns % self.span:
            raise BadArgument(
                f"a group of {self.span} does not divide {columns} columns; "
                f"groups that do: {', '.join(map(str, _divisors(columns)))}"
            )
        return columns // self.span

    @property
    def float_group(self) -> int | None:
        """How many columns share a float scale, once integer factors are multiplied into levels;
        None for all."""
        return None if self.scale.by_row or isinstance(self.span, str) else self.span

    def float_groups(self, columns: int) -> int:
        """How many float scales a row then has."""
        return 1 if self.float_group is None else self.groups(columns)

    @property
    def integer_max(self) -> int:
        """The largest magnitude of an integer that float scales are multiplied with."""
        return self.format.integer_max * max(self.scale.factors, 1)

    def codes(self, columns: int) -> int:
        """How many codes a row of `columns` has."""
        each = self.format.columns_per_code
        if columns % each:
            divisors = ", ".join(str(n) for n in range(1, MOST_COLUMNS + 1) if columns % n == 0)
            raise BadArgument(
                f"vectors of {each} do not divide {columns} columns; vectors that do: {divisors}"
            )
        return columns // each

    def fit(self, matrix: Tensor, outer: Tensor | None = None) -> Scales:
        """The scales at which nothing is clipped (but for the rounding of the scale itself), under
        an outer scale of their own if none is given."""
        if self.format.learned:
            raise BadArgument(f"{self} has no scales to fit: its levels must be learned")
        grouped = self._grouped(matrix.float())
        if not self.symmetric:
            return self._fit_asymmetric(grouped, outer)
        absmax = self._reduce(grouped.abs(), "amax")
        return self.store(self.scale_of(absmax), outer)

    def scale_of(self, absmax: Tensor) -> Tensor:
        """The scale at which the largest level lies on `absmax`."""
        return self.scale.from_absmax(absmax, self.format.max, self.format.zero_scale)

    def ends(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Of the range that an asymmetric grid spans for values between these."""
        return (low, high) if self.has_minima else (low.clamp(max=0), high.clamp(min=0))

    def store(self, scale: Tensor, outer: Tensor | None = None) -> Scales:
        """Float scales as this spec keeps them; one that is not finite becomes NaN, and with it
        all values it spans, so that a non-finite input never looks like a number."""
        scale = scale.masked_fill(scale.isinf(), torch.nan)
        if outer is None:
            outer = self.scale.outer_scale(scale)
        beside = self.format.unlearned(scale.device)
        return Scales(self.scale.store(scale, outer), outer, **beside)

    def encode(self, matrix: Tensor, scales: Scales) -> Tensor:
        """Values [rows, columns] to codes: the one definition of rounding."""
        return self.format.encode_rows(self._units(matrix, scales).flatten(1), scales)

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        """Codes [rows, codes of a row] to float32 values [rows, columns]."""
        levels = self.format.decode_rows(codes, scales)
        return self._values(self._grouped(levels), scales).view(levels.shape)

    def round(self, matrix: Tensor, scales: Scales | None = None) -> Tensor:
        """Values to what they become when stored: encode, then decode, without making codes."""
        scales = scales or self.fit(matrix)
        units = self._units(matrix, scales)
        levels = self.format.round_rows(units.flatten(1), scales).view(units.shape)
        return self._values(levels, scales).view(matrix.shape)

    def neighbours(self, matrix: Tensor, scales: Scales) -> tuple[Tensor, Tensor]:
        """The two values that each may become when stored, the lower one first."""
        below, above = self.format.neighbours(self._units(matrix, scales))
        return (
            self._values(below, scales).view(matrix.shape),
            self._values(above, scales).view(matrix.shape),
        )

    def load(self, scales: Scales) -> Tensor:
        """Stored scales to float32."""
        return self.scale.load(scales.stored, scales.outer)

    def bytes(self, rows: int, columns: int) -> int:
        """The arithmetic of a packed matrix: codes, and all that gives them their values."""
        codes = rows * packed_width(self.codes(columns), self.format.bits)
        count = math.prod(self._scales_shape(rows, columns))
        outer = self._outer_rows(rows)
        zeros = 0 if self.symmetric else count * self._zeros_dtype.itemsize
        beside = sum(
            math.prod(s) * dtype.itemsize for s, dtype in self.format.beside(rows).values()
        )
        return codes + count * self.scale.dtype.itemsize + 4 * outer + zeros + beside

    def empty_scales(self, rows: int, columns: int) -> Scales:
        """Scales of the right shapes and dtypes with nothing in them."""
        shape, outer_rows = self._scales_shape(rows, columns), self._outer_rows(rows)
        return Scales(
            torch.empty(shape, dtype=self.scale.dtype),
            torch.empty(outer_rows, 1) if outer_rows else None,
            None if self.symmetric else torch.empty(shape, dtype=self._zeros_dtype),
            **{
                name: torch.empty(shape, dtype=dtype)
                for name, (shape, dtype) in self.format.beside(rows).items()
            },
        )

    @property
    def _zeros_dtype(self) -> torch.dtype:
        return torch.float16 if self.has_minima else torch.uint8

    def _units(self, matrix: Tensor, scales: Scales) -> Tensor:
        """[rows, groups, columns], in units of the scale and counted from the zero point."""
        grouped, zeros = self._grouped(matrix.float()), scales.zeros
        if zeros is not None and self.has_minima:
            grouped = grouped - zeros[..., None].float()
        units = grouped * self.load(scales).reciprocal()[..., None]
        return units if zeros is None or self.has_minima else units + zeros[..., None]

    def _values(self, levels: Tensor, scales: Scales) -> Tensor:
        """The opposite, of rounded units."""
        scale = self.load(scales)[..., None]
        if scales.zeros is None:
            return levels * scale
        zeros = scales.zeros[..., None].float()
        return levels * scale + zeros if self.has_minima else (levels - zeros) * scale

    def _fit_asymmetric(self, grouped: Tensor, outer: Tensor | None) -> Scales:
        """A range with a zero point holds 0, so that 0 is exact; both ends are met within half a
        step."""
        low, high = self.ends(self._reduce(grouped, "amin"), self._reduce(grouped, "amax"))
        scales = self.store(self.scale_of(high - low), outer)
        if self.has_minima:
            return Scales(scales.stored, scales.outer, low.to(self._zeros_dtype))
        zeros = self.format.encode(-low * self.load(scales).reciprocal())
        return Scales(scales.stored, scales.outer, zeros)

    def _scales_shape(self, rows: int, columns: int) -> tuple[int, int]:
        return (1, 1) if self.span == "tensor" else (rows, self.groups(columns))

    def _outer_rows(self, rows: int) -> int:
        if self.scale.outer is None:
            return 0
        return 1 if "tensor" in (self.scale.outer, self.span) else rows

    def _grouped(self, matrix: Tensor) -> Tensor:
        rows, columns = matrix.shape
        groups = self.groups(columns)
        return matrix.reshape(rows, groups, columns // groups)

    def _reduce(self, grouped: Tensor, how: str) -> Tensor:
        """[rows, groups, columns] to one number per scale."""
        per_group = getattr(torch, how)(grouped, -1)
        return getattr(torch, how)(per_group).view(1, 1) if self.span == "tensor" else per_group


def _divisors(n: int) -> list[int]:
    usual = (8, 16, 32, 64, 72, 96, 128, 192, 256, 384, 512)
    return sorted({d for d in (*usual, n) if n % d == 0})


_E2M1 = Minifloat(2, 1)
MXFP4 = Spec(_E2M1, 32, E8M0)
NVFP4 = Spec(_E2M1, 16, E4M3_PER_TENSOR)
NVFP4_TOKEN = Spec(_E2M1, 16, E4M3_PER_ROW)
