"""Entries: tensors and a table kept in a folder under a name, each in one file with a checksum.

An entry is there whole or it is not there: a file that was damaged counts as missing, and a note
says so. The first line of a file is the CRC-32 of the rest, the second the table as JSON; what
follows is safetensors.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from fewbit.errors import BadOutput
from fewbit.files import ASIDE, clear_stale, replacing

SUFFIX = ".entry"


@dataclass(frozen=True)
class Entry:
    tensors: Mapping[str, Tensor]
    table: Mapping[str, Any] = field(default_factory=dict)


class Entries:
    """The entries of one folder that bear the same seal; those with another count as damaged."""

    def __init__(self, folder: Path, seal: str = "", notes: list[str] | None = None) -> None:
        self.folder, self.seal = folder, seal
        self.notes: list[str] = [] if notes is None else notes  # one for each damaged file

    def inside(self, name: str) -> Entries:
        """Those of a folder in this one, with the same seal and the same notes."""
        return Entries(self.folder / name, self.seal, self.notes)

    def write(self, name: str, entry: Entry) -> None:
        path, table = self.path(name), json.dumps(entry.table).encode() + b"\n"
        packed = save({key: _own_copy(tensor) for key, tensor in entry.tensors.items()})
        try:
            with replacing(path) as aside:
                with aside.open("wb") as file:
                    file.writelines((self._checksum(table, packed), table, packed))
                if path.is_dir():
                    os.rmdir(path)
        except OSError as error:
            raise BadOutput(f"cannot write {path}: {error.strerror}") from None

    def read(self, name: str) -> Entry | None:
        """None where there is no such entry, or where it was damaged."""
        path = self.path(name)
        if not os.path.lexists(path):
            return None
        try:
            return self._whole(path)
        except OSError as error:
            why = f"it cannot be read ({error.strerror})"
        except ValueError as error:
            why = str(error)
        note = f"{path} was damaged and is made again: {why}"
        if note not in self.notes:
            self.notes.append(note)
        return None

    def drop(self, name: str) -> None:
        """What cannot be dropped does no harm: it is whole, or will be found damaged."""
        with suppress(OSError):
            self.path(name).unlink()

    def path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"

    def clear_leftovers(self) -> None:
        """What killed writes have left beside the entries."""
        clear_stale(self.folder.glob(f"**/{ASIDE}*"))

    def _checksum(self, table: bytes, packed: bytes) -> bytes:
        total = zlib.crc32(self.seal.encode())
        for part in (table, packed):
            total = zlib.crc32(part, total)
        return f"{total:08x}\n".encode()

    def _whole(self, path: Path) -> Entry:
        if path.is_dir() and any(path.iterdir()):
            raise BadOutput(f"{path} is a folder with something in it; allowed: a file, or nothing")
        if not path.is_file():
            raise ValueError("it is no file")
        with path.open("rb") as file:
            checksum, table, packed = file.readline(), file.readline(), file.read()
        if checksum != self._checksum(table, packed):
            raise ValueError("its checksum is not that of its content")
        # Copied to where torch would put them: products of floats may differ by their alignment.
        tensors = {key: _own_copy(tensor) for key, tensor in load(packed).items()}
        return Entry(tensors, json.loads(table))


def _own_copy(tensor: Tensor) -> Tensor:
    """On the CPU, row-major, sharing no memory with anything."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
