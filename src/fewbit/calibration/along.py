"""Where the rows of a tensor are: seen from what one row and two rows make of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewbit.calibration.tree import tensors


@dataclass(frozen=True)
class Along:
    """`each` neighbours in dimension `dim` are of one row: tokens first, frames of a batch."""

    dim: int
    each: int

    def take(self, tensor: Tensor, rows: Tensor) -> Tensor:
        apart = tensor.unflatten(self.dim, (-1, self.each))
        return apart.index_select(self.dim, rows).flatten(self.dim, self.dim + 1)

    def by_row(self, tensor: Tensor) -> Tensor:
        """[rows, all else]"""
        return tensor.unflatten(self.dim, (-1, self.each)).movedim(self.dim, 0).flatten(1)


def rows_in(one: Any, two: Any) -> dict[str, Along] | None:
    """Of the tensors that have rows, by path, in two trees of outlines made of one row and of two.
    None where the trees differ in another way than that every row adds as much."""
    ones, twos = tensors(one), tensors(two)
    if ones.keys() != twos.keys():
        return None
    found = {}
    for path, tensor in ones.items():
        if tensor.shape == twos[path].shape:
            continue
        along = _along(tensor, twos[path])
        if along is None:
            return None
        found[path] = along
    return found


def _along(one: Tensor, two: Tensor) -> Along | None:
    if one.ndim != two.ndim:
        return None
    sizes = enumerate(zip(one.shape, two.shape, strict=True))
    grown = [(dim, before) for dim, (before, after) in sizes if before != after]
    if len(grown) != 1 or two.shape[grown[0][0]] != 2 * grown[0][1]:
        return None
    return Along(*grown[0])
