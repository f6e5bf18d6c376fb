"""A step of DiT-XL/2 in every recipe: `python benchmarks/recipes.py` (about 10 minutes).

Random weights, 28 blocks, guidance batch of 2 x 256 tokens, stock calls of models in bfloat16. All
recipes take turns in one process, so that each is compared with eager bf16, and with plain w4a4,
under the same conditions. A few channels are loud, as in large models, so that what fits transforms
finds some to fit. Figures are medians in milliseconds of a machine that did nothing else.
"""

from __future__ import annotations

import argparse
import os
from contextlib import AbstractContextManager
from functools import partial
from statistics import median
from typing import Any

import torch
from environment import write_result
from torch import nn

from fewbit.bench.quantizing import quantized
from fewbit.bench.subject import Subject, in_dtype, open_subject
from fewbit.bench.turns import Turn, take_turns
from fewbit.demo.outliers import with_outliers
from fewbit.layers.bind import bind, unbind
from fewbit.layers.linear import quantized_layers

RECIPES = (
    "rtn:w8a8", "rtn:w4a8", "rtn:w4a4", "rtn:nvfp4", "rtn:mxfp4", "hq-dit:w4a4", "tq-dit:w8a8",
    "fp4dit:w4a6", "vq4dit:w2a8", "best:balanced", "best:four",
)  # fmt: skip
PLAIN, BF16 = "rtn:w4a4", "eager bf16"
BLOCKS, ROUNDS, WARM = 28, 9, 2
LOUD = {"factor": 8.0, "channels": 8, "seed": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recipes", nargs="*", default=RECIPES, help="such as best:four")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load, whole, subject = os.getloadavg()[0], _subject(), _subject()
    arms: dict[str, nn.Module] = {BF16: whole.extended(whole.network.bfloat16(), BLOCKS)}
    for recipe in arguments.recipes:
        arms[recipe] = _extended(subject, *recipe.split(":"))
        print(recipe, "is ready", flush=True)
    inputs = in_dtype(subject.inputs, torch.bfloat16)
    turns = {name: Turn([partial(arm, **inputs)], _inferring) for name, arm in arms.items()}
    found = take_turns(turns, WARM + ROUNDS, lambda: None)
    taken = {name: times.wall[WARM:] for name, times in found.items()}
    figures = {name: _figures(taken, name, arms[name]) for name in taken}
    for name, row in figures.items():
        print(f"{name:14}", *row.values())
    path = write_result(
        f"recipes-{arguments.threads}",
        {"load_before": load, "load_after": os.getloadavg()[0], "arms": figures},
    )
    print(path)


def _subject() -> Subject:
    subject = open_subject("dit-xl-2", 1, torch.device("cpu"))
    with_outliers(subject.network, **LOUD)
    return subject


def _extended(subject: Subject, method: str, bits: str) -> nn.Module:
    network = subject.extended(quantized(subject, method, bits).bfloat16(), BLOCKS)
    unbind(network)
    bind(network)
    return network


def _inferring() -> AbstractContextManager[None]:
    return torch.inference_mode()


def _figures(taken: dict[str, tuple[float, ...]], name: str, arm: nn.Module) -> dict[str, Any]:
    """Ratios are medians over the rounds, each of two calls that followed each other."""
    faster = {
        other: round(median(a / b for a, b in zip(taken[other], taken[name], strict=True)), 3)
        for other in (BF16, PLAIN)
        if other in taken
    }
    stages = {str(layer.stage) for layer in quantized_layers(arm).values() if layer.stage}
    return {
        "ms": round(median(taken[name]), 1),
        "times as quick as bf16": faster.get(BF16),
        "times as quick as plain w4a4": faster.get(PLAIN),
        "inputs": "; ".join(sorted(stages)),
    }


if __name__ == "__main__":
    main()
