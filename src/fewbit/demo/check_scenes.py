"""Are the scenes demo's pictures faithful? `python -m fewbit.demo.check_scenes --png grid.png`.

Of all that the captions say (two sizes, colours and shapes, and how the things stand to each
other), 85 % must be read back from guided samples. A picture of another caption shows about 36 %.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from fewbit.demo.language import LENGTH
from fewbit.demo.scene_reader import right_fields
from fewbit.demo.scenes import FIELDS, parse, scenes

if TYPE_CHECKING:
    from diffusers import PixArtAlphaPipeline

REQUIRED = 0.85
STEPS, GUIDANCE = 20, 4.5  # PixArtAlphaPipeline's own
PROMPT_SEED = 2_000_003  # none that the demo was trained on


def faithfulness(images: Tensor, captions: Sequence[str]) -> Tensor:
    """Which of FIELDS each picture shows as its caption says."""  # (N, 7) bool
    pairs = zip(images, captions, strict=True)
    return torch.stack([right_fields(image, parse(caption)) for image, caption in pairs])


def captions(count: int) -> list[str]:
    return [scene.caption for scene in scenes(PROMPT_SEED, range(count))]


def sample(
    pipeline: PixArtAlphaPipeline,
    captions: Sequence[str],
    seeds: Sequence[int],
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    batch: int = 48,
) -> Tensor:
    """One picture per caption and seed, values in [-1, 1]."""  # (N, 3, 64, 64)
    pictures = []
    for start in range(0, len(captions), batch):
        part = slice(start, start + batch)
        images = pipeline(
            prompt=list(captions[part]),
            generator=[Generator("cpu").manual_seed(seed) for seed in seeds[part]],
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="pt",
            clean_caption=False,
            use_resolution_binning=False,
            max_sequence_length=LENGTH,
        ).images
        pictures.append(images.float() * 2 - 1)
    return torch.cat(pictures)


def save_grid(images: Tensor, columns: int, file: Path) -> None:
    from PIL import Image

    from fewbit.pages.images import grid, save_png

    levels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    cells = [Image.fromarray(level.numpy()) for level in levels.permute(0, 2, 3, 1)]
    save_png(grid([cells[i : i + columns] for i in range(0, len(cells), columns)]), file, {})


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the scenes demo's prompt faithfulness.")
    parser.add_argument("--folder", type=Path, help="a pipeline folder instead of the shipped one")
    parser.add_argument("--count", type=int, default=96, help="number of pictures")
    parser.add_argument("--steps", type=int, default=STEPS, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help="guidance scale")
    parser.add_argument("--png", type=Path, help="where to write a grid of the pictures")
    arguments = parser.parse_args()

    from diffusers import PixArtAlphaPipeline

    from fewbit.demo import assets

    pipeline = PixArtAlphaPipeline.from_pretrained(arguments.folder or assets.path("scenes"))
    pipeline.set_progress_bar_config(disable=True)
    wanted = captions(arguments.count)
    started = time.monotonic()
    images = sample(pipeline, wanted, range(len(wanted)), arguments.steps, arguments.guidance)
    seconds = time.monotonic() - started
    if arguments.png:
        save_grid(images, 12, arguments.png)
    right = faithfulness(images, wanted).float()
    for field, share in zip(FIELDS, right.mean(0), strict=True):
        print(f"{field:13} {share:.1%}")
    print(f"all of them   {right.amin(1).mean():.1%}")
    print(f"faithfulness {right.mean():.2%} of {len(wanted)} pictures, required {REQUIRED:.0%}")
    print(f"{1000 * seconds / len(wanted):.0f} ms a picture, {arguments.steps} steps")
    if right.mean() < REQUIRED:
        sys.exit(1)


if __name__ == "__main__":
    main()
