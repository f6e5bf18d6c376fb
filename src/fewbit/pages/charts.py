"""Charts as inline SVG: points, lines, heat maps, histograms. Colours come from the page's style.

Each says what it shows to those who cannot see it, and what tells its parts from each other is
never colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, isfinite, log10

from fewbit.pages.axes import around, ticks

WIDTH, HEIGHT = 440, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 16, 44
LABEL = 13  # height of a line of text
COLOURS = 8
LEVELS = 12  # shades of a heat map
DASHES = ("", "6 3", "2 3", "8 3 2 3")


@dataclass(frozen=True)
class Point:
    label: str
    x: float
    y: float
    low: float  # the interval of y
    high: float


@dataclass(frozen=True)
class Axes:
    x: str
    y: str


@dataclass(frozen=True)
class _Frame:
    """From values to places in the drawing."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * _inner_height()


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def hits(self, other: _Box) -> bool:
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)

    def inside(self) -> bool:
        return self.left >= LEFT and self.right <= WIDTH - 2 and self.top >= 2


def scatter(title: str, axes: Axes, points: Sequence[Point], front: Sequence[int]) -> str:
    """Points with their intervals and names; a dashed step joins those on the front."""
    ends = [end for point in points for end in (point.low, point.high)]
    frame = _Frame(*around([0.0, *(p.x for p in points)]), *around(ends))
    parts = [*_grid(frame, axes), *_front(frame, [points[i] for i in front])]
    spots = [(frame.x(point.x), frame.y(point.y)) for point in points]
    for number, (point, (x, y)) in enumerate(zip(points, spots, strict=True)):
        colour = f"var(--c{number % COLOURS})"
        parts.append(
            f'<g stroke="{colour}" fill="{colour}"><path d="M{x:.1f} {frame.y(point.low):.1f}'
            f'V{frame.y(point.high):.1f}" stroke-width="1.5"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/></g>'
        )
    parts += _names(points, spots)
    told = "; ".join(f"{p.label}: {axes.x} {p.x:.3g}, {axes.y} {p.y:.2f}" for p in points)
    return _svg(title, told, parts)


def lines(title: str, axes: Axes, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """One line for each of the series, told apart by colour and dashes; a legend stands below."""
    known = {name: [p for p in one if isfinite(p[1])] for name, one in series.items()}
    points = [point for one in known.values() for point in one]
    if not points:
        return ""
    frame = _Frame(*around([x for x, _ in points]), *around([y for _, y in points]))
    parts = _grid(frame, axes)
    told = []
    for number, (name, one) in enumerate(known.items()):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in one)
        parts.append(f'<polyline points="{path}" fill="none" {_stroke(number)}/>')
        if one:
            values = [y for _, y in one]
            told.append(f"{name}: {min(values):.1f} to {max(values):.1f}")
    return _svg(title, f"{axes.y} by {axes.x}. {'; '.join(told)}", parts) + legend(list(series))


