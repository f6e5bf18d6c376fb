"""Linears outside of the blocks that are worth quantizing: modulations that all blocks share.

Patch, time and text embedders and last projections stay: they are small or sensitive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from torch import nn

from fewbit.models.lists import linears_in

PARTS = 3  # of a modulation: a shift, a scale and a gate
LEAST_SHARE = 0.002  # of all weights


def shared_modulations(model: nn.Module, blocks: Sequence[str]) -> Iterator[str]:
    """Large linears that read a vector as wide as the tokens of the blocks and give several; which
    of them read one row for each image is for the caller to know."""
    inside = tuple(f"{block}." for block in blocks)
    linears = linears_in(model)
    widths = Counter(one.in_features for name, one in linears.items() if name.startswith(inside))
    [(width, _)] = widths.most_common(1)
    least = LEAST_SHARE * sum(parameter.numel() for parameter in model.parameters())
    for name, linear in linears.items():
        parts, rest = divmod(linear.out_features, width)
        fits = linear.in_features == width and parts >= PARTS and not rest
        if fits and linear.weight.numel() > least and not name.startswith(inside):
            yield name
