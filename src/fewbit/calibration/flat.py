"""A module with nested arguments as a function of tensors alone, for whoever traces it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fewbit.calibration.tree import rebuild, tensors


class Flat(nn.Module):
    """A module that takes the tensors of a nested call one after another, and gives one tensor."""

    def __init__(self, module: nn.Module, call: Mapping[str, Any], names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.call, self.names = module, call, names

    def forward(self, *given: Tensor) -> Tensor:
        now = dict(zip(self.names, given, strict=True))
        return output(self.module, rebuild(self.call, lambda path, leaf: now.get(path, leaf)))


def output(module: nn.Module, arguments: dict[str, Any]) -> Tensor:
    """The first tensor. An only argument has another name in every kind of linear."""
    alone = len(arguments) == 1
    result = module(*arguments.values()) if alone else module(**arguments)
    return next(iter(tensors(_plain(result)).values()))


def _plain(result: Any) -> Any:
    return result.to_tuple() if hasattr(result, "to_tuple") else result
