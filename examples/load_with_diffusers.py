"""Quantize a model while diffusers loads it, then save and load it by diffusers alone.

python examples/load_with_diffusers.py --output DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiTPipeline, DiTTransformer2DModel

import fewbit  # registers fewbit with diffusers


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Quantize the shapes demo while it is loaded.")
    parser.add_argument("--output", type=Path, required=True, help="a folder for the pipeline")
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--steps", type=int, default=25)
    given = parser.parse_args(arguments)

    source = fewbit.demo.path("shapes")
    transformer = DiTTransformer2DModel.from_pretrained(
        source,
        subfolder="transformer",
        quantization_config=fewbit.FewbitConfig("rtn", bits=given.bits),
    )
    pipe = DiTPipeline.from_pretrained(source, transformer=transformer)
    pipe.save_pretrained(given.output / "pipeline")  # packed weights
    print(fewbit.inspect(given.output / "pipeline"))

    loaded = DiTPipeline.from_pretrained(given.output / "pipeline")
    loaded.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(0)
    image = loaded([0], generator=seed, num_inference_steps=given.steps).images[0]
    image.save(given.output / "picture.png")
    print(f"look at {given.output / 'picture.png'}")


if __name__ == "__main__":
    main()
