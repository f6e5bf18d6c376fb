"""Tensors in and out of files: their digests, and reading them into memory of their own.

A file is read and not mapped, so that whatever happens to it later cannot reach a loaded model.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from fewbit.errors import BadModel, BrokenFile
from fewbit.header import DTYPES, Header, Stored

WORKERS = min(4, os.cpu_count() or 1)  # hashing and reading leave the interpreter's lock

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def digest(tensor: Tensor) -> str:
    """SHA-256 of the line `F32 [rows, columns]` and the bytes, row-major, little-endian."""
    if tensor.dtype not in _NAMES:
        raise BadModel(f"a tensor of {tensor.dtype} cannot be stored; allowed: {', '.join(DTYPES)}")
    line = f"{_NAMES[tensor.dtype]} {list(tensor.shape)}\n"
    summary = hashlib.sha256(line.encode())
    summary.update(_bytes(tensor.detach().cpu().contiguous()))
    return summary.hexdigest()


def stored_once(state: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, str]]:
    """Name -> digest for every tensor to be stored, and other name -> the name it is stored under.

    Tensors of equal dtype, shape and bytes are kept under the first of their names.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        digests = dict(zip(state, pool.map(digest, state.values()), strict=True))
    first: dict[str, str] = {}
    for name, sha256 in digests.items():
        first.setdefault(sha256, name)
    aliases = {name: first[sha] for name, sha in digests.items() if first[sha] != name}
    return {name: sha for name, sha in digests.items() if name not in aliases}, aliases


def read_tensors(header: Header, sha256: Mapping[str, str]) -> dict[str, Tensor]:
    """All tensors of a file, refused if one of them is not what `sha256` says."""
    names = list(header.tensors)
    shares = [names[i::WORKERS] for i in range(WORKERS)]
    with ThreadPoolExecutor(WORKERS) as pool:
        parts = list(pool.map(lambda share: _read(header, share, sha256), shares))
    return {name: tensor for part in parts for name, tensor in part.items()}


def _read(header: Header, names: Iterable[str], sha256: Mapping[str, str]) -> dict[str, Tensor]:
    tensors = {}
    with header.path.open("rb") as file:
        for name in names:
            stored = header.tensors[name]
            tensor = _empty(stored)
            file.seek(stored.start)
            whole = file.readinto(_bytes(tensor)) == stored.nbytes
            if not whole or digest(tensor) != sha256[name]:
                raise BrokenFile(
                    f"{header.path}: the data of {name} was altered: its SHA-256 is not the "
                    "manifest's"
                )
            tensors[name] = tensor
    return tensors


def _empty(stored: Stored) -> Tensor:
    return torch.empty(stored.shape, dtype=stored.dtype, device="cpu")


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
