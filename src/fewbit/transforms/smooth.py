"""Per-channel smoothing: x/s on the input, W·s in the weight, and the product is the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewbit.errors import BadArgument
from fewbit.kernels.values import Rotation
from fewbit.transforms.transform import Transform, checked_width, same_width

KIND = "smooth"
LARGEST_LOG = 11.5  # scales stay within 1e-5 .. 1e5


class Smooth(Transform):
    """One positive scale per input channel."""

    scales: Tensor

    def __init__(self, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        return (x / self.scales).to(x.dtype)

    def split(self) -> tuple[None, Rotation]:
        signs = torch.ones_like(self.scales, dtype=torch.int8)
        return None, Rotation(signs, (), self.scales)

    def check_width(self, columns: int) -> None:
        same_width(len(self.scales), columns)

    def weight(self, weight: Tensor) -> Tensor:
        return (weight * self.scales).to(weight.dtype)

    def config(self) -> dict[str, Any]:
        return {"kind": KIND, "width": len(self.scales)}

    def extra_repr(self) -> str:
        return "smooth"


def from_config(config: dict[str, Any]) -> Smooth:
    return Smooth(torch.empty(checked_width(config["width"])))


def smoothing_scales(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """s = |x|^α / |W|^(1-α) per channel, SmoothQuant (Xiao et al. 2023), equation 4, for whatever
    measure of loudness. SmoothQuant takes the largest magnitudes. Before a rotation, which spreads
    rounding noise evenly, α = 1/2 on root mean squares makes the noise of the output smallest.

    Divided by their geometric mean, a factor that cancels in the product, so that a channel that
    calibration or the weight left at zero keeps a neutral 1 and no scale leaves a half type.
    """
    if not 0 <= alpha <= 1:
        raise BadArgument(f"smoothing got alpha {alpha}; allowed: 0 to 1")
    return _centred(inputs, weights, alpha, 1 - alpha)


def balancing_scales(inputs: Tensor, weights: Tensor, strength: float) -> Tensor:
    """s = (|x| / |W|)^strength per channel: from 0, nothing, to 1, where x/s is as loud as W is."""
    return _centred(inputs, weights, strength, strength)


def _centred(inputs: Tensor, weights: Tensor, up: float, down: float) -> Tensor:
    """|x|^up / |W|^down, divided by its geometric mean."""
    live = (inputs > 0) & (weights > 0)
    log_scales = up * inputs.log() - down * weights.log()
    centred = log_scales - log_scales[live].mean()
    return torch.where(live, centred.clamp(-LARGEST_LOG, LARGEST_LOG), 0.0).exp()
