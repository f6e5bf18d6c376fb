"""Tables for the terminal: columns as wide as their longest entry."""

from __future__ import annotations

from collections.abc import Collection, Sequence

Row = tuple[str, ...]


def aligned(rows: Sequence[Row | str], numbers: Collection[int]) -> list[str]:
    """Columns of numbers are flush right. A row that is a text stands as it is."""
    cells = [row for row in rows if not isinstance(row, str)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [row if isinstance(row, str) else _line(row, widths, numbers) for row in rows]


def _line(row: Row, widths: Sequence[int], numbers: Collection[int]) -> str:
    return "  " + " ".join(
        entry.rjust(width) if number in numbers else entry.ljust(width)
        for number, (entry, width) in enumerate(zip(row, widths, strict=True))
    )
