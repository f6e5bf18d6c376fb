"""Are the shapes demo's pictures good? `python -m fewbit.demo.check_shapes --png grid.png`.

Guided samples of all classes must be recognised by the classifier at least 95 times in 100.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewbit.demo import assets, shapes
from fewbit.demo.sampling import GUIDANCE, STEPS, sample

REQUIRED = 0.95


@torch.no_grad()
def recognised(images: Tensor, label: Tensor) -> Tensor:
    """Which pictures the classifier takes for what they should be."""  # (N,) bool
    judge = assets.classifier()
    return torch.cat([judge(part).argmax(1) for part in images.split(256)]) == label


def save_grid(images: Tensor, columns: Sequence[str], file: Path) -> None:
    """A PNG with one column per class."""
    from PIL import Image

    from fewbit.pages.images import grid, save_png

    levels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    cells = [Image.fromarray(level.numpy()) for level in levels.permute(0, 2, 3, 1)]
    rows = [cells[i : i + len(columns)] for i in range(0, len(cells), len(columns))]
    save_png(grid(rows, columns=columns), file, {})


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the shapes demo's pictures.")
    parser.add_argument("--count", type=int, default=240, help="number of pictures")
    parser.add_argument("--steps", type=int, default=STEPS, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help="guidance scale")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture")
    parser.add_argument("--png", type=Path, help="where to write a grid of the pictures")
    arguments = parser.parse_args()

    pipeline = assets.load("shapes")
    pipeline.set_progress_bar_config(disable=True)
    label = shapes.labels(range(arguments.count))
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    started = time.monotonic()
    images = sample(pipeline, label.tolist(), seeds, arguments.steps, arguments.guidance)
    seconds = time.monotonic() - started
    if arguments.png:
        save_grid(images, shapes.NAMES, arguments.png)
    right = recognised(images, label)
    for number, name in enumerate(shapes.NAMES):
        print(f"{name:10} {right[label == number].float().mean():.1%}")
    print(f"recognised {right.float().mean():.2%} of {arguments.count}, required {REQUIRED:.0%}")
    print(f"{1000 * seconds / arguments.count:.0f} ms a picture, {arguments.steps} steps")
    if right.float().mean() < REQUIRED:
        sys.exit(1)


if __name__ == "__main__":
    main()
