"""What a foreign file says of a model: packed layers, and tensors that are not quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from fewbit.activations.dynamic import Dynamic
from fewbit.errors import BrokenFile
from fewbit.formats import QTensor, Spec
from fewbit.layers.stage import InputStage
from fewbit.transforms.regular_hadamard import RegularHadamard


@dataclass(frozen=True)
class Input:
    """What the input of a layer goes through."""

    block: int | None = None  # of a regular Hadamard rotation
    activation: Spec | None = None

    def stage(self, columns: int) -> InputStage | None:
        if self == Input():
            return None
        rotation = None if self.block is None else RegularHadamard(columns, self.block)
        return InputStage(rotation, None if self.activation is None else Dynamic(self.activation))


@dataclass(frozen=True)
class ForeignLayer:
    """A linear layer, packed as the file stores it; rows may be padded to a multiple."""

    weight: QTensor
    input: Input = field(default_factory=Input)
    padding: int = 1

    def of_rows(self, rows: int) -> ForeignLayer:
        """Without the rows that only pad."""
        stored = self.weight.shape[0]
        if stored == rows or stored != -(-rows // self.padding) * self.padding:
            return self
        return replace(self, weight=self.weight.rows(slice(rows)), padding=1)

    def values(self) -> Tensor:
        """The matrix that an input as it comes is multiplied with, float32."""
        weight = self.weight.dequantize()
        if self.input.block is None:
            return weight
        return RegularHadamard(weight.shape[1], self.input.block).weight(weight)


@dataclass(frozen=True)
class Contents:
    path: Path
    dialect: str
    layers: Mapping[str, ForeignLayer]
    tensors: Mapping[str, Tensor]


@dataclass
class Parts:
    """The stored tensors of one layer, each to be taken once, as it must be."""

    path: Path
    layer: str
    format: str
    tensors: dict[str, Tensor]

    def take(self, name: str, *dtypes: torch.dtype, dimensions: int | None = None) -> Tensor:
        found = self.perhaps(name, *dtypes)
        if found is None:
            raise self.lacks(name)
        if dimensions is not None and found.dim() != dimensions:
            raise self.error(f"has {name} {list(found.shape)}, expected {dimensions} dimensions")
        return found

    def perhaps(self, name: str, *dtypes: torch.dtype) -> Tensor | None:
        found = self.tensors.pop(name, None)
        if found is not None and found.dtype not in dtypes:
            allowed = " or ".join(map(str, dtypes))
            raise self.error(f"has {name} in {found.dtype}, expected {allowed}")
        return found

    def shaped(self, name: str, tensor: Tensor, *shape: int) -> Tensor:
        """In the one shape that it can have, whether axes of length 1 were written or not."""
        if [n for n in tensor.shape if n != 1] != [n for n in shape if n != 1]:
            raise self.error(f"has {name} {list(tensor.shape)}, expected {list(shape)}")
        return tensor.reshape(shape)

    def group(self, size: int, columns: int) -> int:
        if size < 1 or columns % size:
            raise self.error(f"has groups of {size}, which do not divide {columns} columns")
        return size

    def done(self) -> None:
        """Refuse what nobody has taken."""
        if self.tensors:
            name = next(iter(self.tensors))[:80]
            raise self.error(f"holds {name!r}, which is not read in {self.format}")

    def lacks(self, name: str) -> BrokenFile:
        return self.error(f"lacks {name}, which {self.format} stores")

    def error(self, what: str) -> BrokenFile:
        return BrokenFile(f"{self.path}: {self.layer[:200]} {what}")
