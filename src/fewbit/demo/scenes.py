"""The scenes data set: 64x64 pictures of two things on dark paper, and the captions that say so.

A caption is "a small red circle above a large blue square". Scene `i` of a seed depends on nothing
but (seed, i), and is drawn in double precision like the shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewbit.demo.counter import uniforms
from fewbit.demo.outlines import OUTLINES
from fewbit.errors import BadArgument

SIZE = 64
RADII = {"small": 8.0, "large": 13.0}
INKS = {
    "red": (230, 60, 55),
    "yellow": (250, 215, 70),
    "green": (70, 190, 85),
    "blue": (60, 120, 250),
    "purple": (185, 80, 220),
    "white": (245, 245, 240),
}
SHAPES = ("circle", "cross", "ring", "square", "triangle")
LENGTH = 11  # words of the longest caption, and the end
SIDES = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
"""Where the first thing is, seen from the second."""
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
QUALITIES: tuple[tuple[str, ...], ...] = (tuple(RADII), tuple(INKS), SHAPES)
FIELDS = ("size", "colour", "shape", "relation", "other size", "other colour", "other shape")

_PAPER = (34, 38, 66)
_APART = 15.5  # each thing's distance from the middle: two large ones just do not touch
_TRAITS = 24
_CHUNK = 96


@dataclass(frozen=True)
class Thing:
    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    first: Thing
    relation: str
    second: Thing

    @property
    def caption(self) -> str:
        return f"{self.first} {self.relation} {self.second}"

    @property
    def fields(self) -> tuple[str, ...]:
        """In the order of FIELDS."""
        one, two = self.first, self.second
        return one.size, one.colour, one.shape, self.relation, two.size, two.colour, two.shape


def scenes(seed: int, index: Iterable[int]) -> list[Scene]:
    """Every field has each of its values equally often, whatever the others are."""
    return [_scene(row) for row in uniforms(seed, _numbers(index), _TRAITS)]


def parse(caption: str) -> Scene:
    """The scene that a caption describes."""
    words = caption.lower().split()
    first, relation, second = words[:4], " ".join(words[4:-4]), words[-4:]
    if relation not in SIDES or len(words) < 9:
        raise BadArgument(f"{caption!r} is no scene; one is {_EXAMPLE.caption!r}")
    return Scene(_thing(first, caption), relation, _thing(second, caption))


def pictures(seed: int, index: Iterable[int]) -> Tensor:
    """The pictures of the scenes with these numbers, as bytes."""  # (N, 3, 64, 64) uint8
    numbers = _numbers(index)
    chunks = [_draw(seed, numbers[i : i + _CHUNK]) for i in range(0, len(numbers), _CHUNK)]
    return torch.cat(chunks) if chunks else torch.empty(0, 3, SIZE, SIZE, dtype=torch.uint8)


def covers(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """How much of each pixel a shape covers whose middle is (x, y) pixels away."""
    return (0.5 - OUTLINES[shape](x / radius, y / radius) * radius).clamp(0, 1)


_EXAMPLE = Scene(Thing("small", "red", "circle"), "above", Thing("large", "blue", "square"))


def _numbers(index: Iterable[int]) -> np.ndarray:
    return np.fromiter(index, dtype=np.int64)


def _thing(words: Sequence[str], caption: str) -> Thing:
    article, *fields = words
    for field, allowed in zip(fields, QUALITIES, strict=True):
        if field not in allowed:
            raise BadArgument(f"{field!r} in {caption!r} is unknown; allowed: {', '.join(allowed)}")
    if article != "a":
        raise BadArgument(f"{caption!r} is no scene; one is {_EXAMPLE.caption!r}")
    return Thing(*fields)


def _scene(u: np.ndarray) -> Scene:
    def choose(names: Sequence[str], trait: int) -> str:
        return names[int(u[trait] * len(names))]

    first, second = (
        Thing(*[choose(names, i) for i, names in enumerate(QUALITIES, start)]) for start in (0, 3)
    )
    return Scene(first, choose(tuple(SIDES), 6), second)


def _draw(seed: int, numbers: np.ndarray) -> Tensor:
    u = torch.from_numpy(uniforms(seed, numbers, _TRAITS))  # (N, 24)
    shade = 10 * (u[:, 7:8] - 0.5) + torch.tensor(_PAPER, dtype=torch.float64)
    image = shade[:, :, None, None].expand(-1, -1, SIZE, SIZE)
    all_scenes = [_scene(row) for row in u.numpy()]
    for sign, trait in ((1, 8), (-1, 16)):
        things = [scene.first if sign > 0 else scene.second for scene in all_scenes]
        sides = torch.tensor([SIDES[scene.relation] for scene in all_scenes])
        cover = _cover(things, sign * sides, u[:, trait : trait + 3])[:, None]
        ink = torch.tensor([INKS[thing.colour] for thing in things], dtype=torch.float64)
        ink = ink + 12 * (u[:, trait + 3 : trait + 6] - 0.5)
        image = cover * ink[:, :, None, None] + (1 - cover) * image
    return image.round().clamp(0, 255).to(torch.uint8)


def _cover(things: Sequence[Thing], sides: Tensor, u: Tensor) -> Tensor:
    """A thing strays little along the line that joins the two, and more across it."""
    along, across = 3 * (u[:, :1] - 0.5), 8 * (u[:, 1:2] - 0.5)
    centres = SIZE / 2 + (_APART + along) * sides + across * sides.flip(1).abs()
    radius = torch.tensor([RADII[thing.size] for thing in things]) + (u[:, 2] - 0.5)
    pixel = torch.arange(SIZE, dtype=torch.float64) + 0.5
    y, x = torch.meshgrid(pixel, pixel, indexing="ij")
    x, y = x - centres[:, 0, None, None], y - centres[:, 1, None, None]  # (N, 64, 64)
    cover = torch.empty_like(x)
    for shape in SHAPES:
        mine = torch.tensor([thing.shape == shape for thing in things])
        cover[mine] = covers(shape, x[mine], y[mine], radius[mine, None, None])
    return cover
