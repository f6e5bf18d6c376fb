"""Pictures from a demo's pipeline, one generator per picture so that a batch changes none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor

from fewbit.demo.scenes import LENGTH
from fewbit.pages.images import grid, save_png

SHAPES: dict[str, Any] = {"num_inference_steps": 25, "guidance_scale": 3.0}
SCENES: dict[str, Any] = {
    "num_inference_steps": 20,  # PixArtAlphaPipeline's own
    "guidance_scale": 4.5,
    "clean_caption": False,
    "use_resolution_binning": False,
    "max_sequence_length": LENGTH,
}


def sample(
    pipeline: Any,
    asked: Sequence[int] | Sequence[str],
    seeds: Sequence[int],
    manner: Mapping[str, Any],
    batch: int = 48,
) -> Tensor:
    """One picture per label or caption and its seed, values in [-1, 1]."""  # (N, 3, 64, 64)
    pictures = []
    for start in range(0, len(asked), batch):
        part = slice(start, start + batch)
        generators = [Generator("cpu").manual_seed(seed) for seed in seeds[part]]
        images = pipeline(list(asked[part]), generator=generators, output_type="pt", **manner)[0]
        pictures.append(images.float() * 2 - 1)
    return torch.cat(pictures)


def save_grid(images: Tensor, columns: int, file: Path, names: Sequence[str] = ()) -> None:
    """A PNG; `names` stand above the columns."""
    levels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    cells = [Image.fromarray(level.numpy()) for level in levels.permute(0, 2, 3, 1)]
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    save_png(grid(rows, columns=names), file, {})
