"""The Fréchet distance between two sets of features, and how much of it is too few pictures.

With Inception's pooled features this is FID (Heusel et al. 2017), with its spatial ones sFID
(Nash et al. 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewbit.errors import BadArgument
from fewbit.judge.moments import Gaussian


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½).

    The trace of the root comes from the symmetric C1^½ C2 C1^½, which has the eigenvalues of C1 C2
    and cannot have complex ones. Directions in which C1 has no extent are left out: their zeros
    would come back as the roots of rounding errors.
    """
    if one.mean.shape != other.mean.shape:
        raise BadArgument(
            f"cannot compare {len(one.mean)} features with {len(other.mean)}; "
            "both sets must be seen by the same feature net"
        )
    values, vectors = torch.linalg.eigh(one.covariance)
    extended = values > _noise(values)
    root = vectors[:, extended] * values[extended].sqrt()  # (D, rank), root rootᵀ = C1
    shared = torch.linalg.eigvalsh(root.T @ other.covariance @ root)
    fidelity = shared[shared > _noise(shared)].sqrt().sum()
    apart = (one.mean - other.mean).square().sum()
    spread = one.covariance.trace() + other.covariance.trace()
    return max(0.0, (apart + spread - 2 * fidelity).item())


def sampling_bias(one: Gaussian, other: Gaussian) -> float:
    """About how much larger the distance is than that of endless sets, for normal features.

    To first order in 1/N, at equal covariances with eigenvalues l: (1/N1 + 1/N2) times
    sum(l) + ½ sum over i, j of (1 + [i = j]) l_i l_j / (l_i + l_j), the mean's share and the
    covariance's (the second-order expansion of the Bures metric, averaged over Wishart noise).
    """
    values = torch.linalg.eigvalsh(one.covariance).clamp(min=0)
    both = values[:, None] + values
    halves = torch.where(both > 0, values[:, None] * values / both, 0)
    extent = values.sum() + (halves.sum() + halves.diagonal().sum()) / 2
    return extent.item() * sum(1 / part.count for part in (one, other) if part.count)


def refuse_too_few(pictures: int, features: int, remedy: str) -> None:
    """With as many pictures as features or fewer, the covariance cannot have full rank."""
    if pictures <= features:
        excess = (features + 5) / (4 * max(pictures, 1))  # sampling_bias, at its largest
        raise BadArgument(
            f"a Fréchet distance over {features} features needs at least {features + 1} pictures, "
            f"got {pictures}, with which it would come out too large by up to {excess:.2g} times "
            f"the features' variance; {remedy}"
        )


def _noise(values: Tensor) -> Tensor:
    """What rounding leaves where an eigenvalue should be zero."""
    largest = values.abs().max() if len(values) else values.new_zeros(())
    return largest * len(values) * torch.finfo(values.dtype).eps
