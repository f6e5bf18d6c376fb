"""The header of a safetensors file, read strictly: nothing is believed, nothing large allocated."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewbit.errors import BrokenFile
from fewbit.storage.regular_file import open_regular
from fewbit.storage.strict_json import LARGEST, parse_table

MOST_DIMENSIONS = 8

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Stored:
    """What a header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # the first of its bytes, counted from the beginning of the file

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    path: Path
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The checked header: every tensor lies inside the file, and no byte is claimed twice."""
    content, begin, size = _content(path)
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BrokenFile(f"{path}: the metadata is not a table of strings")
    tensors = {name: _tensor(path, name, entry, begin) for name, entry in content.items()}
    _refuse_gaps(path, tensors, begin, size)
    return Header(path, tensors, metadata)


def _content(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header's table, where the data begin, and where the file ends."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise BrokenFile(f"{path} is not a whole safetensors file ({size} bytes)")
            if length > LARGEST:
                raise BrokenFile(f"{path}: a header of {length} bytes, allowed {LARGEST}")
            text = file.read(length)
    except OSError as error:
        raise BrokenFile(f"cannot read {path}: {error.strerror}") from None
    return parse_table(text, f"{path}: the header"), 8 + length, size


def _tensor(path: Path, name: str, entry: Any, begin: int) -> Stored:
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if len(shape) > MOST_DIMENSIONS:
            raise ValueError(f"{len(shape)} dimensions, allowed {MOST_DIMENSIONS}")
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in (*shape, start, end)):
            raise ValueError("a shape or offset is not a sensible number")
        stored = Stored(DTYPES[dtype], tuple(shape), begin + start)
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenFile(
            f"{path}: the entry of tensor {name[:200]!r} is not valid: {str(error)[:100]}"
        ) from None
    if end - start != stored.nbytes:
        raise BrokenFile(
            f"{path}: tensor {name[:200]!r} of shape {list(stored.shape)} needs {stored.nbytes} "
            f"bytes, the header gives it {end - start}"
        )
    return stored


def _refuse_gaps(path: Path, tensors: Mapping[str, Stored], begin: int, size: int) -> None:
    at = begin
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if stored.start != at:
            raise BrokenFile(
                f"{path}: tensor {name[:200]!r} starts at byte {stored.start}, expected {at}"
            )
        at += stored.nbytes
    if at != size:
        raise BrokenFile(f"{path} is truncated or altered: it has {size} bytes, expected {at}")
