"""The demo's autoencoder: a small diffusers AutoencoderKL, 64x64 RGB to a 4x16x16 latent."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

NOISE = 0.15


def build() -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def loss(model: AutoencoderKL, image: Tensor, random: Generator) -> Tensor:
    """Pixels and their differences (edges stay sharp), from latents of unit scale with fixed noise.

    The fixed noise, instead of a learned one, makes every channel tolerate a denoiser's errors.
    """
    posterior = model.encode(image).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    decoded = model.decode(mean + NOISE * torch.randn(mean.shape, generator=random)).sample
    error = decoded.float() - image
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    centre, scale = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    unit = centre.square().mean() + (scale - 1).square().mean()
    honest = (logvar - 2 * math.log(NOISE)).square().mean()
    return error.abs().mean() + 0.5 * edges + 0.1 * unit + 1e-3 * honest


@torch.no_grad()
def standardise(model: AutoencoderKL, image: Tensor) -> None:
    """Fold each latent channel's mean and deviation on `image` into the 1x1 convolutions.

    The autoencoder as a whole stays the same function; its latents get mean 0 and deviation 1.
    """
    latent = torch.cat([model.encode(part).latent_dist.mean for part in image.split(64)])
    mean, std = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
    enter, leave = model.quant_conv, model.post_quant_conv
    leave.bias += leave.weight[:, :, 0, 0] @ mean
    leave.weight *= std[None, :, None, None]
    channels = len(mean)
    enter.bias[:channels] -= mean
    enter.bias[:channels] /= std
    enter.weight[:channels] /= std[:, None, None, None]
    enter.bias[channels:] -= 2 * std.log()
