"""Where block outputs wait to be read: in memory, or in a folder that outlives the process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from fewbit.errors import BrokenFile
from fewbit.storage.entries import Entries, Entry

Named = dict[str, Tensor]


class Store(Protocol):
    """Per block, the tensors of every minibatch in order; a block is there whole or not at all."""

    def write(self, block: int, minibatches: Iterable[Named]) -> None: ...

    def read(self, block: int, minibatch: int) -> Named: ...

    def holds(self, block: int) -> bool: ...

    def drop(self, block: int) -> None: ...


class Memory:
    def __init__(self) -> None:
        self.blocks: dict[int, list[Named]] = {}

    def write(self, block: int, minibatches: Iterable[Named]) -> None:
        self.blocks[block] = list(minibatches)

    def read(self, block: int, minibatch: int) -> Named:
        return self.blocks[block][minibatch]

    def holds(self, block: int) -> bool:
        return block in self.blocks

    def drop(self, block: int) -> None:
        self.blocks.pop(block, None)


class Disk:
    """As entries, one for each of so many minibatches of a block."""

    def __init__(self, entries: Entries, minibatches: int) -> None:
        self.entries, self.minibatches = entries, minibatches
        self.known: dict[int, bool] = {}  # blocks that were looked at: whether all of it is there

    def write(self, block: int, minibatches: Iterable[Named]) -> None:
        self.known[block] = False
        for number, tensors in enumerate(minibatches):
            self.entries.write(_name(block, number), Entry(tensors))
        self.known[block] = True

    def read(self, block: int, minibatch: int) -> Named:
        entry = self.entries.read(_name(block, minibatch))
        if entry is None:
            raise BrokenFile(
                f"{self.entries.path(_name(block, minibatch))} was lost or damaged while it was "
                "needed; the same call makes it again"
            )
        return dict(entry.tensors)

    def holds(self, block: int) -> bool:
        if block not in self.known:
            numbers = range(self.minibatches)
            self.known[block] = all(self.entries.read(_name(block, n)) for n in numbers)
        return self.known[block]

    def drop(self, block: int) -> None:
        for number in range(self.minibatches):
            self.entries.drop(_name(block, number))
        self.known[block] = False


def _name(block: int, minibatch: int) -> str:
    return f"block-{block:04}-{minibatch:05}"
