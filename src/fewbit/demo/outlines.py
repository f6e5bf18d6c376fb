"""The twelve outlines of the shapes data set, as signed distances (negative inside).

Every outline lies in a disc of radius 1.05, y points down, and is made from discs and polygons.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Outline = Callable[[Tensor, Tensor], Tensor]
Point = tuple[float, float]


def _disc(x: float, y: float, radius: float) -> Outline:
    return lambda px, py: torch.hypot(px - x, py - y) - radius


def _polygon(*corners: Point) -> Outline:
    def distance(px: Tensor, py: Tensor) -> Tensor:
        nearest = torch.full_like(px, math.inf)
        inside = torch.zeros_like(px, dtype=torch.bool)
        for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
            ex, ey = bx - ax, by - ay
            along = ((px - ax) * ex + (py - ay) * ey) / (ex * ex + ey * ey)
            along = along.clamp(0, 1)
            dx, dy = px - ax - along * ex, py - ay - along * ey
            nearest = torch.minimum(nearest, dx * dx + dy * dy)
            if ey != 0:
                crosses = ((ay > py) != (by > py)) & (px < ax + (py - ay) * (ex / ey))
                inside ^= crosses
        return torch.where(inside, -nearest.sqrt(), nearest.sqrt())

    return distance


def _regular(count: int, radius: float = 1.0, turn: float = 0.0) -> list[Point]:
    """Corners on a circle, the first one at the top, then clockwise."""
    angles = [2 * math.pi * (i + turn) / count for i in range(count)]
    return [(radius * math.sin(a), -radius * math.cos(a)) for a in angles]


def _union(*parts: Outline) -> Outline:
    return lambda px, py: torch.stack([part(px, py) for part in parts]).amin(0)


def _without(whole: Outline, hole: Outline) -> Outline:
    return lambda px, py: torch.maximum(whole(px, py), -hole(px, py))


def _star(points: int, inner: float) -> Outline:
    tips, notches = _regular(points), _regular(points, inner, 0.5)
    return _polygon(*[corner for pair in zip(tips, notches, strict=True) for corner in pair])


def _cross(length: float, half: float) -> Outline:
    quarter = [(-half, -length), (half, -length), (half, -half)]
    turns = [(1, 0), (0, 1), (-1, 0), (0, -1)]
    return _polygon(*[(x * c - y * s, x * s + y * c) for c, s in turns for x, y in quarter])


def _heart(half: float = 0.66, middle: float = 0.28) -> Outline:
    """A square standing on its tip, with a disc on each of its two upper sides."""
    bottom, top = (0.0, middle + half), (0.0, middle - half)
    square = _polygon(bottom, (-half, middle), top, (half, middle))
    radius = half / math.sqrt(2)
    return _union(
        square,
        _disc(-half / 2, middle - half / 2, radius),
        _disc(half / 2, middle - half / 2, radius),
    )


def _drop(radius: float = 0.62) -> Outline:
    """A disc with the two tangents that meet in a tip at the top."""
    middle = 1 - radius
    cosine = radius / (middle + 1)
    x, y = radius * math.sqrt(1 - cosine * cosine), middle - radius * cosine
    return _union(_disc(0, middle, radius), _polygon((0, -1), (x, y), (-x, y)))


OUTLINES: dict[str, Outline] = {
    "arrow": _polygon(
        (0, -1), (0.78, -0.1), (0.3, -0.1), (0.3, 0.92), (-0.3, 0.92), (-0.3, -0.1), (-0.78, -0.1)
    ),
    "circle": _disc(0, 0, 0.88),
    "crescent": _without(_disc(0, 0, 0.95), _disc(0.48, -0.1, 0.78)),
    "cross": _cross(0.92, 0.3),
    "diamond": _polygon((0, -1), (0.62, 0), (0, 1), (-0.62, 0)),
    "drop": _drop(),
    "heart": _heart(),
    "hexagon": _polygon(*_regular(6)),
    "ring": _without(_disc(0, 0, 0.92), _disc(0, 0, 0.5)),
    "square": _polygon((-0.74, -0.74), (0.74, -0.74), (0.74, 0.74), (-0.74, 0.74)),
    "star": _star(5, 0.45),
    "triangle": _polygon(*_regular(3)),
}
