"""Second moments of a layer's inputs, streamed: all that a solver is told of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from fewbit.errors import BadCalibration


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
