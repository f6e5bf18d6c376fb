"""Codebooks: one code stands for several neighbouring columns of a row, by a learned vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.errors import BadArgument
from fewbit.formats.format import Format

MOST_ENTRIES, MOST_COLUMNS = 256, 16
CHUNK = 1 << 18  # distances at a time: they stay in the cache
_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # entries that are one number: quick


@dataclass(frozen=True)
class Codebook(Format):
    """`vqKxD`: K vectors of D values, stored as float16 [K, D] with each matrix.

    A vector of a matrix becomes the nearest entry, the first of equally near ones.
    """

    entries: int
    columns: int

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
        return f"vq{self.entries}x{self.columns}"

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
    def bytes(self) -> int:
        """Of the entries themselves."""
        return 2 * self.entries * self.columns

    def code_values(self) -> tuple[float, ...]:
        """None of its own: what a code means is stored beside it."""
        return ()

    def exact_in(self, bits: int) -> bool:
        return False

    def empty(self) -> Tensor:
        return torch.empty(self.entries, self.columns, dtype=torch.float16)

    def decode_vectors(self, codes: Tensor, entries: Tensor) -> Tensor:
        """Codes [rows, n] to float32 values [rows, n * columns]."""
        whole = _WHOLE.get(entries.element_size() * self.columns)
        if whole is None or entries.requires_grad:
            return entries.float()[codes.int()].flatten(1)
        found = entries.contiguous().view(whole)[:, 0].index_select(0, codes.flatten().int())
        return found.view(entries.dtype).view(len(codes), -1).float()

    def encode_vectors(self, values: Tensor, entries: Tensor) -> Tensor:
        """Values [rows, n * columns] to the codes [rows, n] of their nearest entries."""
        vectors = values.reshape(-1, self.columns)
        codes = nearest(vectors, entries.float())[0]
        return codes.to(torch.uint8).view(len(values), -1)

    def for_size(self, rows: int, columns: int) -> Codebook:
        """With entries for at least four vectors each, two at the least: what a small matrix gets,
        whose own vectors would otherwise be fewer bytes than their codebook."""
        each = rows * (columns // self.columns) // 4
        return Codebook(min(self.entries, 1 << max(each.bit_length() - 1, 1)), self.columns)


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
