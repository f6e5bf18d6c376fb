"""What became of a model in a recipe: one cell of a table, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LONGEST = 100  # characters of an error


def said(cell: Mapping[str, Any]) -> str:
    if "db" in cell:
        good = all(cell.get(name, True) for name in ("equal", "judged"))
        return f"{cell['db']:.1f}" if good else "loaded otherwise"
    error = cell.get("error") or cell["raw"].strip().splitlines()[-1]
    short = error[:LONGEST].replace("|", "/").replace("\n", " ")
    return f"refused: {short}" if "error" in cell else f"BROKEN: {short}"
