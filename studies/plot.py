"""Small plots as SVG, written by hand: lines over numbers, bars over names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import log2
from pathlib import Path

from fewbit.pages.axes import around, ticks

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 380, 64, 150, 36, 56
THICK, ADVANCE = 13, 6.6  # of a bar, and of a letter
COLOURS = ("#1f6fb4", "#d1495b", "#2a9d5c", "#8d5fb0", "#c98a1b", "#444444")

Series = Mapping[str, Sequence[tuple[float, float]]]


def lines(file: Path, title: str, x_label: str, y_label: str, series: Series,
          log: bool = False) -> None:  # fmt: skip
    """One line with dots for each of the series; `log` doubles x from tick to tick."""
    points = [point for one in series.values() for point in one]
    xs = [_place(x, log) for x, _ in points]
    low, high = around([y for _, y in points])
    left, right = min(xs), max(xs) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across = (_place(x, log) - left) / ((right - left) or 1.0)
        return LEFT + across * _inner_width(), _height(y, low, high)

    parts = [*_frame(title, x_label, y_label, low, high)]
    for x in sorted({x for x, _ in points}) if log else ticks(left, right):
        parts.append(_text(at(x, low)[0], HEIGHT - BOTTOM + 18, f"{x:g}", "middle"))
    for number, (name, one) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in one))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y in (at(*point) for point in one):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        parts.append(_text(WIDTH - RIGHT + 10, TOP + 14 + 18 * number, name, "start", colour))
    _write(file, parts)


def bars(file: Path, title: str, unit: str, names: Sequence[str],
         series: Mapping[str, Sequence[float]]) -> None:  # fmt: skip
    """A group of bars for each name, one under the other, with their numbers."""
    values = [0.0, *(x for one in series.values() for x in one)]
    low, high = min(values), max(values)
    left, right = ADVANCE * max(map(len, names)) + 16, WIDTH - 48
    group = THICK * len(series) + 6
    below = TOP + group * len(names)

    def across(x: float) -> float:
        return left + (x - low) / ((high - low) or 1.0) * (right - left)

    parts = [_text(WIDTH / 2, 20, f"{title}, {unit}" if unit else title, "middle", size=14)]
    for number, (label, one) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        for index, x in enumerate(one):
            y = TOP + index * group + number * THICK
            start, end = sorted((across(0.0), across(x)))
            parts.append(
                f'<rect x="{start:.1f}" y="{y:.1f}" width="{end - start:.1f}" '
                f'height="{THICK - 1}" fill="{colour}"/>'
            )
            parts.append(_text(end + 4, y + THICK - 4, f"{x:.1f}", "start", size=10))
        parts.append(_text(left + number * 160, below + 18, label, "start", colour))
    for index, name in enumerate(names):
        parts.append(_text(left - 8, TOP + (index + 0.5) * group + 1, name, "end"))
    _write(file, parts, below + 30)


def _frame(title: str, x_label: str, y_label: str, low: float, high: float) -> list[str]:
    middle = LEFT + _inner_width() / 2
    parts = [
        _text(middle, 20, title, "middle", size=14),
        _text(middle, HEIGHT - 8, x_label, "middle"),
        f'<text x="16" y="{HEIGHT / 2}" text-anchor="middle" '
        f'transform="rotate(-90 16 {HEIGHT / 2})">{escape(y_label)}</text>',
    ]
    for y in ticks(low, high):
        at = _height(y, low, high)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 8, at + 4, f"{y:g}", "end"))
    return parts


def _text(x: float, y: float, text: str, anchor: str, fill: str = "#222",
          size: int = 12) -> str:  # fmt: skip
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" '
        f'font-size="{size}">{escape(text)}</text>'
    )


def _write(file: Path, parts: Sequence[str], height: float = HEIGHT) -> None:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    )
    file.write_text("\n".join([head, *parts, "</svg>\n"]))


def _place(x: float, log: bool) -> float:
    return log2(x) if log else x


def _inner_width() -> int:
    return WIDTH - LEFT - RIGHT


def _height(y: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
