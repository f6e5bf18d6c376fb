"""Which layers of a network every library rounds: those that fewbit rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fewbit.models import Role, describe


@dataclass(frozen=True)
class Layers:
    """Names by what reads one input; the modulation is apart."""

    groups: Sequence[Sequence[str]]
    modulation: Sequence[str]

    @classmethod
    def of(cls, transformer: nn.Module) -> Layers:
        structure = describe(transformer)
        blocks = range(len(structure.blocks))
        layers = [layer for block in blocks for layer in structure.quantizable(block)]
        modulation = [layer.name for layer in layers if layer.role is Role.ADALN]
        groups = [group for block in blocks for group in structure.shared_inputs(block)]
        return cls([group for group in groups if group[0] not in modulation], modulation)

    @property
    def plain(self) -> list[str]:
        return [name for group in self.groups for name in group]

    @property
    def all(self) -> list[str]:
        return [*self.plain, *self.modulation]

    def inside(self, path: str) -> list[str]:
        """Names of those below a module, as that module knows them."""
        stem = f"{path}." if path else ""
        return [name.removeprefix(stem) for name in self.all if name.startswith(stem)]
