"""Tensors in and out of files: digests, checksums, and reading them into memory of their own.

A file is read and not mapped, so that whatever happens to it later cannot reach a loaded model.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader

import numpy as np
import torch
from torch import Tensor

from fewbit.errors import BadModel, BrokenFile
from fewbit.header import DTYPES, Header, Stored

WORKERS = min(4, os.cpu_count() or 1)  # checking and reading leave the interpreter's lock
PIECE = 1 << 18  # bytes that are still in the cache when they are checked
ALIGNMENT = 64

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def digest(tensor: Tensor) -> str:
    """SHA-256 of the line `F32 [rows, columns]` and the bytes, row-major, little-endian."""
    summary = hashlib.sha256(_line(tensor))
    summary.update(_view(_plain(tensor)))
    return summary.hexdigest()


def checksum(tensor: Tensor) -> str:
    """CRC-32 of the same, in 8 hexadecimal digits."""
    return f"{zlib.crc32(_view(_plain(tensor)), zlib.crc32(_line(tensor))):08x}"


def stored_once(state: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, str]]:
    """Name -> checksum for all tensors to be stored, and other name -> the name it is stored under.

    Tensors of equal dtype, shape and bytes are kept under the first of their names.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        checksums = dict(zip(state, pool.map(checksum, state.values()), strict=True))
    alike: dict[str, list[str]] = {}
    aliases: dict[str, str] = {}
    for name, crc32 in checksums.items():
        firsts = alike.setdefault(crc32, [])
        first = next((one for one in firsts if _equal(state[one], state[name])), None)
        if first is None:
            firsts.append(name)
        else:
            aliases[name] = first
    return {name: crc32 for name, crc32 in checksums.items() if name not in aliases}, aliases


def read_tensors(header: Header, crc32: Mapping[str, str]) -> dict[str, Tensor]:
    """All tensors of a file, refused if one of them is not what `crc32` says."""
    tensors = _empty(header.tensors)
    names = sorted(tensors, key=lambda name: header.tensors[name].start)
    shares = [names[i::WORKERS] for i in range(WORKERS)]

    def read(share: list[str]) -> None:
        with header.path.open("rb") as file:
            for name in share:
                file.seek(header.tensors[name].start)
                if _fill(file, tensors[name]) != crc32[name]:
                    raise BrokenFile(
                        f"{header.path}: the data of {name} was altered: its CRC-32 is not the "
                        "manifest's"
                    )

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(read, shares))
    return tensors


def _fill(file: BufferedReader, tensor: Tensor) -> str:
    """The bytes from here on into the tensor; its checksum, or nothing where the file ends."""
    crc32, whole = zlib.crc32(_line(tensor)), _view(_plain(tensor))
    for begin in range(0, len(whole), PIECE):
        piece = whole[begin : begin + PIECE]
        if file.readinto(piece) != len(piece):
            return ""
        crc32 = zlib.crc32(piece, crc32)
    return f"{crc32:08x}"


def _empty(stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """Room for all tensors in one piece, for which numpy asks the system for huge pages."""
    places, end = {}, 0
    for name, one in stored.items():
        places[name] = end
        end += -(-one.nbytes // ALIGNMENT) * ALIGNMENT
    memory = torch.from_numpy(np.empty(end, np.uint8))
    return {
        name: memory[places[name] :][: one.nbytes].view(one.dtype).view(one.shape)
        for name, one in stored.items()
    }


def _line(tensor: Tensor) -> bytes:
    if tensor.dtype not in _NAMES:
        raise BadModel(f"a tensor of {tensor.dtype} cannot be stored; allowed: {', '.join(DTYPES)}")
    return f"{_NAMES[tensor.dtype]} {list(tensor.shape)}\n".encode()


def _equal(one: Tensor, other: Tensor) -> bool:
    return _line(one) == _line(other) and torch.equal(_plain(one), _plain(other))


def _plain(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, row-major."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)


def _view(plain: Tensor) -> memoryview:
    return memoryview(plain.numpy())  # type: ignore[arg-type]
