"""Tensors in and out of files: digests, checksums, and mapping files into memory.

A mapped tensor is the file: nothing is copied, several processes share it, and what is written to
the tensor stays with its process. A save never touches it: that makes a new file and renames it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from fewbit.errors import BadModel, BrokenFile
from fewbit.files import replacing
from fewbit.kernels.crc32 import crc32_of
from fewbit.storage.header import DTYPES, Header, Stored
from fewbit.storage.regular_file import open_regular

WORKERS = min(4, os.cpu_count() or 1)  # checking and reading leave the interpreter's lock
BATCH = 32 << 20  # bytes checked at a time
ALIGNMENT = 64  # bytes

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def digest(tensor: Tensor) -> str:
    """SHA-256 of the line `F32 [rows, columns]` and the bytes, row-major, little-endian."""
    summary = hashlib.sha256(_line(tensor))
    summary.update(memoryview(_plain(tensor).numpy()))  # type: ignore[arg-type]
    return summary.hexdigest()


def checksum(tensor: Tensor) -> str:
    """CRC-32 of the same, in 8 hexadecimal digits."""
    return checksums([tensor])[0]


def checksums(tensors: Sequence[Tensor]) -> list[str]:
    """Of many in one call, so that a thread that makes them rarely asks for the interpreter."""
    lines = [zlib.crc32(_line(tensor)) for tensor in tensors]
    return [f"{crc:08x}" for crc in crc32_of([_plain(tensor) for tensor in tensors], lines)]


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


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file that is the same for the same tensors: safetensors itself writes the
    metadata in an order that changes from call to call. Wide types come first, so that all lie
    where their size divides their place."""
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        entry = {"dtype": _name(tensor), "shape": list(tensor.shape)}
        header[name] = {**entry, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # Never into the old file: the tensors may be mapped from it.
    with replacing(path) as aside, aside.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(memoryview(_plain(tensors[name]).numpy()))  # type: ignore[arg-type]


@contextmanager
def checked_tensors(
    headers: Sequence[Header], crc32: Mapping[str, str]
) -> Iterator[dict[str, Tensor]]:
    """All tensors of the files at once, and time to prepare their places while they are checked:
    the end of the block waits, and refuses them if one is not what `crc32` says."""
    tensors = {name: tensor for header in headers for name, tensor in mapped(header).items()}
    batches = iter(_batches(tensors))

    def check() -> None:
        for names in batches:
            found = checksums([tensors[name] for name in names])
            for name, checksum in zip(names, found, strict=True):
                if checksum != crc32.get(name):
                    _refuse(name, headers)

    with ThreadPoolExecutor(WORKERS) as pool:
        checks = [pool.submit(check) for _ in range(WORKERS)]
        pool.shutdown(wait=False)  # whoever forgets the block leaves no idle thread behind
        try:
            yield tensors
            for done in checks:
                done.result()
        finally:
            deque(batches, maxlen=0)  # after a failure nothing more is begun


def _batches(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Neighbours, so many that each batch is worth a turn."""
    batches: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if size >= BATCH:
            batches.append([])
            size = 0
        batches[-1].append(name)
        size += tensor.nbytes
    return batches


def _refuse(name: str, headers: Sequence[Header]) -> NoReturn:
    path = next(header.path for header in headers if name in header.tensors)
    raise BrokenFile(f"{path}: the data of {name} was altered: its CRC-32 is not the manifest's")


def mapped(header: Header) -> dict[str, Tensor]:
    """All tensors of a file, in memory where the system has the file."""
    with open_regular(header.path) as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return {name: _tensor(mapping, stored) for name, stored in header.tensors.items()}


def _tensor(mapping: mmap.mmap, stored: Stored) -> Tensor:
    """A storage of its own, for a pickle writes whole storages, and each of one dtype. Floats begin
    where torch would let them begin: their products may differ by it."""
    if not stored.nbytes:
        return torch.empty(stored.shape, dtype=stored.dtype, device="cpu")
    plain = torch.frombuffer(mapping, dtype=torch.uint8, count=stored.nbytes, offset=stored.start)
    wanted = ALIGNMENT if stored.dtype.is_floating_point else stored.dtype.itemsize
    if plain.data_ptr() % wanted:
        plain = plain.clone()
    return plain.view(stored.dtype).view(stored.shape)


def _line(tensor: Tensor) -> bytes:
    return f"{_name(tensor)} {list(tensor.shape)}\n".encode()


def _name(tensor: Tensor) -> str:
    """Of its dtype."""
    if tensor.dtype not in _NAMES:
        raise BadModel(f"a tensor of {tensor.dtype} cannot be stored; allowed: {', '.join(DTYPES)}")
    return _NAMES[tensor.dtype]


def _equal(one: Tensor, other: Tensor) -> bool:
    return _line(one) == _line(other) and torch.equal(_plain(one), _plain(other))


def _plain(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, row-major."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
