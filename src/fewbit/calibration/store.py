"""Where block outputs wait to be read: in memory, or in a folder that outlives the process."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor

from fewbit.files import new_folder

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
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, block: int, minibatches: Iterable[Named]) -> None:
        with new_folder(self._place(block), overwrite=True) as fresh:
            for number, tensors in enumerate(minibatches):
                save_file(tensors, _file(fresh, number))

    def read(self, block: int, minibatch: int) -> Named:
        return load_file(_file(self._place(block), minibatch))

    def holds(self, block: int) -> bool:
        return self._place(block).is_dir()

    def drop(self, block: int) -> None:
        shutil.rmtree(self._place(block), ignore_errors=True)

    def _place(self, block: int) -> Path:
        return self.folder / f"block-{block:04}"


def _file(folder: Path, minibatch: int) -> Path:
    return folder / f"{minibatch:05}.safetensors"
