"""Storages of tensors moved from memory into files that have no name and end with the process."""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile, gettempdir

import torch
from torch import UntypedStorage

ALIGNMENT = 64  # bytes, as where torch lets tensors begin


def parked(
    storages: Sequence[UntypedStorage], folder: Path | None, spare: int
) -> list[UntypedStorage] | None:
    """The same bytes, mapped from one file in `folder`, or where the system keeps temporary files.

    None where the disk would then have less than `spare` bytes left, or cannot be written.
    """
    place = Path(gettempdir()) if folder is None else folder
    starts = list(accumulate((_room(one) for one in storages), initial=0))
    try:
        if shutil.disk_usage(place).free < starts[-1] + spare:
            return None
        with TemporaryFile(dir=place) as file:
            for start, storage in zip(starts, storages, strict=False):
                file.seek(start)
                file.write(memoryview(_bytes(storage).numpy()))  # type: ignore[arg-type]
            file.truncate(starts[-1])
            mapping = mmap.mmap(file.fileno(), starts[-1], access=mmap.ACCESS_COPY)
    except OSError:
        return None
    return [
        torch.frombuffer(
            mapping, dtype=torch.uint8, count=storage.nbytes(), offset=start
        ).untyped_storage()
        for start, storage in zip(starts, storages, strict=False)
    ]


def _room(storage: UntypedStorage) -> int:
    return -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT


def _bytes(storage: UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
