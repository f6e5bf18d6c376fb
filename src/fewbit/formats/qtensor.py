"""A really packed matrix: bytes of codes, stored scales, and the spec that gives them meaning."""

from __future__ import annotations

from dataclasses import dataclass, replace

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

        per_row = {
            name: tensor[part]
            for name in ("stored", "outer", "zeros", "choices")
            if (tensor := getattr(self.scales, name)) is not None and len(tensor) > 1
        }
        return replace(self, packed=self.packed[part], scales=replace(self.scales, **per_row))

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
