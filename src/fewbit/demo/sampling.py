"""Pictures from the shapes pipeline, one generator per picture so that a batch changes none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

if TYPE_CHECKING:
    from diffusers import DiTPipeline

GUIDANCE = 3.0
STEPS = 25


def sample(
    pipeline: DiTPipeline,
    labels: Sequence[int],
    seeds: Sequence[int],
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    batch: int = 48,
) -> Tensor:
    """One picture per label and seed, values in [-1, 1]."""  # (N, 3, 64, 64)
    pictures = []
    for start in range(0, len(labels), batch):
        part = slice(start, start + batch)
        images = pipeline(
            class_labels=list(labels[part]),
            generator=[Generator("cpu").manual_seed(seed) for seed in seeds[part]],
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="pt",
        ).images
        pictures.append(images.float() * 2 - 1)
    return torch.cat(pictures)
