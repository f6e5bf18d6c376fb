"""A really packed matrix: bytes of codes, stored scales, and the spec that gives them meaning."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewbit.formats.pack import pack, packed_width, unpack
from fewbit.formats.spec import Scales, Spec

AT_ONCE = 1 << 20  # weights that are encoded together


@dataclass(frozen=True)
class QTensor:
    packed: Tensor  # uint8 [rows, packed_width]
    scales: Scales
    spec: Spec
    columns: int

    @classmethod
    def quantize(cls, matrix: Tensor, spec: Spec, scales: Scales | None = None) -> QTensor:
        """Plain rounding to nearest, at the given scales or at those that clip nothing. Some rows
        at a time: what is needed in between is many times as large as the codes."""
        scales = scales or spec.fit(matrix)
        rows, columns = matrix.shape
        step = max(AT_ONCE // max(columns, 1), 1)
        parts = [slice(start, start + step) for start in range(0, max(rows, 1), step)]
        packed = [
            pack(spec.encode(matrix[part], scales.rows(part)), spec.format.bits) for part in parts
        ]
        return cls(torch.cat(packed), scales, spec, columns)

    @classmethod
    def empty(cls, rows: int, columns: int, spec: Spec) -> QTensor:
        """The tensors of a packed matrix with nothing in them, on the current default device."""
        width = packed_width(spec.codes(columns), spec.format.bits)
        packed = torch.empty(rows, width, dtype=torch.uint8)
        return cls(packed, spec.empty_scales(rows, columns), spec, columns)

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], self.columns

    def codes(self) -> Tensor:
        return unpack(self.packed, self.spec.format.bits, self.spec.codes(self.columns))

    def rows(self, part: slice) -> QTensor:
        """Some of the rows, sharing memory with all."""
        return replace(self, packed=self.packed[part], scales=self.scales.rows(part))

    def with_codebook_in(self, dtype: torch.dtype) -> QTensor:
        assert self.scales.codebook is not None
        codebook = self.scales.codebook.to(dtype)
        return replace(self, scales=replace(self.scales, codebook=codebook))

    def dequantize(self) -> Tensor:
        return self.spec.decode(self.codes(), self.scales)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by the names used in files."""
        named = {
            "codes": self.packed,
            "scales": self.scales.stored,
            "outer_scales": self.scales.outer,
            "zeros": self.scales.zeros,
            "choices": self.scales.choices,
            "codebook": self.scales.codebook,
        }
        return {name: t for name, t in named.items() if t is not None}