def heat_map(title: str, rows: Mapping[str, Mapping[float, float]], low: float, high: float) -> str:
    """Rows from top to bottom, columns by their number; the stronger the nearer to `low`."""
    columns = sorted({column for row in rows.values() for column in row})
    tall = max(4.0, min(14.0, 300 / max(len(rows), 1)))
    wide = (WIDTH - LEFT - RIGHT) / max(len(columns), 1)
    place = {column: LEFT + wide * number for number, column in enumerate(columns)}
    shades: dict[int, list[str]] = {}
    for number, row in enumerate(rows.values()):
        for column, value in row.items():
            shades.setdefault(_shade(value, low, high), []).append(
                f"M{place[column]:.1f} {TOP + tall * number:.1f}h{wide:.1f}v{tall:.1f}h-{wide:.1f}z"
            )
    parts = [
        f'<path d="{"".join(cells)}" fill="var(--accent)" '
        f'fill-opacity="{(shade + 0.5) / LEVELS:.3f}" shape-rendering="crispEdges"/>'
        for shade, cells in sorted(shades.items())
    ]
    bottom = TOP + tall * len(rows)
    parts += [*_row_labels(list(rows), tall), *_hover(rows, tall)]
    for column in columns[:: max(1, ceil(len(columns) / 6))]:
        parts.append(_text(place[column] + wide / 2, bottom + LABEL + 2, f"{column:.0f}", "middle"))
    parts.append(_text(LEFT + (WIDTH - LEFT - RIGHT) / 2, bottom + 32, "timestep", "middle"))
    worst = min(
        ((value, name, column) for name, row in rows.items() for column, value in row.items()),
        default=None,
    )
    told = f"{len(rows)} layers by {len(columns)} timesteps."
    if worst:
        told += f" The worst is {worst[1]} at timestep {worst[2]:.0f} with {worst[0]:.1f} dB."
    return _svg(title, told, parts, bottom + 40) + _scale(low, high)


def histogram(title: str, edge: float, series: Mapping[str, Sequence[int]]) -> str:
    """Outlines over equal bins from -edge to edge; the height is logarithmic."""
    most = max(max(counts) for counts in series.values())
    frame = _Frame(-edge, edge, 0, ceil(log10(max(most, 10))))
    parts = _grid(frame, Axes("root mean squares of the token", "values, log10"))
    for number, counts in enumerate(series.values()):
        step = 2 * edge / len(counts)
        path = f"M{frame.x(-edge):.1f} {frame.y(0):.1f}"
        for place, one in enumerate(counts):
            path += f"V{frame.y(log10(max(one, 1))):.1f}H{frame.x(-edge + step * (place + 1)):.1f}"
        path += f"V{frame.y(0):.1f}"
        parts.append(f'<path d="{path}" fill="var(--c{number})" fill-opacity="0.12" '
                     f'{_stroke(number)}/>')  # fmt: skip
    told = f"Histograms of {' and '.join(series)}, from {-edge:g} to {edge:g}."
    return _svg(title, told, parts) + legend(list(series))


def bars(title: str, unit: str, values: Mapping[str, float]) -> str:
    """Lying bars with their names above them: names may be long."""
    finite = [value for value in values.values() if isfinite(value)]
    most = max(finite, default=1.0) or 1.0
    parts, pitch = [], 34
    for number, (name, value) in enumerate(values.items()):
        top = TOP + pitch * number
        wide = (WIDTH - 90) * max(0.0, min(value if isfinite(value) else most, most)) / most
        parts.append(_text(2, top + 8, name, "start"))
        parts.append(
            f'<rect x="2" y="{top + 13}" width="{wide:.1f}" height="10" rx="2" fill="var(--c0)"/>'
        )
        parts.append(_text(wide + 10, top + 22, f"{value:.1f} {unit}", "start", "strong"))
    told = "; ".join(f"{name} {value:.1f} {unit}" for name, value in values.items())
    return _svg(title, told, parts, TOP + pitch * len(values))


def legend(names: Sequence[str]) -> str:
    items = [
        f'<li><svg viewBox="0 0 26 12" aria-hidden="true"><path d="M0 6H26" fill="none" '
        f"{_stroke(number)}/></svg> {escape(name)}</li>"
        for number, name in enumerate(names)
    ]
    return f'<ul class="legend">{"".join(items)}</ul>\n'


