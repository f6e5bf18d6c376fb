"""Second moments of a layer's inputs, streamed: all that a solver is told of the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.errors import BadCalibration

SMALLEST = torch.finfo(torch.float32).tiny


class SecondMoments:
    """Running Σ x·xᵀ, Σ of sample weights, and the largest |x| of each channel, all in float32.

    Every minibatch is summed by one matmul, so the running sum sees thousands of additions and
    not millions: its error stays orders of magnitude under GPTQ's damping.
    """

    def __init__(self, channels: int, device: torch.device | str | None = None) -> None:
        self.sum = torch.zeros(channels, channels, device=device)
        self.rows = 0.0
        self.absmax = torch.zeros(channels, device=device)

    def update(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Add inputs x [..., channels].

        `weight` [...] is how much each row counts, a bool mask or numbers; a row of weight zero
        (padding) never enters, not even when it holds NaN.
        """
        rows = x.detach().flatten(0, -2)
        if weight is None:
            weight = torch.ones(len(rows), device=x.device)
        weight = weight.flatten().float()
        rows, weight = rows[weight > 0].float(), weight[weight > 0]
        if len(rows):
            self.sum.addmm_((rows * weight[:, None]).T, rows)
            self.rows += weight.sum(dtype=torch.float64).item()
            self.absmax = torch.maximum(self.absmax, rows.abs().amax(0))

    def mean(self) -> Tensor:
        """The average of x·xᵀ: exactly symmetric."""
        if self.rows == 0:
            raise BadCalibration(
                f"second moments of {len(self.sum)} inputs saw no rows; allowed: one or more"
            )
        return (self.sum + self.sum.T) / (2 * self.rows)


@dataclass(frozen=True)
class Paired:
    """How inputs x̂ vary around their mean, and together with the inputs x that they stand for."""

    square: Tensor  # [in, in], the mean of x̂·x̂ᵀ around the means
    cross: Tensor  # [in, in], the mean of x·x̂ᵀ around the means
    exact: Tensor  # float64 [in], the mean of x
    actual: Tensor  # float64 [in], the mean of x̂

    def around_zero(self) -> Paired:
        """The same for a layer without a bias, which can make up for no difference of means."""
        square = self.square + self.actual.outer(self.actual).to(self.square)
        cross = self.cross + self.exact.outer(self.actual).to(self.cross)
        return Paired(square, cross, 0 * self.exact, 0 * self.actual)

    def target(self, weight: Tensor, damping: float) -> Tensor:
        """The W' [out, in] whose product with x̂ is nearest to W·x; damping holds it near W. The
        energy of W·x - Q·x̂ is that of (W' - Q)·x̂ and a constant: W' is what to round."""
        square, wide = self.square.double(), weight.double()
        ridge = damping * square.diagonal().mean().clamp(min=SMALLEST)
        damped = square + ridge * torch.eye(len(square)).to(square)
        wanted = wide @ self.cross.double() + ridge * wide
        return torch.linalg.solve(damped, wanted, left=False).to(weight)

    def missing(self, weight: Tensor, rounded: Tensor) -> Tensor:
        """What the bias must add, float64 [out]: the mean of W·x - Q·x̂."""
        return weight.double() @ self.exact - rounded.double() @ self.actual


class PairedMoments:
    """Running moments of inputs x̂ and of those that they stand for, sample by sample."""

    def __init__(self) -> None:
        self.square = self.cross = self.exact = self.actual = torch.zeros(())
        self.rows = 0.0

    def update(self, exact: Tensor, actual: Tensor, weight: Tensor) -> None:
        """Add x and x̂ [..., in]; `weight` [...] is how much each row counts, and 0 of padding."""
        weight = weight.flatten().float()
        rows = (one.detach().flatten(0, -2)[weight > 0].float() for one in (exact, actual))
        (x, given), weight = rows, weight[weight > 0]
        weighted, total = given * weight[:, None], weight.double()
        self.square = self.square + weighted.T @ given
        self.cross = self.cross + x.T @ weighted
        self.exact = self.exact + total @ x.double()
        self.actual = self.actual + total @ given.double()
        self.rows += total.sum().item()

    def mean(self) -> Paired:
        if self.rows == 0:
            raise BadCalibration("pairs of inputs saw no rows; allowed: one or more")
        exact, actual = self.exact / self.rows, self.actual / self.rows
        square = self.square.double() / self.rows - actual.outer(actual)
        cross = self.cross.double() / self.rows - exact.outer(actual)
        return Paired(((square + square.T) / 2).float(), cross.float(), exact, actual)
