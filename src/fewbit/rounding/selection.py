"""Which few-bit float fits a tensor: by its ratio of largest to typical value, or by error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewbit.formats import Format, Spec


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


def by_error(weight: Tensor, candidates: Sequence[Spec]) -> Tensor:
    """For each row the candidate whose plain rounding loses least; as indices [rows]."""
    errors = [(spec.round(weight) - weight).square().sum(1) for spec in candidates]
    return torch.stack(errors).argmin(0)


def best_for_all(matrix: Tensor, candidates: Sequence[Spec]) -> Spec:
    """The one candidate that loses least on the whole matrix."""
    return min(candidates, key=lambda spec: float((spec.round(matrix) - matrix).square().sum()))
