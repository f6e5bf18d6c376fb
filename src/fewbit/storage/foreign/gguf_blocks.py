"""The blocks of GGUF: 32 neighbouring columns with their scale, as bytes and as packed matrices.

The low halves of all codes come first in 16 bytes, column j in the lower half of byte j and column
j + 16 in its upper half; fifth bits are those of an int32, column j being bit j.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewbit.formats import QTensor, Scales, Spec
from fewbit.formats.pack import pack
from fewbit.formats.scale import FP16, GGUF

COLUMNS = 32
_SIZES = {"scale": 2, "minimum": 2, "power": 1, "high": 4, "low": 16, "whole": 32}


@dataclass(frozen=True)
class Block:
    name: str
    number: int  # of the type, in files
    spec: Spec
    fields: tuple[str, ...]  # in order of their bytes
    offset: int = 0  # what codes of files are above those of integers in two's complement

    @property
    def nbytes(self) -> int:
        return sum(_SIZES[field] for field in self.fields)

    def holds(self, spec: Spec) -> bool:
        """Whether such a matrix is one of these blocks; a positive float16 is a scale of them."""
        plain = replace(self.spec, scale=FP16)
        return spec == self.spec or (
            self.spec.scale is GGUF and self.spec.symmetric and spec == plain
        )

    def read(self, stored: Tensor) -> QTensor:
        """Of bytes [rows, groups * nbytes]."""
        rows = stored.unflatten(1, (-1, self.nbytes))  # [rows, groups, nbytes]
        parts = rows.split([_SIZES[field] for field in self.fields], -1)
        found = dict(zip(self.fields, parts, strict=True))
        codes = _codes(found) ^ self.offset
        bits, columns = self.spec.format.bits, COLUMNS * rows.shape[1]
        return QTensor(pack(codes.flatten(1), bits), _scales(found), self.spec, columns)

    def write(self, packed: QTensor) -> Tensor:
        """The inverse."""
        codes = packed.codes().unflatten(1, (-1, COLUMNS)) ^ self.offset
        parts = _fields(codes, packed.scales)
        return torch.cat([parts[field] for field in self.fields], -1).flatten(1)


def _codes(found: dict[str, Tensor]) -> Tensor:
    """uint8 [rows, groups, 32]"""
    if "whole" in found:
        return found["whole"]
    low = torch.cat([found["low"] & 15, found["low"] >> 4], -1)
    if "high" not in found:
        return low
    high = found["high"][..., None] >> torch.arange(8, dtype=torch.uint8) & 1
    return low | high.flatten(-2) << 4


def _scales(found: dict[str, Tensor]) -> Scales:
    if "power" in found:
        return Scales(found["power"][..., 0].contiguous())
    minimum = found.get("minimum")
    return Scales(_halves(found["scale"]), zeros=None if minimum is None else _halves(minimum))


def _halves(stored: Tensor) -> Tensor:
    return stored.contiguous().view(torch.float16)[..., 0].contiguous()


def _fields(codes: Tensor, scales: Scales) -> dict[str, Tensor]:
    """All that some block has of these, uint8 [rows, groups, its size]."""
    first, second = (codes & 15).split(COLUMNS // 2, -1)
    bits = (codes >> 4 & 1).unflatten(-1, (4, 8)) << torch.arange(8, dtype=torch.uint8)
    stored = scales.stored[..., None].contiguous().view(torch.uint8)
    zeros = stored if scales.zeros is None else scales.zeros[..., None].contiguous()
    return {
        "scale": stored,
        "power": stored,
        "minimum": zeros.view(torch.uint8),
        "high": bits.sum(-1, dtype=torch.uint8),
        "low": first | second << 4,
        "whole": codes,
    }


BLOCKS = (
    Block("q4_0", 2, Spec.parse("int4/g32/gguf"), ("scale", "low"), 8),
    Block("q4_1", 3, Spec.parse("uint4/g32/gguf"), ("scale", "minimum", "low")),
    Block("q5_0", 6, Spec.parse("int5/g32/gguf"), ("scale", "high", "low"), 16),
    Block("q5_1", 7, Spec.parse("uint5/g32/gguf"), ("scale", "minimum", "high", "low")),
    Block("q8_0", 8, Spec.parse("int8/g32/gguf"), ("scale", "whole")),
    Block("mxfp4", 39, Spec.parse("e2m1/g32/e8m0"), ("power", "low")),
)
