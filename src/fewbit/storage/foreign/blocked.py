"""Scales of groups in the order in which NVIDIA's tensor cores read them: tiles of 128 rows and 4
columns, in a tile row r and column c at place (r % 32) * 16 + (r // 32) * 4 + c; padded with 0."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

ROWS, COLUMNS = 128, 4


def blocked_shape(rows: int, columns: int) -> tuple[int, int]:
    return -(-rows // ROWS) * ROWS, -(-columns // COLUMNS) * COLUMNS


def blocked(scales: Tensor) -> Tensor:
    """Bytes [rows, columns] to tiles, in one padded matrix."""
    rows, columns = blocked_shape(*scales.shape)
    padded = pad(scales, (0, columns - scales.shape[1], 0, rows - scales.shape[0]))
    tiles = padded.view(rows // ROWS, 4, 32, columns // COLUMNS, COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(rows, columns)


def unblocked(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse."""
    high, wide = blocked_shape(rows, columns)
    stored = tiles.reshape(high // ROWS, wide // COLUMNS, 32, 4, COLUMNS)
    return stored.permute(0, 3, 2, 1, 4).reshape(high, wide)[:rows, :columns].contiguous()
