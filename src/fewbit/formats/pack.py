"""Codes into bytes and back: dense, row by row, lowest bit first.

Code j of a row occupies bits j*bits .. (j+1)*bits - 1 of the row, where bit i is bit i % 8 of
byte i // 8. A row ends on a whole byte; nothing else is padded.
"""

from __future__ import annotations

from math import gcd

from torch import Tensor
from torch.nn.functional import pad


def packed_width(columns: int, bits: int) -> int:
    """Bytes of one row of `columns` codes."""
    return -(-columns * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [..., columns] to bytes [..., packed_width]."""
    if bits == 8:
        return codes.contiguous()
    width = packed_width(codes.shape[-1], bits)
    per_period, bytes_per_period = 8 // gcd(8, bits), bits // gcd(8, bits)
    periods = -(-codes.shape[-1] // per_period)
    codes = pad(codes, (0, periods * per_period - codes.shape[-1]))
    codes = codes.view(*codes.shape[:-1], periods, per_period)
    out = codes.new_zeros(*codes.shape[:-1], bytes_per_period)
    for j in range(per_period):
        byte, shift = divmod(j * bits, 8)
        out[..., byte] |= codes[..., j] << shift
        if shift + bits > 8:
            out[..., byte + 1] |= codes[..., j] >> (8 - shift)
    return out.flatten(-2)[..., :width].contiguous()


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Bytes [..., packed_width] back to uint8 codes [..., columns]."""
    if bits == 8:
        return packed
    per_period, bytes_per_period = 8 // gcd(8, bits), bits // gcd(8, bits)
    periods = -(-columns // per_period)
    packed = pad(packed, (0, periods * bytes_per_period - packed.shape[-1]))
    packed = packed.view(*packed.shape[:-1], periods, bytes_per_period)
    out = packed.new_empty(*packed.shape[:-1], per_period)
    mask = (1 << bits) - 1
    for j in range(per_period):
        byte, shift = divmod(j * bits, 8)
        code = packed[..., byte] >> shift
        if shift + bits > 8:
            code = code | (packed[..., byte + 1] << (8 - shift))
        out[..., j] = code & mask
    return out.flatten(-2)[..., :columns]
