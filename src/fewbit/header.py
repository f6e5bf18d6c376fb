"""The header of a safetensors file, read strictly: nothing is believed, nothing large allocated."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewbit.errors import BrokenFile

LARGEST_HEADER = 32 << 20  # bytes; a model of ten thousand tensors needs about three

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
    content, data_bytes = _content(path)
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BrokenFile(f"{path}: the metadata is not a table of strings")
    spans = []
    tensors = {}
    for name, entry in content.items():
        tensors[name], span = _tensor(path, name, entry)
        spans.append((*span, name))
    _check_spans(path, sorted(spans), data_bytes)
    return Header(path, tensors, metadata)


def _content(path: Path) -> tuple[dict[str, Any], int]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise BrokenFile(f"{path} is not a whole safetensors file ({size} bytes)")
            if length > LARGEST_HEADER:
                raise BrokenFile(f"{path}: a header of {length} bytes, allowed {LARGEST_HEADER}")
            content = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise BrokenFile(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BrokenFile(f"{path}: the header is not valid: {str(error)[:100]}") from None
    if not isinstance(content, dict):
        raise BrokenFile(f"{path}: the header is not a table")
    return content, size - 8 - length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:80]!r} occurs twice")
    return table


def _tensor(path: Path, name: str, entry: Any) -> tuple[Stored, tuple[int, int]]:
    try:
        stored = Stored(DTYPES[entry["dtype"]], tuple(entry["shape"]))
        start, end = entry["data_offsets"]
        sizes = (*stored.shape, start, end)
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in sizes):
            raise ValueError("a shape or offset is not a sensible number")
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenFile(f"{path}: the entry of tensor {name!r} is not valid: {error}") from None
    if end - start != stored.nbytes:
        raise BrokenFile(
            f"{path}: tensor {name!r} of shape {list(stored.shape)} needs {stored.nbytes} bytes, "
            f"the header gives it {end - start}"
        )
    return stored, (start, end)


def _check_spans(path: Path, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    at = 0
    for start, end, name in spans:
        if start != at:
            raise BrokenFile(f"{path}: tensor {name!r} starts at byte {start}, expected {at}")
        at = end
    if at != data_bytes:
        raise BrokenFile(f"{path} is truncated or altered: {data_bytes} data bytes, expected {at}")
