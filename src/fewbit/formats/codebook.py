"""Codebooks: one code stands for several neighbouring columns of a row, by a learned vector."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewbit.errors import BadArgument
from fewbit.formats.format import MOST_COLUMNS, Format
from fewbit.formats.scale import INT8_END, SMALLEST, Scales

MOST_ENTRIES = 256
CHUNK = 1 << 18  # distances at a time: they stay in the cache
_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # entries that are one number: quick


@dataclass(frozen=True)
class Codebook(Format):
    """`vqKxD`: K vectors of D values, stored as float16 [K, D] with each matrix; `vqKxDi8`: of D
    integers, as int8 [K, D].

    A vector of a matrix becomes the nearest entry, the first of equally near ones.
    """

    entries: int
    columns: int
    integers: bool = False

    def __post_init__(self) -> None:
        power_of_two = self.entries & (self.entries - 1) == 0
        if not (power_of_two and 2 <= self.entries <= MOST_ENTRIES):
            raise BadArgument(
                f"a codebook cannot have {self.entries} entries; allowed: powers of two from 2 to "
                f"{MOST_ENTRIES}"
            )
        if not 1 <= self.columns <= MOST_COLUMNS:
            raise BadArgument(
                f"a codebook cannot have entries of {self.columns} values; allowed: 1 to "
                f"{MOST_COLUMNS}"
            )
        super().__post_init__()

    @property
    def name(self) -> str:
        return f"vq{self.entries}x{self.columns}{'i8' if self.integers else ''}"

    @property
    def bits(self) -> int:
        return self.entries.bit_length() - 1

    @property
    def columns_per_code(self) -> int:
        return self.columns

    @property
    def signed(self) -> bool:
        return True

    @property
    def learned(self) -> bool:
        return True

    def beside(self, rows: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        dtype = torch.int8 if self.integers else torch.float16
        return {"codebook": ((self.entries, self.columns), dtype)}

    def complaint(self, scales: Scales) -> str | None:
        assert scales.codebook is not None
        if bool(scales.codebook.isfinite().all()):
            return None
        return "codebook holds an entry that is not finite"

    def code_values(self) -> tuple[float, ...]:
        """None of its own: what a code means is stored beside it."""
        return ()

    def exact_in(self, bits: int) -> bool:
        return self.integers and bits >= 8

    @property
    def integer_max(self) -> int:
        return INT8_END

    def settled(self, codebook: Tensor) -> tuple[Tensor, Tensor]:
        if not self.integers:
            return codebook.half(), codebook.new_ones(())
        unit = (codebook.abs().amax() / INT8_END).clamp(min=SMALLEST)
        return torch.round(codebook / unit).to(torch.int8), unit

    def encode_rows(self, units: Tensor, scales: Scales) -> Tensor:
        """Of every vector its nearest entry."""
        assert scales.codebook is not None
        codes = nearest(units.reshape(-1, self.columns), scales.codebook.float())[0]
        return codes.to(torch.uint8).view(len(units), -1)

    def decode_rows(self, codes: Tensor, scales: Scales) -> Tensor:
        entries = scales.codebook
        assert entries is not None
        whole = _WHOLE.get(entries.element_size() * self.columns)
        if whole is None or entries.requires_grad:
            return entries.float()[codes.int()].flatten(1)
        found = entries.contiguous().view(whole)[:, 0].index_select(0, codes.flatten().int())
        return found.view(entries.dtype).view(len(codes), -1).float()

    def round_rows(self, units: Tensor, scales: Scales) -> Tensor:
        return self.decode_rows(self.encode_rows(units, scales), scales)

    def for_size(self, rows: int, columns: int) -> Codebook:
        """With entries for at least four vectors each, two at the least: what a small matrix gets,
        whose own vectors would otherwise be fewer bytes than their codebook."""
        each = rows * (columns // self.columns) // 4
        return replace(self, entries=min(self.entries, 1 << max(each.bit_length() - 1, 1)))


def nearest(
    vectors: Tensor, entries: Tensor, importance: Tensor | None = None, count: int = 1
) -> tuple[Tensor, ...]:
    """int64 [n] of the nearest entry of each vector, of the second nearest and so on.

    ‖v - c‖² = ‖v‖² - 2v·c + ‖c‖², weighted by `importance` [n, columns] where that is given, one
    matmul for a chunk of vectors; what is the same for all entries is left out.
    """
    towards = torch.cat([-2 * entries, entries.square()], 1).T.contiguous()
    found = []
    for start in range(0, len(vectors), max(CHUNK // len(entries), 1)):
        part = slice(start, start + max(CHUNK // len(entries), 1))
        heavy = torch.ones_like(vectors[part]) if importance is None else importance[part]
        distance = torch.cat([vectors[part] * heavy, heavy], 1) @ towards
        one = count == 1
        found.append(
            distance.argmin(1, keepdim=True) if one else distance.topk(count, 1, False).indices
        )
    return torch.cat(found).unbind(1)


def from_name(name: str) -> Codebook | None:
    """`vqKxD` or `vqKxDi8`, where there is such a codebook."""
    found = re.fullmatch(r"vq(\d{1,3})x(\d{1,2})(i8)?", name)
    try:
        return Codebook(int(found[1]), int(found[2]), bool(found[3])) if found else None
    except BadArgument:
        return None
