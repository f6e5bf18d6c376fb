"""Modules that another library runs as one graph, a block or a whole network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fewbit.calibration.tree import tensors

Call = Mapping[str, Any]


class Graph(nn.Module):
    """What computes one tensor from the tensors of a call, by their paths in it."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names

    def forward(self, *alone: Tensor, **call: Any) -> Tensor:
        """An only argument may come without its name."""
        return self.compute([*alone] or self.inputs(call))

    def inputs(self, call: Call) -> list[Tensor]:
        given = tensors(call)
        return [given[name] for name in self.names]

    def compute(self, inputs: list[Tensor]) -> Tensor:
        raise NotImplementedError


def name_inside(layer: str) -> str:
    """The name of a layer of the module in a `Flat`."""
    return f"module.{layer}"
