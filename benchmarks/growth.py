"""How a block's time grows with tokens, width, images and threads: `python benchmarks/growth.py`.

A DiT block of random weights, rtn w4a8 beside eager bf16, one quantity changed at a time. All sizes
of a row take turns; figures are medians in milliseconds of processes that had the machine alone.
The exponent is the slope of time over size in logarithms. A cliff is a step to the next size that
takes longer for an operation than the step before, in parts of that; bf16 attention counts twice.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from environment import write_result
from torch import nn

import fewbit
from fewbit.bench.turns import Times, Turn, take_turns

ROUNDS, WARM = 9, 2
HEAD = 72


@dataclass(frozen=True)
class Size:
    tokens: int = 256
    width: int = 1152
    images: int = 2
    threads: int = 2

    @property
    def operations(self) -> float:
        """An operation of the attention, which is bf16, is worth two of int8."""
        products = 24 * self.tokens * self.width**2
        return float(self.images * (products + 2 * 4 * self.tokens**2 * self.width))


USUAL = Size()
ROWS: dict[str, Sequence[Size]] = {
    "tokens": [replace(USUAL, tokens=n) for n in (64, 144, 256, 576, 1024, 2304, 4096)],
    "width": [replace(USUAL, width=HEAD * heads) for heads in (4, 8, 16, 24, 32)],
    "images": [replace(USUAL, images=n) for n in (1, 2, 4, 8, 16)],
    "threads": [replace(USUAL, threads=n) for n in (1, 2)],
}


def main() -> None:
    load = os.getloadavg()[0]
    figures = {name: row(name, sizes) for name, sizes in ROWS.items()}
    print(
        write_result("growth", {"load_before": load, **figures, "load_after": os.getloadavg()[0]})
    )


def row(name: str, sizes: Sequence[Size]) -> dict[str, Any]:
    found = {arm: times(sizes, quantize) for arm, quantize in (("bf16", False), ("w4a8", True))}
    for arm, taken in found.items():
        print(f"{name:8} {arm:5}", *(f"{one:9.2f}" for one in taken), flush=True)
    at = [float(getattr(size, name)) for size in sizes]
    cost = [one / size.operations for one, size in zip(found["w4a8"], sizes, strict=True)]
    return {
        "sizes": at,
        **{f"{arm}, ms": taken for arm, taken in found.items()},
        "faster": [a / b for a, b in zip(*found.values(), strict=True)],
        **{f"{arm}, exponent": slope(at, taken) for arm, taken in found.items()},
        "largest cliff of w4a8": max(b / a - 1 for a, b in pairwise(cost)),
    }


def times(sizes: Sequence[Size], quantize: bool) -> list[float]:
    turns = {str(size): Turn([call(size, quantize)], partial(threads, size)) for size in sizes}
    taken: dict[str, Times] = take_turns(turns, WARM + ROUNDS, lambda: None)
    return [median(one.wall[WARM:]) for one in taken.values()]


def call(size: Size, quantize: bool) -> Callable[[], object]:
    side = math.isqrt(size.tokens)
    torch.manual_seed(0)
    model: nn.Module = DiTTransformer2DModel(
        num_attention_heads=size.width // HEAD,
        attention_head_dim=HEAD,
        in_channels=4,
        num_layers=1,
        sample_size=2 * side,
        num_embeds_ada_norm=10,
    )
    model = model.eval().bfloat16()
    if quantize:
        fewbit.quantize(model, "rtn", bits="w4a8", progress=False)
    block: Any = copy.deepcopy(model.transformer_blocks[0])
    x = torch.randn(size.images, side * side, size.width).bfloat16()
    when, labels = torch.full((size.images,), 500), torch.zeros(size.images, dtype=torch.long)
    return partial(block, x, timestep=when, class_labels=labels)


@contextmanager
def threads(size: Size) -> Iterator[None]:
    torch.set_num_threads(size.threads)
    with torch.no_grad():
        yield


def slope(sizes: Sequence[float], taken: Sequence[float]) -> float:
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, taken))
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x @ x))


if __name__ == "__main__":
    main()
