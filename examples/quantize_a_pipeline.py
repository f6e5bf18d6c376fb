"""Quantize a pipeline, save it, load it with stock diffusers, and draw the same seeds with both.

python examples/quantize_a_pipeline.py --output DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTPipeline
from PIL import Image

import fewbit


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Quantize the shapes demo.")
    parser.add_argument("--output", type=Path, required=True, help="a folder for model and picture")
    parser.add_argument("--recipe", default="rtn:w4a8")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    given = parser.parse_args(arguments)

    pipe = DiTPipeline.from_pretrained(fewbit.demo.path("shapes"))
    before = draw(pipe, given.pictures, given.steps)
    report = fewbit.quantize(pipe, given.recipe, progress=False)
    print(report)
    folder = given.output / "model"
    fewbit.save(pipe, folder, report=report, overwrite=True)

    loaded = DiTPipeline.from_pretrained(folder)
    after = draw(loaded, given.pictures, given.steps)
    picture = given.output / "before_and_after.png"
    sheet(before, after).save(picture)
    print(f"look at {picture}")


def draw(pipe: Any, count: int, steps: int) -> list[Image.Image]:
    """One picture of each of the first classes, each with a seed of its own."""
    pipe.set_progress_bar_config(disable=True)
    images: list[Image.Image] = pipe(
        class_labels=list(range(count)),
        generator=[torch.Generator().manual_seed(seed) for seed in range(count)],
        num_inference_steps=steps,
    ).images
    return images


def sheet(*rows: Sequence[Image.Image]) -> Image.Image:
    width, height = rows[0][0].size
    made = Image.new("RGB", (width * len(rows[0]), height * len(rows)))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            made.paste(picture, (x * width, y * height))
    return made


if __name__ == "__main__":
    main()
