"""Reads a picture of two things back: colour by colour, outline by outline, with no network.

A thing is a connected patch that differs from the paper. Its colour is the nearest ink; its shape
and radius are those of the drawn outline that covers the patch best.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fewbit.demo.scenes import INKS, RADII, SHAPES, SIDES, SIZE, Scene, Thing, covers

INK_AT_LEAST = 60.0  # levels that a pixel must differ from the paper to be part of a thing
PIXELS_AT_LEAST = 24  # half of the least that is drawn
LIKENESS_AT_LEAST = 0.7  # shared area of patch and outline, to what either covers
_BORDER = 2
_FINEST = 0.5  # pixels between the radii that are tried


@dataclass(frozen=True)
class Seen:
    """A thing and its middle; `shape` and `size` are empty where no outline fits."""

    thing: Thing
    x: float
    y: float


def right_fields(image: Tensor, scene: Scene) -> Tensor:
    """Which fields of the scene the picture shows: that of the two readings which has more."""
    things = read(image)
    orders = [(0, 1), (1, 0)] if len(things) == 2 else [(0, None), (None, 0)]
    picked = [[things[i] if i is not None and things else None for i in order] for order in orders]
    rights = [_compare(first, second, scene) for first, second in picked]
    return max(rights, key=lambda right: int(right.sum()))  # (7,) bool


def read(image: Tensor) -> list[Seen]:
    """The two largest things of a picture with values in [-1, 1], or as many as there are."""
    levels = (image.double() + 1) * 127.5
    frame = torch.ones(SIZE, SIZE, dtype=torch.bool)
    frame[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    paper = levels[:, frame].median(1).values
    apart = (levels - paper[:, None, None]).norm(dim=0)
    patches = _patches(apart > INK_AT_LEAST)
    return [_see(levels - paper[:, None, None], patch, paper) for patch in patches[:2]]


def _compare(first: Seen | None, second: Seen | None, scene: Scene) -> Tensor:
    unseen = Thing("", "", "")
    one, two = (seen.thing if seen else unseen for seen in (first, second))
    relation = _relation(first, second) if first and second else ""
    shown = (one.size, one.colour, one.shape, relation, two.size, two.colour, two.shape)
    return torch.tensor([a == b for a, b in zip(shown, scene.fields, strict=True)])


def _relation(first: Seen, second: Seen) -> str:
    dx, dy = first.x - second.x, first.y - second.y
    return max(SIDES, key=lambda name: SIDES[name][0] * dx + SIDES[name][1] * dy)


def _patches(ink: Tensor) -> list[Tensor]:
    """Masks of the connected patches, the largest first."""
    label = torch.arange(1.0, SIZE * SIZE + 1).view(1, 1, SIZE, SIZE) * ink
    while True:
        spread = F.max_pool2d(label, 3, stride=1, padding=1) * ink
        if torch.equal(spread, label):
            break
        label = spread
    names, counts = label[label > 0].unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    return [label[0, 0] == names[i] for i in order.tolist() if counts[i] >= PIXELS_AT_LEAST]


def _see(ink: Tensor, patch: Tensor, paper: Tensor) -> Seen:
    colour = _full_colour(ink[:, patch])  # over the paper
    near = F.max_pool2d(patch[None].double(), 3, stride=1, padding=1)[0]  # with its soft edge
    cover = ((ink * colour[:, None, None]).sum(0) / colour.square().sum()).clamp(0, 1) * near
    pixel = torch.arange(SIZE, dtype=torch.float64) + 0.5
    mass = cover.sum()
    x, y = (cover.sum(0) * pixel).sum() / mass, (cover.sum(1) * pixel).sum() / mass
    names = list(INKS)
    inks = torch.tensor([INKS[name] for name in names], dtype=torch.float64)
    name = names[int((inks - paper - colour).norm(dim=1).argmin())]
    shape, size = _outline(cover, float(x), float(y))
    return Seen(Thing(size, name, shape), float(x), float(y))


def _full_colour(ink: Tensor) -> Tensor:
    """The median of the stronger half of the pixels, which edges do not reach."""
    strength = ink.norm(dim=0)
    return ink[:, strength >= strength.median()].median(1).values


def _outline(cover: Tensor, x: float, y: float) -> tuple[str, str]:
    """The shape and the size that are most like the patch."""
    radii = _radii()
    middle = (RADII["small"] + RADII["large"]) / 2
    best, shape, size = LIKENESS_AT_LEAST, "", ""
    pixel = torch.arange(SIZE, dtype=torch.float64) + 0.5
    for name in SHAPES:
        down = y - _centroid(name) * radii  # where the outline's middle is
        px = (pixel - x)[None, None, :].expand(len(radii), SIZE, SIZE)
        py = (pixel[None, :] - down[:, None])[:, :, None].expand(len(radii), SIZE, SIZE)
        drawn = covers(name, px, py, radii[:, None, None])
        shared, either = torch.minimum(drawn, cover), torch.maximum(drawn, cover)
        likeness, at = (shared.sum((1, 2)) / either.sum((1, 2))).max(0)
        if likeness > best:
            best, shape = float(likeness), name
            size = "small" if radii[at] < middle else "large"
    return shape, size


def _radii() -> Tensor:
    least, most = min(RADII.values()) - 2, max(RADII.values()) + 2
    return torch.arange(least, most + _FINEST, _FINEST, dtype=torch.float64)


@cache
def _centroid(shape: str) -> float:
    """How far below its middle a shape of radius 1 has its centroid; none lies aside."""
    at = torch.linspace(-1.2, 1.2, 481, dtype=torch.float64)
    y, x = torch.meshgrid(at, at, indexing="ij")
    inside = covers(shape, 100 * x, 100 * y, torch.tensor(100.0, dtype=torch.float64))
    return float((inside * y).sum() / inside.sum())
