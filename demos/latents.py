"""The latents that a demo's denoiser learns from, encoded once and kept in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewbit.demo.shapes import as_float
from fewbit.files import replacing

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

TOGETHER = 240  # pictures


def latents(
    file: Path, model: AutoencoderKL, pictures: Callable[[range], Tensor], count: int
) -> Tensor:
    """Of the first `count` pictures."""
    if not file.exists():
        starts = range(0, count, TOGETHER)
        parts = [_encode(model, pictures(range(i, min(i + TOGETHER, count)))) for i in starts]
        with replacing(file) as aside:
            save_file({"latents": torch.cat(parts)}, aside)
    return load_file(file)["latents"]


@torch.no_grad()
def _encode(model: AutoencoderKL, pictures: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model.encode(as_float(pictures)).latent_dist.mean.float()
