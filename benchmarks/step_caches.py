"""Quantization and the step caches of diffusers together: `python benchmarks/step_caches.py`.

The scenes demo draws the same eight seeds by each arm, at its 20 steps, in bfloat16. The PSNR is
that to full precision without a cache; times are medians of rounds in which all arms take turns.
Each cache has its own defaults but for what the table says.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    TaylorSeerCacheConfig,
    apply_first_block_cache,
    apply_taylorseer_cache,
)
from diffusers.hooks.hooks import HookRegistry
from diffusers.models.cache_utils import CacheMixin
from environment import write_result
from torch import nn

import fewbit
from fewbit.bench.turns import Turn, ratio, take_turns
from fewbit.judge import pixels
from fewbit.judge.reading import as_bytes
from fewbit.pipelines.generate import generate

sys.path.append(str(Path(__file__).parents[1] / "studies"))
from demo import MANNERS, pipeline

DEMO, SEEDS, ROUNDS = "scenes", range(8), 3


def first_block(threshold: float) -> Callable[[nn.Module], None]:
    return lambda network: apply_first_block_cache(network, FirstBlockCacheConfig(threshold))


def taylor_seer(interval: int) -> Callable[[nn.Module], None]:
    config = TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=3,
        cache_identifiers=[r"transformer_blocks\.\d+\.(attn1|attn2|ff)"],
    )
    return lambda network: apply_taylorseer_cache(network, config)


RECIPES: dict[str, dict[str, Any] | None] = {
    "bf16": None,
    "rtn w8a8": {"recipe": "rtn", "bits": "w8a8"},
    "best balanced": {"recipe": "best", "preset": "balanced"},
}
CACHES: dict[str, Callable[[nn.Module], None] | None] = {
    "no cache": None,
    "first block 0.05": first_block(0.05),
    "first block 0.1": first_block(0.1),
    "TaylorSeer every 2": taylor_seer(2),
    "TaylorSeer every 3": taylor_seer(3),
}


def main() -> None:
    load, exact = os.getloadavg()[0], draw(pipeline(DEMO))
    pipes = {
        f"{recipe}, {cache}": cached(base, apply)
        for recipe, settings in RECIPES.items()
        for base in [made(settings)]
        for cache, apply in CACHES.items()
    }
    quality = {name: psnr(exact, draw(pipe)) for name, pipe in pipes.items()}
    turns = {name: Turn([partial(draw, pipe)], torch.no_grad) for name, pipe in pipes.items()}
    times = take_turns(turns, ROUNDS, lambda: None)
    base = times["bf16, no cache"]
    figures = {
        name: {
            "PSNR, dB": quality[name],
            "seconds a picture": taken.median / len(SEEDS) / 1e3,
            "times bf16": ratio(base, taken).median,
        }
        for name, taken in times.items()
    }
    for name, row in figures.items():
        print(f"{name:34}", *(f"{value:8.3f}" for value in row.values()))
    print(write_result("step_caches", {"load_before": load, "arms": figures}))


def made(settings: dict[str, Any] | None) -> Any:
    pipe = pipeline(DEMO).to(torch.bfloat16)
    if settings is not None:
        fewbit.quantize(pipe, progress=False, **settings)
    return pipe


def cached(base: Any, apply: Callable[[nn.Module], None] | None) -> Any:
    pipe = copy.copy(base)
    pipe.transformer = copy.deepcopy(base.transformer)
    if apply is not None:
        apply(pipe.transformer)
    return pipe


def draw(pipe: Any) -> list[Any]:
    """Each time anew: PixArt's pipeline does not tell a cache where a picture begins."""
    HookRegistry.check_if_exists_or_initialize(pipe.transformer).reset_stateful_hooks()
    with CacheMixin.cache_context(pipe.transformer, "both halves"):
        return list(generate(pipe, seeds=SEEDS, **MANNERS[DEMO]))


def psnr(exact: list[Any], drawn: list[Any]) -> float:
    pairs = zip(exact, drawn, strict=True)
    return fmean(pixels.psnr(as_bytes(one), as_bytes(other)) for one, other in pairs)


if __name__ == "__main__":
    main()
