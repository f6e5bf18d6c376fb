"""What stands between the layers of a block, read from autograd's graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Flag, auto
from typing import Any

Node = Any  # of autograd's graph

_ACTIVATIONS = (
    "Gelu", "Silu", "Relu", "LeakyRelu", "Elu", "Tanh", "Sigmoid", "Softplus", "Mish", "Glu",
    "Hardswish", "Hardtanh", "Threshold", "Erf",
)  # fmt: skip
_MIXING = ("Bmm", "Mm", "Addmm", "Baddbmm", "Convolution", "Softmax", "LogSoftmax", "Cumsum")
_SHAPING = (
    "View", "UnsafeView", "ReshapeAlias", "Transpose", "Permute", "T", "Clone", "Slice", "Split",
    "SplitWithSizes", "Unbind", "Select", "Cat", "Squeeze", "Unsqueeze", "Expand", "Alias",
    "ToCopy", "Unflatten", "Narrow", "Chunk", "Copy", "UnsafeSplit", "Detach",
)  # fmt: skip


class Met(Flag):
    """What a path through the graph has met on its way."""

    NOTHING = 0
    ACTIVATION = auto()
    SUM = auto()  # of two things that layers of the block have given
    ADDED = auto()  # something that comes from outside of the block, or a number
    MIXING = auto()  # of tokens or channels, by a product
    NUMBERS = auto()  # anything that changes numbers and not only their places


def sources(start: Node, ends: Mapping[Node, str]) -> dict[str, set[Met]]:
    """Which of the `ends` are reached first going back from `start`, and what was met before."""
    found: dict[str, set[Met]] = {}
    seen: set[tuple[Node, Met]] = set()
    waiting = [] if start is None else [(start, Met.NOTHING)]
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        node, met = at
        if node in ends:
            found.setdefault(ends[node], set()).add(met)
        else:
            met |= _met(node)
            waiting += [(before, met) for before in _before(node)]
    return found


def joined(start: Node) -> list[Node]:
    """The parts that were put side by side to make this tensor, first to last."""
    node = start
    while node is not None and _kind(node) != "Cat":
        before = list(_before(node))
        if len(before) != 1 or _kind(node) not in _SHAPING:
            return []
        node = before[0]
    return [] if node is None else [before for before, _ in node.next_functions]


def _met(node: Node) -> Met:
    kind = _kind(node)
    if kind in _SHAPING:
        return Met.NOTHING
    if kind in _ACTIVATIONS:
        return Met.ACTIVATION | Met.NUMBERS
    if kind in _MIXING:
        return Met.MIXING | Met.NUMBERS
    if kind in ("Add", "Sub"):
        return (Met.SUM if len(list(_before(node))) > 1 else Met.ADDED) | Met.NUMBERS
    return Met.NUMBERS


def _before(node: Node) -> Iterator[Node]:
    return (before for before, _ in node.next_functions if before is not None)


def _kind(node: Node) -> str:
    """`GeluBackward0` -> `Gelu`"""
    name: str = node.name()
    return name.partition("Backward")[0]
