"""Linears outside of the blocks that are worth quantizing: modulations that all blocks share.

Patch, time and text embedders and last projections stay: they are small or sensitive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import nn

from fewbit.models.lists import linears_in

PARTS = 3  # of a modulation: a shift, a scale and a gate
LEAST_SHARE = 0.002  # of all weights
_EMBEDDER = re.compile(r"embedder\.(mlp\.\d|linear_\d)$")


def shared_modulations(model: nn.Module, blocks: Sequence[str]) -> Iterator[str]:
    """Large linears that give several vectors as wide as the one that they read; which of them
    read one row for each image is for the caller to know."""
    inside = tuple(f"{block}." for block in blocks)
    least = LEAST_SHARE * sum(parameter.numel() for parameter in model.parameters())
    for name, linear in linears_in(model).items():
        parts, rest = divmod(linear.out_features, max(linear.in_features, 1))
        large = linear.weight.numel() > least
        stays = name.startswith(inside) or _EMBEDDER.search(name)
        if large and parts >= PARTS and not rest and not stays:
            yield name
