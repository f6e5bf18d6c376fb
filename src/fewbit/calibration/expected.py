"""What the output of a model is expected to lose where one weight or one input is rounded.

`moments` are the sum of x·xᵀ over all tokens that a layer reads, and `feels` [out] how much the
output feels a squared error in what the layer gives. Inputs are thought of as smoothed, so that it
does not matter how loud a channel is whose weights are as much quieter. GPTQ is not run: an error
in a column of its result costs no more than the conditional variance of the column.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewbit.formats import Spec
from fewbit.rounding.clipping import least_error
from fewbit.rounding.gptq import conditional_variances
from fewbit.rounding.grid import Grid, round_to_nearest
from fewbit.rounding.steps import in_cache
from fewbit.transforms.principal import strongest
from fewbit.transforms.smooth import Smooth, balancing_scales

ROWS = 256  # of a weight, and of a normal input, that are rounded


def lost_by_weights(
    weight: Tensor, specs: Sequence[Spec], moments: Tensor, feels: Tensor
) -> Tensor:
    """float32 [specs], of a weight stored as each of them."""
    weight, moments = _smoothed(weight, moments)
    costs, every = conditional_variances(moments), -(-len(weight) // ROWS)
    rows, felt = weight[::every], every * feels[::every]
    return torch.stack([felt @ (error_of(rows, spec).square() @ costs) for spec in specs])


def error_of(weight: Tensor, spec: Spec) -> Tensor:
    """What rounding to nearest changes. Once outer scales are known, groups are rows of their own,
    which are rounded a few at a time."""
    if spec.span == "tensor":
        return round_to_nearest(weight, Grid(spec, weight, least_error)).dequantize() - weight
    count, outer = spec.groups(weight.shape[1]), least_error.outer(weight, spec)
    groups = weight.reshape(len(weight) * count, -1)
    if outer is not None:
        outer = outer.expand(len(weight), 1).repeat_interleave(count, 0)
    rounded = [
        _rounded(groups[part], spec.one_group, None if outer is None else outer[part])
        for part in in_cache(groups)
    ]
    return torch.cat(rounded).view_as(weight) - weight


def _rounded(weight: Tensor, spec: Spec, outer: Tensor | None) -> Tensor:
    return spec.round(weight, least_error(weight, spec, outer))


def lost_by_input(
    weight: Tensor, spec: Spec, ranks: Sequence[int], moments: Tensor, feels: Tensor
) -> Tensor:
    """float32 [ranks], of an input that keeps so many directions, ascending: noise that a rotation
    spreads evenly, as loud as what the directions leave of the smoothed input."""
    weight, moments = _smoothed(weight, moments)
    left = (moments.trace() - _kept(moments, ranks)).clamp(min=0).float()
    return left * _noise(spec, len(moments)) * (feels @ weight.square().mean(1))


def _kept(moments: Tensor, ranks: Sequence[int]) -> Tensor:
    """The power that so many directions have."""
    none = torch.zeros(1, dtype=torch.float64, device=moments.device)
    powers = strongest(moments, ranks[-1])[0] if ranks[-1] else none[:0]
    return torch.cat([none, powers.cumsum(0)])[list(ranks)]


def _smoothed(weight: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    smooth = Smooth(balancing_scales(moments.diagonal().sqrt(), weight.norm(dim=0), 0.5))
    return smooth.weight(weight), smooth(smooth(moments).T)


def _noise(spec: Spec, width: int) -> float:
    """The share of a normal input that rounding loses."""
    x = torch.randn(ROWS, width, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    return float((spec.round(x) - x).square().mean())