def _stroke(number: int) -> str:
    dash = DASHES[(number // 2) % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="var(--c{number % COLOURS})" stroke-width="2"{dashed}'


def _svg(title: str, told: str, parts: Sequence[str], height: float = HEIGHT) -> str:
    label = escape(f"{title}. {told}")
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{label}">'
    return "\n".join([head, *parts, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(text)}</text>'


def _grid(frame: _Frame, axes: Axes) -> list[str]:
    parts = []
    for value in ticks(frame.low, frame.high):
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 7, y + 4, f"{value:g}", "end"))
    for value in ticks(frame.left, frame.right):
        parts.append(_text(frame.x(value), HEIGHT - BOTTOM + LABEL + 4, f"{value:g}", "middle"))
    middle = TOP + _inner_height() / 2
    parts.append(_text(LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 6, axes.x, "middle"))
    parts.append(
        f'<text transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(axes.y)}</text>"
    )
    return parts


def _front(frame: _Frame, points: Sequence[Point]) -> list[str]:
    """Steps: between two points on the front nothing better is known."""
    if not points:
        return []
    ordered = sorted(points, key=lambda point: point.x)
    path = f"M{frame.x(ordered[0].x):.1f} {frame.y(ordered[0].y):.1f}"
    for point in ordered[1:]:
        path += f"H{frame.x(point.x):.1f}V{frame.y(point.y):.1f}"
    return [f'<path class="front" d="{path}"/>']


def _names(points: Sequence[Point], spots: Sequence[tuple[float, float]]) -> list[str]:
    """Beside its point, where it covers no point and no other name if there is such a place."""
    taken = [_Box(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    parts = []
    for point, (x, y) in zip(points, spots, strict=True):
        wide = 7.2 * len(point.label)
        places = [
            (side, y + down)
            for down in (0, -LABEL, LABEL, -2 * LABEL, 2 * LABEL)
            for side in (9, -9)
        ]
        boxes = [
            _Box(left, middle - LABEL / 2, left + wide, middle + LABEL / 2)
            for side, middle in places
            for left in [x + side if side > 0 else x + side - wide]
        ]
        free = (n for n, box in enumerate(boxes) if box.inside() and not any(map(box.hits, taken)))
        chosen = next(free, 0)
        taken.append(boxes[chosen])
        side, middle = places[chosen]
        anchor = "start" if side > 0 else "end"
        parts.append(_text(x + side, middle + 4, point.label, anchor, "strong"))
    return parts


def _row_labels(names: Sequence[str], tall: float) -> list[str]:
    """Of rows that begin alike, as those of one block do, only the first."""
    parts, last = [], -float("inf")
    before = ""
    for number, name in enumerate(names):
        block = next((part for part in name.split(".") if part.isdigit()), "")
        y = TOP + tall * number
        if block != before and y - last >= LABEL:
            parts.append(_text(LEFT - 7, y + min(tall, LABEL) - 1, f"block {block}", "end"))
            last = y
        before = block
    return parts


def _hover(rows: Mapping[str, Mapping[float, float]], tall: float) -> Iterator[str]:
    for number, (name, row) in enumerate(rows.items()):
        mean = sum(row.values()) / max(len(row), 1)
        yield (
            f'<rect x="{LEFT}" y="{TOP + tall * number:.1f}" width="{WIDTH - LEFT - RIGHT}" '
            f'height="{tall:.1f}" fill="transparent"><title>{escape(name)}: {mean:.1f} dB</title>'
            "</rect>"
        )


def _shade(value: float, low: float, high: float) -> int:
    share = (high - value) / ((high - low) or 1.0) if isfinite(value) else float(value < 0)
    return min(LEVELS - 1, max(0, int(share * LEVELS)))


def _scale(low: float, high: float) -> str:
    steps = "".join(
        f'<rect x="{12 * n}" width="12" height="10" fill="var(--accent)" '
        f'fill-opacity="{(n + 0.5) / LEVELS:.3f}"/>'
        for n in range(LEVELS)
    )
    return (
        f'<ul class="legend"><li>{high:.0f} dB or more '
        f'<svg style="width:{12 * LEVELS}px;height:10px" '
        f'viewBox="0 0 {12 * LEVELS} 10" aria-hidden="true">{steps}</svg> {low:.0f} dB '
        "or less</li></ul>\n"
    )


def _inner_height() -> int:
    return HEIGHT - TOP - BOTTOM
