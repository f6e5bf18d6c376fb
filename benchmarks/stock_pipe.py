"""Is a block as quick inside a stock `pipe(...)` as where `fewbit bench` calls it?

Blocks of DiT-XL/2's size in bfloat16, two rows. Rounds of both take turns, and the medians are
compared.  python benchmarks/stock_pipe.py [recipe:bits]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline
from environment import write_result
from models import dit_rows, dit_xl_2
from torch import nn

import fewbit
from fewbit.bench.levels import output

BLOCKS, STEPS, ROUNDS, WARM = 2, 4, 10, 2


def main(recipe: str) -> None:
    pipe = pipeline(recipe)
    blocks = pipe.transformer.transformer_blocks
    given: list[dict[str, Any]] = []
    in_pipe: list[float] = []
    alone: list[float] = []
    for number in range(WARM + ROUNDS):
        with timed(blocks, in_pipe, given):
            draw(pipe)
        with torch.no_grad():
            for _ in range(STEPS):
                for block in blocks:
                    alone.append(seconds(lambda block=block: output(block, given[-1])))
        if number < WARM:
            in_pipe.clear(), alone.clear()
    medians = {name: 1e3 * statistics.median(found) for name, found in
               (("in pipe, ms", in_pipe), ("as bench, ms", alone))}  # fmt: skip
    figures = {**medians, "ratio": medians["in pipe, ms"] / medians["as bench, ms"]}
    print(recipe, figures)
    write_result("stock_pipe", {"recipe": recipe, **figures})


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
