"""The shapes data set: 64x64 pictures of one coloured shape on a soft two-tone background.

Picture `i` of a seed depends on nothing but (seed, i); its class is `i % 12`. It is drawn in double
precision, so that machines which round differently still agree on every byte.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from fewbit.demo.counter import uniforms
from fewbit.demo.outlines import OUTLINES

NAMES = tuple(OUTLINES)
SIZE = 64

INKS = torch.tensor(
    [
        [230, 60, 55],
        [245, 145, 40],
        [250, 215, 70],
        [95, 200, 85],
        [60, 205, 205],
        [80, 140, 250],
        [190, 110, 240],
        [245, 245, 240],
    ],
    dtype=torch.float64,
)
PAPERS = torch.tensor(
    [[28, 32, 64], [58, 30, 70], [20, 66, 72], [74, 38, 34], [38, 58, 36], [62, 62, 72]],
    dtype=torch.float64,
)
_CHUNK = 72  # few enough for one thread per operation: threads would wait more than work
_TRAITS = 16


def labels(index: Iterable[int]) -> Tensor:
    return torch.tensor([i % len(NAMES) for i in index])


def pictures(seed: int, index: Iterable[int]) -> Tensor:
    """The pictures with these numbers, as bytes."""  # (N, 3, 64, 64) uint8
    numbers = np.fromiter(index, dtype=np.int64)
    chunks = [_draw(seed, numbers[i : i + _CHUNK]) for i in range(0, len(numbers), _CHUNK)]
    return torch.cat(chunks) if chunks else torch.empty(0, 3, SIZE, SIZE, dtype=torch.uint8)


def as_float(image: Tensor) -> Tensor:
    """Bytes to the [-1, 1] that the autoencoder and the classifier see."""
    return image.float() / 127.5 - 1


def _draw(seed: int, index: np.ndarray) -> Tensor:
    u = torch.from_numpy(uniforms(seed, index, _TRAITS))  # (N, 16)
    centres = torch.arange(SIZE, dtype=torch.float64) + 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    cover = _cover(u, torch.from_numpy(index % len(NAMES)), x, y)[:, None]
    image = cover * _ink(u)[:, :, None, None] + (1 - cover) * _background(u, x, y)
    return image.round().clamp(0, 255).to(torch.uint8)


def _cover(u: Tensor, kind: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """How much of each pixel the shape covers, from its signed distance."""  # (N, 64, 64)
    radius, turn, dx, dy = u[:, 0:4, None, None].unbind(1)
    radius = 15 + 7 * radius
    turn = (turn - 0.5) * math.radians(30)
    px = (x - SIZE / 2 - 14 * (dx - 0.5)) / radius
    py = (y - SIZE / 2 - 14 * (dy - 0.5)) / radius
    px, py = px * turn.cos() + py * turn.sin(), py * turn.cos() - px * turn.sin()
    distance = torch.empty_like(px)
    for number, outline in enumerate(OUTLINES.values()):
        mine = kind == number
        if mine.any():
            distance[mine] = outline(px[mine], py[mine])
    return (0.5 - distance * radius).clamp(0, 1)


def _ink(u: Tensor) -> Tensor:
    return INKS[(u[:, 4] * len(INKS)).long()] + 24 * (u[:, 5:8] - 0.5)  # (N, 3)


def _background(u: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Two dark papers that blend across a soft line."""  # (N, 3, 64, 64)
    first = (u[:, 8] * len(PAPERS)).long()
    second = (first + 1 + (u[:, 9] * (len(PAPERS) - 1)).long()) % len(PAPERS)
    tones = PAPERS[torch.stack([first, second])] + 16 * (u[:, 10:13] - 0.5)
    near, far = tones[..., None, None]  # (N, 3, 1, 1) each
    angle, place = 2 * math.pi * u[:, 13, None, None], 24 * (u[:, 14, None, None] - 0.5)
    across = (x - SIZE / 2) * angle.cos() + (y - SIZE / 2) * angle.sin() - place
    blend = torch.sigmoid(across / 8)[:, None]
    return near * (1 - blend) + far * blend
