"""What the studies of slow recipes share: each setting is run and measured once, and kept.

A killed study goes on where it was, as long as the package is the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from demo import calibration, fidelity, pipeline, psnr

import fewbit
from demos.sampling import SCENES, SHAPES, sample, save_grid
from fewbit.demo import check_scenes, shapes
from fewbit.demo.check_shapes import recognised
from fewbit.engine.recipe import Recipe

CACHE = Path(__file__).parent / "cache"
CODE = Path(fewbit.__file__).parent
SOURCES = {".py", ".cpp", ".inc", ".h"}
SAMPLES, JUDGED, SHOWN = 512, 240, 2
PLAIN = {"steps": 0, "weighted": False, "row_scales": False}


@dataclass(frozen=True)
class Measured:
    sqnr: float  # of the noise prediction on held-out trajectories, dB
    psnr: float  # of 16 pictures of the same seeds, dB
    bits: float  # of a quantized weight, codebooks and scales included
    bytes: int
    seconds: float


def measured(recipe: str, demo: str = "shapes", **settings: Any) -> Measured:
    def measure(place: Path) -> dict[str, Any]:
        pipe, report = _quantized(recipe, demo, place, settings)
        weights = sum(one.bytes_before for one in report.layers)
        packed = sum(one.bits_per_weight * one.bytes_before for one in report.layers)
        seconds = sum(report.seconds.values())
        bits = packed / weights
        sqnr = fidelity(pipe, demo).sqnr
        return asdict(Measured(sqnr, psnr(pipe, demo), bits, report.bytes, seconds))

    return Measured(**once("measured", key_of(recipe, demo, settings), measure))


def judged(recipe: str, grid: Path | None = None, **settings: Any) -> float:
    """The share of guided pictures that the classifier recognises; `grid` shows some of them."""

    def judge(place: Path) -> float:
        pipe, _ = _quantized(recipe, "shapes", place, settings)
        label = shapes.labels(range(JUDGED))
        images = sample(pipe, label.tolist(), range(JUDGED), SHAPES)
        if grid is not None:
            columns = len(shapes.NAMES)
            save_grid(images[: SHOWN * columns], columns, grid, shapes.NAMES)
        return float(recognised(images, label).float().mean())

    return once("judged", key_of(recipe, "shapes", settings), judge)


def faithful(recipe: str | None, **settings: Any) -> float:
    """The share of what captions say that the scenes show; without a recipe at full precision."""

    def judge(place: Path) -> float:
        if recipe is None:
            return _faithfulness(pipeline("scenes"))
        return _faithfulness(_quantized(recipe, "scenes", place, settings)[0])

    return once("faithful", key_of(recipe, "scenes", settings), judge)


def _faithfulness(pipe: Any) -> float:
    captions = check_scenes.captions(JUDGED)
    images = sample(pipe, captions, range(JUDGED), SCENES)
    return float(check_scenes.faithfulness(images, captions).float().mean())


def _quantized(recipe: str, demo: str, workdir: Path, settings: dict[str, Any]) -> Any:
    pipe = pipeline(demo)
    if recipe == "rtn":
        return pipe, fewbit.quantize(pipe, recipe, progress=False, **settings)
    rows = calibration(SAMPLES, demo=demo)
    given = {"calibration": rows, "workdir": workdir, "progress": False}
    return pipe, fewbit.quantize(pipe, recipe, **given, **settings)


def once(what: str, key: Any, find: Callable[[Path], Any]) -> Any:
    """`find` is given a place for what it would not want to compute twice."""
    CACHE.mkdir(exist_ok=True)
    place = CACHE / sha256(json.dumps([key, _code()], sort_keys=True).encode()).hexdigest()[:16]
    file = place.with_suffix(f".{what}.json")
    if not file.exists():
        found = find(place)
        file.write_text(json.dumps(found))
        print(what, found, flush=True)
    return json.loads(file.read_text())


@cache
def _code() -> str:
    """The digest of the package's sources."""
    files = sorted(file for file in CODE.rglob("*") if file.suffix in SOURCES)
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def key_of(recipe: str | None, demo: str, settings: dict[str, Any]) -> list[Any]:
    """All settings there are, so that other defaults are other cases."""
    return [None if recipe is None else _recipe(recipe, **settings), demo, SAMPLES]


def _recipe(recipe: str, bits: str | None = None, **settings: Any) -> dict[str, Any]:
    return Recipe.make(recipe, bits, settings).to_dict()
