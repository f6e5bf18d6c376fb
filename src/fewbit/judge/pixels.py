"""How far a picture is from the same seed's picture in full precision: PSNR, SQNR, SSIM.

Pictures are bytes, uint8 [3, height, width].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewbit.engine.decibel import energies, ratio_db, sqnr
from fewbit.errors import BadArgument

__all__ = ["psnr", "sqnr", "ssim"]

WHITE = 255
WINDOW, SIGMA = 11, 1.5
LUMINANCE, CONTRAST = (0.01 * WHITE) ** 2, (0.03 * WHITE) ** 2  # C1 and C2: no division by zero


def psnr(reference: Tensor, picture: Tensor) -> float:
    """In dB against white; infinite where nothing differs."""
    _, noise = energies(reference, picture)
    return ratio_db(WHITE**2 * reference.numel(), noise)


def ssim(reference: Tensor, picture: Tensor) -> float:
    """Structural similarity (Wang et al. 2004, eq. 13), the mean over whole windows and channels.

    The paper's window: 11 x 11, Gaussian of deviation 1.5. It is 1 where nothing differs.
    """
    if min(reference.shape[-2:]) < WINDOW:
        raise BadArgument(
            f"SSIM looks through windows of {WINDOW}x{WINDOW} pixels; a picture has only "
            f"{reference.shape[-1]}x{reference.shape[-2]}"
        )
    x, y = reference.double(), picture.double()
    mean_x, mean_y, xx, yy, xy = _windows(torch.stack([x, y, x * x, y * y, x * y]))
    covariance = xy - mean_x * mean_y
    variances = xx - mean_x**2 + yy - mean_y**2
    likeness = (2 * mean_x * mean_y + LUMINANCE) * (2 * covariance + CONTRAST)
    scale = (mean_x**2 + mean_y**2 + LUMINANCE) * (variances + CONTRAST)
    return (likeness / scale).mean().item()


def _windows(maps: Tensor) -> Tensor:
    """The weighted mean in each window that lies wholly inside."""  # (N, 3, H, W), smaller
    places = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weight = torch.exp(-(places**2) / (2 * SIGMA**2))
    weight /= weight.sum()
    single = maps.flatten(0, 1)[:, None]
    means = F.conv2d(F.conv2d(single, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))
    return means[:, 0].unflatten(0, maps.shape[:2])
