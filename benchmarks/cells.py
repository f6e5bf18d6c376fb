"""What became of a model in a recipe: one cell of a table, and the same in words."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from environment import commit

import fewbit

LONGEST = 100  # characters of an error


def cell_of(through: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What it gives, or the error of fewbit's or of another that it ends in; the seconds, and the
    commit, since a table may be filled in several runs."""
    started = time.perf_counter()
    try:
        cell = through()
    except fewbit.FewbitError as error:
        cell = {"error": str(error)}
    except Exception:  # the cell tells it; the table goes on
        cell = {"raw": traceback.format_exc(limit=-4)}
    return {**cell, "seconds": round(time.perf_counter() - started, 1), "commit": commit()}


def said(cell: Mapping[str, Any]) -> str:
    if "db" in cell:
        good = all(cell.get(name, True) for name in ("equal", "judged"))
        return f"{cell['db']:.1f}" if good else "loaded otherwise"
    error = cell.get("error") or cell["raw"].strip().splitlines()[-1]
    short = error[:LONGEST].replace("|", "/").replace("\n", " ")
    return f"refused: {short}" if "error" in cell else f"BROKEN: {short}"
