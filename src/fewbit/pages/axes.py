"""Axes of charts: round numbers around values, and the ticks between them."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10

INTERVALS = 5  # of an axis, about


def around(values: Sequence[float]) -> tuple[float, float]:
    """Round numbers around all values."""
    step = _step(min(values), max(values))
    low, high = floor(min(values) / step) * step, ceil(max(values) / step) * step
    return low, high if high > low else low + step


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from one to the other."""
    step = _step(low, high)
    return [round(step * n, 10) for n in range(ceil(low / step), floor(high / step) + 1)]


def _step(low: float, high: float) -> float:
    raw = (high - low) / INTERVALS or 1.0
    power = 10.0 ** floor(log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
