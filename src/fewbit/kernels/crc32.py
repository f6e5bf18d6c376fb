"""CRC-32 as zlib has it, by the native library where this CPU multiplies without carries."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from ctypes import CDLL, c_int64, c_uint32, c_void_p
from functools import cache

from torch import Tensor

from fewbit.kernels.native.library import Loaded, load


def crc32_of(pieces: Sequence[Tensor], before: Sequence[int]) -> list[int]:
    """Of each piece (bytes, contiguous), carried on from the checksum of what came before it."""
    library = _library()
    if library is None:
        views = (memoryview(piece.numpy()) for piece in pieces)  # type: ignore[arg-type]
        return list(map(zlib.crc32, views, before))
    count = len(pieces)
    addresses = (c_void_p * count)(*(piece.data_ptr() for piece in pieces))
    sizes = (c_int64 * count)(*(piece.numel() for piece in pieces))
    checksums = (c_uint32 * count)(*before)
    library.fewbit_crc32(addresses, sizes, checksums, count)
    return list(checksums)


@cache
def _library() -> CDLL | None:
    loaded = load()
    if isinstance(loaded, Loaded) and loaded.functions.fewbit_has_crc32():
        return loaded.functions
    return None
