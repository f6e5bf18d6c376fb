"""Whether a block is as quick in a stock call of its pipeline as where `fewbit bench` calls it.

Blocks of DiT-XL/2's size in bfloat16, two rows. Both take turns; the ratio of each round's medians
is taken, and its spread is told.  python benchmarks/stock_pipe.py [recipe:bits]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline
from environment import write_result
from models import dit_rows, dit_xl_2
from torch import nn

import fewbit
from fewbit.calibration.flat import output

BLOCKS, STEPS, ROUNDS, WARM = 2, 4, 10, 2


def main(recipe: str) -> None:
    pipe = pipeline(recipe)
    blocks = pipe.transformer.transformer_blocks
    given: list[dict[str, Any]] = []
    ratios, medians = [], []
    for _ in range(WARM + ROUNDS):
        in_pipe: list[float] = []
        with timed(blocks, in_pipe, given):
            draw(pipe)
        with torch.no_grad():
            turns = [partial(output, block, given[-1]) for _ in range(STEPS) for block in blocks]
            alone = [seconds(turn) for turn in turns]
        medians.append((statistics.median(in_pipe), statistics.median(alone)))
        ratios.append(medians[-1][0] / medians[-1][1])
    quartiles = statistics.quantiles(ratios[WARM:], n=4)
    figures = {
        "recipe": recipe,
        "in pipe, ms": 1e3 * statistics.median(one for one, _ in medians[WARM:]),
        "as bench, ms": 1e3 * statistics.median(one for _, one in medians[WARM:]),
        "ratio": dict(zip(("lower quartile", "median", "upper quartile"), quartiles, strict=True)),
    }
    print(figures)
    write_result("stock_pipe", figures)


def pipeline(recipe: str) -> Any:
    transformer = dit_xl_2(BLOCKS).bfloat16()
    calibrated = recipe.partition(":")[0] != "rtn"
    data = {"calibration": list(dit_rows(8))} if calibrated else {}
    fewbit.quantize(transformer, recipe, progress=False, **data)
    vae = AutoencoderKL(latent_channels=4, norm_num_groups=8).eval().bfloat16()
    pipe = DiTPipeline(transformer, vae, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    pipe([1], num_inference_steps=STEPS, generator=generator, output_type="latent")


@contextmanager
def timed(blocks: nn.ModuleList, into: list[float], given: list[dict[str, Any]]) -> Iterator[None]:
    """By a forward on the blocks themselves, which leaves what is inside them alone."""
    names = ("hidden_states", "attention_mask", "encoder_hidden_states", "encoder_attention_mask")
    names += ("timestep", "cross_attention_kwargs", "class_labels")

    def timing(own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            result = own(*args, **kwargs)
            into.append(time.perf_counter() - begun)
            given[:] = [{**dict(zip(names, args, strict=False)), **kwargs}]
            return result

        return forward

    for block in blocks:
        block.forward = timing(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "rtn:w4a4")
