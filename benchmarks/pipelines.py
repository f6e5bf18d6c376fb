"""The pipelines of the day through quantizing, drawing, saving, loading and judging.

python benchmarks/pipelines.py [--pipelines PATTERN] [--recipes NAME ...] [--again]

They are those of `tests/tiny_pipelines.py`: whole pipelines with random weights. Each is quantized
by each recipe (on its own calibration where the recipe needs one), draws, is saved, and is loaded
by diffusers; the loaded one must draw the same pixels. `evaluate` then holds it against full
precision on its own scheduler. A cell is the SQNR of the noise prediction in dB, or the error that
a user would read. What was measured stands in `build/pipelines.json` and is not measured again,
unless `--again` asks for it. All of it goes into benchmarks/results/pipelines.json, and
`python benchmarks/reach.py` makes a page of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cells import cell_of, said
from environment import write_result

import fewbit
from fewbit.judge.alike import Named
from fewbit.judge.evaluation import Judges, Setting, evaluate
from fewbit.pipelines.generate import generate

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "tests"), str(HERE.parent)]

import tiny_pipelines  # noqa: E402

FOUND = HERE.parent / "build" / "pipelines.json"
STEPS, PROMPTS = 2, ["a cat"]
RECIPES: dict[str, dict[str, Any]] = {
    "rtn": {"bits": "w8a8"},
    "hq-dit": {"bits": "w4a8"},
    "best": {"preset": "fast"},
}
WITHOUT_DATA = ("rtn",)


def main() -> None:
    asked = _asked()
    found = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    for name in (name for name in tiny_pipelines.PIPELINES if fnmatchcase(name, asked.pipelines)):
        for recipe in asked.recipes:
            if asked.again or recipe not in found.setdefault(name, {}):
                found[name][recipe] = cell = measured(name, recipe)
                FOUND.parent.mkdir(exist_ok=True)
                FOUND.write_text(json.dumps(found, indent=1) + "\n")
                print(f"{name} {recipe}: {said(cell)}", flush=True)
    print(write_result("pipelines", {"recipes": RECIPES, "pipelines": found}))


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pipelines", default="*")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--again", action="store_true")
    return parser.parse_args()


def measured(name: str, recipe: str) -> dict[str, Any]:
    """What became of one pipeline in one recipe."""
    return cell_of(lambda: _through(name, recipe))


def passed(cell: Mapping[str, Any]) -> bool:
    return bool(cell.get("equal") and cell.get("judged"))


def _through(name: str, recipe: str) -> dict[str, Any]:
    from diffusers import DiffusionPipeline

    call = tiny_pipelines.CALLS[name]
    pipe = tiny_pipelines.make(name)
    wishes = {} if recipe in WITHOUT_DATA else {"samples": 4, "steps": STEPS}
    with warnings.catch_warnings(), TemporaryDirectory() as place:
        warnings.simplefilter("ignore")
        calibration = fewbit.Calibration(**wishes, call=call)
        report = fewbit.quantize(
            pipe, recipe, calibration=calibration, progress=False, **RECIPES[recipe]
        )
        folder = Path(place) / "small"
        fewbit.save(pipe, folder, report=report)
        loaded = DiffusionPipeline.from_pretrained(folder)
        judged = evaluate(
            Named(loaded, "small"),
            Named(tiny_pipelines.make(name), "reference"),
            Setting(1, steps=STEPS, prompts=PROMPTS, call=call),
            Path(place),
            Judges(rows=4),
        )
        return {
            "equal": _pixels(pipe, call) == _pixels(loaded, call),
            "judged": judged.trajectory is not None and bool(judged.scores),
            "db": round(judged.trajectory.sqnr, 1) if judged.trajectory else None,
            "layers": len(report.layers),
            "kinds": len(report.components) or 1,
            "warnings": len(report.warnings),
        }


def _pixels(pipe: Any, call: Mapping[str, Any]) -> bytes:
    (picture,) = generate(pipe, seeds=[0], prompts=PROMPTS, steps=STEPS, call=call)
    pixels: bytes = picture.tobytes()
    return pixels


if __name__ == "__main__":
    main()
