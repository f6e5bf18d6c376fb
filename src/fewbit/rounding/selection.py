"""Which of several formats fits a matrix: by its ratio of largest to typical value, or by error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewbit.formats import Format, Spec
from fewbit.rounding.clipping import Fit
from fewbit.rounding.grid import Grid, round_to_nearest


def by_ratio(weight: Tensor, candidates: Sequence[Format], alpha: float) -> Tensor:
    """HQ-DiT: for each row of |W| the candidate whose ratio of largest to smallest positive level
    is nearest to s_w = max|W| / Quantile(|W|, α), on a logarithmic scale; as indices [rows]."""
    ratios = torch.tensor([float(fmt.integer_max) for fmt in candidates], device=weight.device)
    return (spread(weight, alpha).log()[:, None] - ratios.log()).abs().argmin(1)


def spread(weight: Tensor, alpha: float) -> Tensor:
    """s_w of each row, the largest magnitude over the α-quantile of magnitudes."""
    magnitudes = weight.abs().float()
    rank = 1 + round(alpha * (magnitudes.shape[1] - 1))
    typical = magnitudes.kthvalue(rank, dim=1).values
    return magnitudes.amax(1) / typical.clamp(min=torch.finfo(torch.float32).tiny)


def in_scale(weight: Tensor, spec: Spec) -> Tensor:
    """The weight with every part that has a scale of its own divided by its largest magnitude:
    what one part is louder than another by, no format has to hold."""
    if spec.span == "tensor":
        return weight
    grouped = weight.float().unflatten(1, (spec.groups(weight.shape[1]), -1))
    loudest = grouped.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return (grouped / loudest).flatten(1)


def lost(matrix: Tensor, spec: Spec, fit: Fit, moments: Tensor | None) -> Tensor:
    """[rows]: what plain rounding at the scales of `fit` loses of the product with inputs of these
    second moments [in, in]; without them, of the matrix itself."""
    error = round_to_nearest(matrix, Grid(spec, matrix, fit)).dequantize() - matrix
    return (error * (error if moments is None else error @ moments)).sum(1)


def by_error(
    matrix: Tensor, candidates: Sequence[Spec], fit: Fit, moments: Tensor | None = None
) -> Tensor:
    """For each row the candidate that loses least; as indices [rows]."""
    return torch.stack([lost(matrix, spec, fit, moments) for spec in candidates]).argmin(0)


def best_for_all(
    matrix: Tensor, candidates: Sequence[Spec], fit: Fit, moments: Tensor | None = None
) -> Spec:
    """The one candidate that loses least on the whole matrix."""
    return min(candidates, key=lambda spec: float(lost(matrix, spec, fit, moments).sum()))
