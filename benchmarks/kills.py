"""Kill runs at random moments, in all phases, and see that each ends in the same file.

python benchmarks/kills.py --kills 50      writes benchmarks/results/kills.json
A run makes a folder from nothing: it draws its calibration, surveys, solves blocks, trains the
whole model and saves. First it is left alone, which says how long each phase takes. Then every
trial kills it, once or twice, at a moment of a random phase, and lets it end. Weight files are
compared byte by byte.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from environment import write_result

import fewbit
from fewbit.progress import Meter

RECIPES: dict[str, dict[str, Any]] = {
    "tq-dit": {"groups": 2, "candidates": 4, "rounds": 1, "calibration": 72},
    "vq4dit": {"bits": "w1.5", "steps": 4, "tuning": 4, "calibration": 72},
    "hq-dit": {"calibration": 72},
}


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    random_moments = random.Random(arguments.seed)
    figures: dict[str, Any] = {"seed": arguments.seed, "kills": 0, "recipes": {}}
    recipes = arguments.recipes.split(",")
    for number, recipe in enumerate(recipes):
        kills = arguments.kills // len(recipes) + (number < arguments.kills % len(recipes))
        found = _trials(recipe, kills, random_moments)
        print(recipe, found, flush=True)
        figures["recipes"][recipe] = found
        figures["kills"] += sum(found["killed"].values())
    print(write_result("kills", figures))
    different = sum(one["other file"] for one in figures["recipes"].values())
    sys.exit(f"{different} runs ended in another file" if different else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    return parser.parse_args()


def _trials(recipe: str, kills: int, moments: random.Random) -> dict[str, Any]:
    found: Counter[str] = Counter()
    killed: Counter[str] = Counter()  # by phase
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        _run(recipe, whole)  # for the first time, when much is only being imported
        lengths = _run(recipe, Path(folder) / "measured")
        expected = _digest(whole)
        while killed.total() < kills:
            place = Path(folder) / f"trial-{found.total()}"
            for _ in range(min(moments.randint(1, 2), kills - killed.total())):
                phase = moments.choice(list(lengths))
                if _killed(recipe, place, phase, moments.uniform(0, lengths[phase])):
                    killed[phase] += 1
            _run(recipe, place)
            found["same file" if _digest(place) == expected else "other file"] += 1
    outcomes = ("same file", "other file")
    return {"killed": dict(killed), **{outcome: found[outcome] for outcome in outcomes}}


class Stopwatch(Meter):
    """How long each phase takes; `tell` is called with its name when one begins."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__(show=False)
        self.tell = tell
        self.began: dict[str, float] = {}

    def begin(self, name: str, steps: int) -> None:
        self.began.setdefault(name, time.monotonic())
        super().begin(name, steps)
        self.tell(name)

    def lengths(self) -> dict[str, float]:
        pairs = pairwise([*self.began.values(), time.monotonic()])
        return {name: end - start for name, (start, end) in zip(self.began, pairs, strict=True)}


def _run(recipe: str, place: Path, tell: Callable[[str], object] = len) -> dict[str, float]:
    """Whatever an earlier run has left is used; returned is how long each phase took."""
    watch = Stopwatch(tell)
    pipe = _pipeline()
    work = place.with_suffix(".work")
    fewbit.quantize(pipe, recipe, workdir=work, progress=watch, **RECIPES[recipe])
    watch.begin("saving", 1)
    fewbit.save(pipe, place, overwrite=True)
    return watch.lengths()


def _killed(recipe: str, place: Path, phase: str, after: float) -> bool:
    """In this phase, so many seconds from its beginning; False where it came to its end."""
    ear, mouth = os.pipe()
    child = os.fork()
    if child == 0:
        _run(recipe, place, lambda name: os.write(mouth, f"{name}\n".encode()))
        os._exit(0)
    os.close(mouth)
    with os.fdopen(ear) as begun:
        if any(name.strip() == phase for name in begun):
            time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _pipeline() -> Any:
    import diffusers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=32,
            num_layers=2,
            sample_size=8,
            out_channels=8,
            num_embeds_ada_norm=1000,
        ).eval()
        vae = diffusers.AutoencoderKL(
            block_out_channels=(4,), latent_channels=4, norm_num_groups=2, sample_size=8
        ).eval()
    return diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler())


def _digest(place: Path) -> str:
    path = place / "transformer" / "diffusion_pytorch_model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
