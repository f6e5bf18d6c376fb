"""What a notebook shows of a value: a title, lines and a table, in the notebook's own style."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def shown(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str] | str], lines: Sequence[str]
) -> str:
    """A row that is a text goes over all columns. Lines stand below the table."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{_cells(row, len(header))}</tr>\n" for row in rows)
    below = "".join(f"<div>{escape(line.strip())}</div>\n" for line in lines if line.strip())
    return (
        f"<div>\n<strong>{escape(title)}</strong>\n"
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n"
        f"{below}</div>\n"
    )


def _cells(row: Sequence[str] | str, columns: int) -> str:
    if isinstance(row, str):
        return f'<td colspan="{columns}">{escape(row.strip())}</td>'
    return "".join(f"<td>{escape(cell)}</td>" for cell in row)
