"""What a code means: a format is an immutable value that owns its levels, codes and ties rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Format(ABC):
    """A finite set of real levels, each with a `bits`-wide code.

    Rounding is to the nearest level, beyond the ends to the end, and a value exactly between two
    levels goes to the one with the even code: the rule of IEEE 754, OCP MX and `torch.round`.
    """

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def bits(self) -> int: ...

    @abstractmethod
    def code_values(self) -> tuple[float, ...]:
        """The value of every code, 0 to 2**bits - 1 (NaN and inf included where they exist)."""

    @property
    def signed(self) -> bool:
        return self.min < 0

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """The distinct finite values, ascending."""
        return tuple(sorted({v + 0.0 for v in self.code_values() if abs(v) < float("inf")}))

    @property
    def max(self) -> float:
        return self.levels[-1]

    @property
    def min(self) -> float:
        return self.levels[0]

    @cached_property
    def step(self) -> float:
        """The smallest positive level: all levels are integer multiples of it."""
        return min(v for v in self.levels if v > 0)

    @cached_property
    def integer_max(self) -> int:
        """The largest magnitude in units of `step`: how wide an exact integer product must be."""
        return int(max(abs(self.min), self.max) / self.step)

    def exact_in(self, bits: int) -> bool:
        """Whether every level, in units of `step`, fits a signed integer of `bits` bits."""
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        return low <= self.min / self.step and self.max / self.step <= high

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (uint8) to values (float32)."""
        return _table(self, codes.device)[codes.int()]

    def encode(self, values: Tensor) -> Tensor:
        """Values to the codes (uint8) of their nearest levels."""
        level = torch.bucketize(values.float(), _boundaries(self, values.device))
        return _level_codes(self, values.device)[level]

    def round(self, values: Tensor) -> Tensor:
        """Values to their nearest levels (float32)."""
        return self.decode(self.encode(values))

    def __str__(self) -> str:
        return self.name


@lru_cache(maxsize=256)
def _table(fmt: Format, device: torch.device) -> Tensor:
    return torch.tensor(fmt.code_values(), dtype=torch.float32, device=device)


@lru_cache(maxsize=256)
def _level_codes(fmt: Format, device: torch.device) -> Tensor:
    """The code of each level; zero is written as +0."""
    first = {v: c for c, v in reversed(list(enumerate(fmt.code_values())))}
    return torch.tensor([first[v] for v in fmt.levels], dtype=torch.uint8, device=device)


@lru_cache(maxsize=256)
def _boundaries(fmt: Format, device: torch.device) -> Tensor:
    """The largest float32 that still rounds down, for every two neighbouring levels."""
    levels = torch.tensor(fmt.levels, dtype=torch.float64)
    middle = ((levels[1:] + levels[:-1]) / 2).float()
    codes = _level_codes(fmt, torch.device("cpu"))
    tie_goes_up = codes[1:] % 2 == 0
    below = torch.nextafter(middle, torch.tensor(-torch.inf))
    return torch.where(tie_goes_up, below, middle).to(device)
