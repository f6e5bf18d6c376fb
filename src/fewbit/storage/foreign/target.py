"""What can be written: a format by its name, which layers it holds, and the file it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fewbit.storage.foreign.contents import ForeignLayer

Layers = Mapping[str, ForeignLayer]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Target:
    name: str
    suffix: str  # of files
    holds: Callable[[ForeignLayer], bool]
    write: Callable[[Path, str, Layers, Tensors], None]  # the name of the class is the second
