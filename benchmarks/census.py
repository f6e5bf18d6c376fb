"""Every transformer class of diffusers through every recipe: quantize, run, save, load.

python benchmarks/census.py [--classes PATTERN] [--recipes NAME ...] [--again]

The models are those of `tiny_classes.py`, with random weights. A cell is the SQNR of the output in
dB, or the error that a user would read. A class passes where the output is finite and the loaded
model gives the same bits, or where the error is one of fewbit's own. What was measured stands in
`build/census`, a file for each class, and is not measured again, unless `--again` asks for it.
Several runs may share the work by patterns of classes. All of it goes into
benchmarks/results/census.json, and `python benchmarks/reach.py` makes a page of it.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from cells import cell_of, said
from environment import write_result
from tiny_classes import CLASSES, Arguments, Tiny
from torch import Tensor, nn

import fewbit
from fewbit.calibration.tree import tensors
from fewbit.engine.decibel import sqnr
from fewbit.models.discover import discover

FOUND = Path(__file__).parent.parent / "build" / "census"
CALLS = 4
RECIPES: dict[str, dict[str, Any]] = {
    "rtn": {"bits": "w4a4"},
    "best": {"bits": "w4a4"},
    "portable": {"bits": "comfy-w4a8"},
    "hq-dit": {"bits": "w4a4"},
    "vq4dit": {"bits": "w2", "steps": 2},
    "fp4dit": {"bits": "w4a8", "steps": 2},
    "tq-dit": {"bits": "w8a8", "groups": 2, "candidates": 8, "rounds": 1},
}
WITHOUT_DATA = ("rtn",)


def main() -> None:
    asked = _asked()
    names = [name for name in CLASSES if fnmatchcase(name, asked.classes)]
    FOUND.mkdir(parents=True, exist_ok=True)
    for name in names:
        for recipe in asked.recipes:
            cells = _found(name)
            if asked.again or recipe not in cells:
                cells[recipe] = measured(name, recipe)
                (FOUND / f"{name}.json").write_text(json.dumps(cells, indent=1) + "\n")
                print(f"{name} {recipe}: {said(cells[recipe])}", flush=True)
    classes = {name: cells for name in CLASSES if (cells := _found(name))}
    print(write_result("census", {"recipes": RECIPES, "classes": classes}))


def _found(name: str) -> dict[str, Any]:
    path = FOUND / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--classes", default="*")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--again", action="store_true")
    return parser.parse_args()


def measured(name: str, recipe: str) -> dict[str, Any]:
    """What became of one class in one recipe."""
    return cell_of(lambda: _through(CLASSES[name], name, recipe))


def passed(cell: Mapping[str, Any]) -> bool:
    return "raw" not in cell and cell.get("equal", True)


def _through(tiny: Tiny, name: str, recipe: str) -> dict[str, Any]:
    model = tiny.build(name)
    *calls, held_out = tiny.calls(CALLS + 1)
    spec = discover(model, held_out)
    exact = output(model, held_out)
    given = {} if recipe in WITHOUT_DATA else {"calibration": calls}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = fewbit.quantize(
            model,
            recipe,
            spec=spec,
            progress=False,
            **given,
            **RECIPES[recipe],
        )
    actual = output(model, held_out)
    if not actual.isfinite().all():
        raise ValueError("the output of the quantized model is not finite")
    with TemporaryDirectory() as folder:
        fewbit.save(model, folder, report=report, overwrite=True)
        loaded = type(model).from_pretrained(folder)
    return {
        "db": round(sqnr(exact, actual), 1),
        "equal": torch.equal(output(loaded, held_out), actual),
        "layers": len(report.layers),
        "warnings": len(report.warnings),
    }


@torch.no_grad()
def output(model: nn.Module, call: Arguments) -> Tensor:
    """All that the model gives, in one row."""
    given = tensors(model(**call)).values()
    return torch.cat([one.float().flatten() for one in given if one.is_floating_point()])


if __name__ == "__main__":
    main()
