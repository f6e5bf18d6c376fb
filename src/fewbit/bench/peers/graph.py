"""Modules that another library runs as one graph, a block or a whole network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fewbit.bench.levels import output
from fewbit.calibration.tree import rebuild

Call = Mapping[str, Any]
Make = Callable[[nn.Module, Sequence[Call]], nn.Module]


class OfFirstCall(nn.Module):
    """What `make` makes of a module and its first call, which is what it is calibrated on too. The
    module itself is let go."""

    def __init__(self, module: nn.Module, make: Make) -> None:
        super().__init__()
        self.signature = inspect.signature(module.forward)
        self.module: nn.Module | None = module
        self.make = make

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = self.signature.bind(*args, **kwargs).arguments
        if self.module is not None:
            self.graph, self.module = self.make(self.module, [call]), None
        return self.graph(**call)


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
