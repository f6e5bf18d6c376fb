"""Weights in the layout of the native kernels, panels of 64 channels, and back.

The layout is one tensor of bytes that only the native kernels read. csrc/panels.h describes it.
"""

from __future__ import annotations

from ctypes import c_int32
from functools import lru_cache

import torch
from torch import Tensor

from fewbit.errors import BadArgument
from fewbit.formats import Format
from fewbit.kernels.native.library import address, failure, functions

MOST_OPTIONS = 4
VECTOR, MOST_VECTORS = 4, 256  # levels that one code of a codebook may stand for, and codes


def pack_codes(codes: Tensor, fmt: Format, choices: Tensor | None = None) -> Tensor:
    """Codes (uint8 [N, K]) of a format; where rows differ, also the option of each (uint8)."""
    if not fmt.exact_in(8) or len(fmt.options) > MOST_OPTIONS:
        raise BadArgument(f"{fmt} has no native kernel: its levels must be integers of 8 bits")
    if fmt.bits > 4:
        return pack_levels(_levels(fmt)[codes.int()])
    table = codes.new_zeros(len(fmt.options), 16, dtype=torch.int8)
    for row, option in enumerate(fmt.options):
        table[row, : 1 << fmt.bits] = _levels(option)
    return _pack(codes, table, choices, bits=4)


def pack_vectors(codes: Tensor, codebook: Tensor) -> Tensor:
    """Codes (uint8 [N, K / 4]) of vectors of four levels (int8 [entries, 4])."""
    if codebook.shape[1] != VECTOR or len(codebook) > MOST_VECTORS:
        raise BadArgument(
            f"a codebook {list(codebook.shape)} has no panels: it has up to {MOST_VECTORS} vectors "
            f"of {VECTOR}"
        )
    table = codebook.new_zeros(MOST_VECTORS, VECTOR)
    table[: len(codebook)] = codebook
    return _pack(codes, table, None, bits=2)


def pack_levels(levels: Tensor) -> Tensor:
    """Levels (int8 [N, K]) that rest in 8 bits and need no unpacking."""
    return _pack(levels, None, None, bits=8)


def unpack(packed: Tensor) -> Tensor:
    """The codes that `pack_codes`, in 4 bits, or `pack_vectors` was given, else int8 levels."""
    bits, rows, columns = contents(packed)
    codes = columns // VECTOR if bits == 2 else columns
    out = packed.new_empty(rows, codes, dtype=torch.int8 if bits == 8 else torch.uint8)
    functions().fewbit_unpack(address(packed), packed.numel(), address(out))
    return out


def contents(packed: Tensor) -> tuple[int, int, int]:
    """Bits, rows and columns of a packed weight."""
    bits_and_shape = (c_int32 * 3)()
    status = functions().fewbit_packed_shape(address(packed), packed.numel(), bits_and_shape)
    if status:
        raise failure(status)
    bits, rows, columns = bits_and_shape
    return bits, rows, columns


def _pack(codes: Tensor, table: Tensor | None, choices: Tensor | None, *, bits: int) -> Tensor:
    rows, columns = codes.shape[0], codes.shape[1] * (VECTOR if bits == 2 else 1)
    codes = codes.contiguous()
    tables = len(table) if table is not None and bits == 4 else 0
    if tables > 1:
        if choices is None or choices.numel() != rows or int(choices.max()) >= tables:
            raise BadArgument(f"each of {rows} rows needs one of {tables} options")
        choices = choices.contiguous()
    size = functions().fewbit_packed_bytes(rows, columns, bits, tables)
    out = codes.new_empty(size, dtype=torch.uint8)
    functions().fewbit_pack(
        address(codes), address(table), address(choices), rows, columns, bits, tables, address(out)
    )
    return out


@lru_cache
def _levels(fmt: Format) -> Tensor:
    """The level of each code, counted in steps."""
    return (fmt.decode(torch.arange(1 << fmt.bits, device="cpu")) / fmt.step).to(torch.int8)
