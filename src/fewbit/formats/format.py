"""What a code means: a format is an immutable value that owns its levels, codes and ties rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import gcd, isfinite

import torch
from torch import Tensor

from fewbit.formats.scale import SMALLEST, Scales

MOST_COLUMNS = 16  # that one code may stand for


@dataclass(frozen=True)
class Arithmetic:
    """Rounding by arithmetic: a magnitude of `normal` or more keeps so many `mantissa` bits, a
    smaller one becomes a multiple of the format's step; ties go to the even one."""

    mantissa: int
    normal: float


@dataclass(frozen=True)
class Format(ABC):
    """A finite set of real levels, each with a `bits`-wide code.

    Rounding is to the nearest level, beyond the ends to the end, and a value exactly between two
    levels goes to the one with the even code: the rule of IEEE 754, OCP MX and `torch.round`.
    NaN is no level and comes back as some number: whoever rounds sees to it (scales carry it).
    """

    levels: tuple[float, ...] = field(init=False, repr=False, compare=False)
    step: float = field(init=False, repr=False, compare=False)
    _tables: tuple[Tensor, Tensor, Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """`levels`, the distinct finite values, ascending; `step`, the largest number of which all
        are whole multiples; and the tables made from them."""
        values = self.code_values()
        levels = tuple(sorted({v + 0.0 for v in values if abs(v) < float("inf")}))
        first = {v: c for c, v in reversed(list(enumerate(values)))}  # zero is written as +0
        codes = torch.tensor([first[v] for v in levels], device="cpu").to(torch.uint8)
        table = torch.tensor(values, dtype=torch.float32, device="cpu")
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "step", _common_step(levels))
        object.__setattr__(self, "_tables", (table, codes, _boundaries(levels, codes)))

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def bits(self) -> int: ...

    @property
    def options(self) -> tuple[Format, ...]:
        """The formats that a row may have: this one, unless they differ from row to row."""
        return (self,)

    @property
    def learned(self) -> bool:
        """Whether its levels are stored with each matrix, so that no matrix fits it as it is."""
        return False

    def settled(self, codebook: Tensor) -> tuple[Tensor, Tensor]:
        """Learned levels as they are stored, and the unit that they then count."""
        raise NotImplementedError

    @property
    def by_group(self) -> bool:
        """Whether a code means something else in each group, so that scales are part of levels."""
        return False

    @property
    def arithmetic(self) -> Arithmetic | None:
        """How to round without a table, if that is possible."""
        return None

    @property
    def codes_are_levels(self) -> bool:
        """Whether a code is its level as an integer in two's complement."""
        return False

    @property
    def columns_per_code(self) -> int:
        """How many neighbouring columns of a row one code stands for."""
        return 1

    @abstractmethod
    def code_values(self) -> tuple[float, ...]:
        """The value of every code, 0 to 2**bits - 1 (NaN and inf included where they exist)."""

    @cached_property
    def all_finite(self) -> bool:
        """Whether every code is a number."""
        return all(map(isfinite, self.code_values()))

    @cached_property
    def is_injective(self) -> bool:
        """Whether every code has a level of its own; where zero has a sign, two share one."""
        return len(self.levels) == 1 << self.bits

    @property
    def signed(self) -> bool:
        return self.min < 0

    @property
    def max(self) -> float:
        return self.levels[-1]

    @property
    def min(self) -> float:
        return self.levels[0]

    @property
    def zero_scale(self) -> float:
        """The scale of a row of zeros: 1, or the smallest there is where zero is no level."""
        return 1.0 if 0.0 in self.levels else SMALLEST

    @property
    def integer_max(self) -> int:
        """The largest magnitude in units of `step`: how wide an exact integer product must be."""
        return int(max(abs(self.min), self.max) / self.step)

    def exact_in(self, bits: int) -> bool:
        """Whether every level, in units of `step`, fits a signed integer of `bits` bits."""
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        return low <= self.min / self.step and self.max / self.step <= high

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (uint8) to values (float32)."""
        table, _, _ = self._tables_on(codes.device)
        return table[codes.int()]

    def encode(self, values: Tensor) -> Tensor:
        """Values to the codes (uint8) of their nearest levels."""
        _, codes, boundaries = self._tables_on(values.device)
        return codes[torch.bucketize(values.float().contiguous(), boundaries)]

    def round(self, values: Tensor) -> Tensor:
        """Values to their nearest levels (float32)."""
        return self.decode(self.encode(values))

    def beside(self, rows: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of what a matrix of so many rows stores beside codes and scales, by its
        name in `Scales`."""
        return {}

    def unlearned(self, device: torch.device) -> dict[str, Tensor]:
        """What is stored `beside` where nothing was learned from the matrix."""
        return {}

    def complaint(self, scales: Scales) -> str | None:
        """What is wrong with tensors that were stored `beside`."""
        return None

    def for_size(self, rows: int, columns: int) -> Format:
        """What a matrix of that size gets in the place of this format."""
        return self

    def encode_rows(self, units: Tensor, scales: Scales) -> Tensor:
        """Values [rows, columns] in units of their scale to codes [rows, codes of a row]."""
        return self.encode(units)

    def decode_rows(self, codes: Tensor, scales: Scales) -> Tensor:
        """Codes [rows, codes of a row] to levels, float32 [rows, columns]."""
        return self.decode(codes)

    def round_rows(self, units: Tensor, scales: Scales) -> Tensor:
        """Values [rows, columns] in units of their scale to levels."""
        return self.round(units)

    def step_of_rows(self, scales: Scales) -> Tensor | float:
        """The smallest step, [rows, 1] where rows differ."""
        return self.step

    @property
    def boundaries(self) -> list[float]:
        """The largest float32 that still rounds down, for every two neighbouring levels."""
        return self._tables[2].tolist()

    def neighbours(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The levels that a value lies between, itself the lower one; beyond an end twice that."""
        levels = torch.tensor(self.levels, dtype=torch.float32, device=values.device)
        upper = torch.bucketize(values.float().contiguous(), levels, right=True)
        last = len(levels) - 1
        return levels[(upper - 1).clamp(min=0)], levels[upper.clamp(max=last)]

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The value of each code, the code of each level, the boundaries between levels."""
        if device.type == "cpu":
            return self._tables
        return _moved(self, device) if not torch.compiler.is_compiling() else _move(self, device)

    def __str__(self) -> str:
        return self.name


def _common_step(levels: tuple[float, ...]) -> float:
    """Exact, for floats are whole numbers over powers of two; 1 where levels are stored."""
    if not levels:
        return 1.0
    ratios = [level.as_integer_ratio() for level in levels]
    finest = max(below for _, below in ratios)
    return gcd(*(above * (finest // below) for above, below in ratios)) / finest


def _boundaries(levels: tuple[float, ...], codes: Tensor) -> Tensor:
    """The largest float32 that still rounds down, for every two neighbouring levels."""
    values = torch.tensor(levels, dtype=torch.float64, device="cpu")
    middle = ((values[1:] + values[:-1]) / 2).float()
    tie_goes_up = codes[1:] % 2 == 0
    below = torch.nextafter(middle, torch.full_like(middle, -torch.inf))
    return torch.where(tie_goes_up, below, middle)


def _move(fmt: Format, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    table, codes, boundaries = fmt._tables
    return table.to(device), codes.to(device), boundaries.to(device)


_moved = lru_cache(maxsize=256)(_move)
