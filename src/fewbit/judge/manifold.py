"""Improved precision and recall (Kynkäänniemi et al. 2019): are these pictures of that kind?

A set's manifold is the union of balls, one around each of its points, that just reach the point's
k-th neighbour in the set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.errors import BadArgument

NEIGHBOURS = 3
CHUNK = 1024  # rows of distances in memory at a time


@dataclass(frozen=True)
class Manifolds:
    precision: float  # of the drawn points that lie on the real manifold
    recall: float  # of the real points that lie on the drawn manifold


def precision_recall(real: Tensor, drawn: Tensor, neighbours: int = NEIGHBOURS) -> Manifolds:
    """Of features [N, D] and [M, D]."""
    fewest = min(len(real), len(drawn))
    if fewest <= neighbours:
        raise BadArgument(
            f"precision and recall with {neighbours} neighbours need at least {neighbours + 1} "
            f"pictures of each kind, got {fewest}; the fewer, the larger the balls and both scores"
        )
    real, drawn = real.double(), drawn.double()
    return Manifolds(
        precision=_share_inside(drawn, real, _radii(real, neighbours)),
        recall=_share_inside(real, drawn, _radii(drawn, neighbours)),
    )


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """Squared, to the k-th of the other points."""
    nearest = [
        rows.kthvalue(neighbours + 1).values  # every point is its own nearest
        for rows in _squared_distances(points, points)
    ]
    return torch.cat(nearest)


def _share_inside(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    inside = sum(int((rows <= radii).any(1).sum()) for rows in _squared_distances(points, centres))
    return inside / len(points)


def _squared_distances(points: Tensor, others: Tensor) -> Iterator[Tensor]:
    """[CHUNK, M] at a time. Features come as float32, so cancellation leaves half the digits."""
    lengths = others.square().sum(1)
    for rows in points.split(CHUNK):
        squared = rows.square().sum(1, keepdim=True) + lengths - 2 * rows @ others.T
        yield squared.clamp(min=0)
