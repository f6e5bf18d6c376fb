"""What the VQ4DiT studies share: each setting is run and measured once, and kept.

A killed study goes on where it was; delete `studies/cache` to measure everything anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from demo import calibration, fidelity, pipeline, psnr

import fewbit
from fewbit.demo import shapes
from fewbit.demo.check_shapes import recognised, save_grid
from fewbit.demo.sampling import sample
from fewbit.recipe import Recipe

CACHE = Path(__file__).parent / "cache"
SAMPLES, JUDGED, SHOWN = 512, 240, 2
PLAIN = {"steps": 0, "weighted": False, "row_scales": False}


@dataclass(frozen=True)
class Measured:
    sqnr: float  # of the noise prediction on held-out trajectories, dB
    psnr: float  # of 16 pictures of the same seeds, dB
    bits: float  # of a quantized weight, codebooks and scales included
    bytes: int
    seconds: float


def measured(recipe: str, **settings: Any) -> Measured:
    def measure(file: Path) -> dict[str, Any]:
        pipe, report = _quantized(recipe, file.with_suffix(""), settings)
        weights = sum(one.bytes_before for one in report.layers)
        packed = sum(one.bits_per_weight * one.bytes_before for one in report.layers)
        seconds = sum(report.seconds.values())
        bits = packed / weights
        return asdict(Measured(fidelity(pipe).sqnr, psnr(pipe), bits, report.bytes, seconds))

    return Measured(**_once("measured", recipe, settings, measure))


def judged(recipe: str, grid: Path | None = None, **settings: Any) -> float:
    """The share of guided pictures that the classifier recognises; `grid` shows some of them."""

    def judge(file: Path) -> float:
        pipe, _ = _quantized(recipe, _place("measured", recipe, settings), settings)
        label = shapes.labels(range(JUDGED))
        images = sample(pipe, label.tolist(), range(JUDGED))
        if grid is not None:
            save_grid(images[: SHOWN * len(shapes.NAMES)], shapes.NAMES, grid)
        return float(recognised(images, label).float().mean())

    return _once("judged", recipe, settings, judge)


def _quantized(recipe: str, workdir: Path, settings: dict[str, Any]) -> Any:
    pipe = pipeline()
    given = {} if recipe == "rtn" else {"calibration": calibration(SAMPLES), "workdir": workdir}
    return pipe, fewbit.quantize(pipe, recipe, progress=False, **given, **settings)


def _once(what: str, recipe: str, settings: dict[str, Any], find: Callable[[Path], Any]) -> Any:
    file = _place(what, recipe, settings).with_suffix(".json")
    if not file.exists():
        found = find(file)
        file.write_text(json.dumps(found))
        print(what, recipe, settings, found, flush=True)
    return json.loads(file.read_text())


def _place(what: str, recipe: str, settings: dict[str, Any]) -> Path:
    """By all settings there are, so that other defaults are other cases."""
    CACHE.mkdir(exist_ok=True)
    said = json.dumps([what, _recipe(recipe, **settings), SAMPLES], sort_keys=True)
    return CACHE / sha256(said.encode()).hexdigest()[:16]


def _recipe(recipe: str, bits: str | None = None, **settings: Any) -> dict[str, Any]:
    return Recipe.make(recipe, bits, settings).to_dict()
