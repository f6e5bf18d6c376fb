"""A really packed matrix: bytes of codes, stored scales, and the spec that gives them meaning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.formats.pack import pack, packed_width, unpack
from fewbit.formats.spec import Scales, Spec


@dataclass(frozen=True)
class QTensor:
    packed: Tensor  # uint8 [rows, packed_width]
    scales: Scales
    spec: Spec
    columns: int

    @classmethod
    def quantize(cls, matrix: Tensor, spec: Spec, scales: Scales | None = None) -> QTensor:
        """Plain rounding to nearest, at the given scales or at those that clip nothing."""
        scales = scales or spec.fit(matrix)
        codes = spec.encode(matrix, scales)
        return cls(pack(codes, spec.format.bits), scales, spec, matrix.shape[1])

    @classmethod
    def empty(cls, rows: int, columns: int, spec: Spec) -> QTensor:
        """The tensors of a packed matrix with nothing in them, on the current default device."""
        packed = torch.empty(rows, packed_width(columns, spec.format.bits), dtype=torch.uint8)
        return cls(packed, spec.empty_scales(rows, columns), spec, columns)

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], self.columns

    def codes(self) -> Tensor:
        return unpack(self.packed, self.spec.format.bits, self.columns)

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
        }
        return {name: t for name, t in named.items() if t is not None}
