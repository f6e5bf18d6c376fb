"""Modules that another library runs as one graph, a block or a whole network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fewbit.bench.levels import output
from fewbit.calibration.tree import rebuild, tensors

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


class Flat(nn.Module):
    """A module that takes the tensors of a nested call one after another, and gives one tensor."""

    def __init__(self, module: nn.Module, call: Call, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.call, self.names = module, call, names

    def forward(self, *given: Tensor) -> Tensor:
        now = dict(zip(self.names, given, strict=True))
        return output(self.module, rebuild(self.call, lambda path, leaf: now.get(path, leaf)))


def name_inside(layer: str) -> str:
    """The name of a layer of the module in a `Flat`."""
    return f"module.{layer}"
