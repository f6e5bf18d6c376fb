"""Every transformer class of diffusers through every recipe: quantize, run, save, load.

python benchmarks/census.py [--classes PATTERN] [--recipes NAME ...] [--again]

The models are those of `tiny_classes.py`, with random weights. A cell of the table is the SQNR of
the output in dB, or the error that a user would read. A class passes where the output is finite and
the loaded model gives the same bits, or where the error is one of fewbit's own. What was measured
stands in `build/census.json` and is not measured again, unless `--again` asks for it; the table is
written beside it.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tiny_classes import CLASSES, Arguments, Tiny
from torch import Tensor, nn

import fewbit
from fewbit.calibration.tree import tensors
from fewbit.engine.decibel import sqnr
from fewbit.layers.bind import bind
from fewbit.models import describe
from fewbit.models.discover import discover

FOUND = Path(__file__).parent.parent / "build" / "census.json"
CALLS = 4
RECIPES: dict[str, dict[str, Any]] = {
    "rtn": {"bits": "w4a4"},
    "hq-dit": {"bits": "w4a4"},
    "vq4dit": {"bits": "w2", "steps": 2},
    "fp4dit": {"bits": "w4a8", "steps": 2},
    "tq-dit": {"bits": "w8a8", "groups": 2, "candidates": 8, "rounds": 1},
}
WITHOUT_DATA = ("rtn",)


def main() -> None:
    asked = _asked()
    names = [name for name in CLASSES if fnmatchcase(name, asked.classes)]
    found = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    for name in names:
        for recipe in asked.recipes:
            if asked.again or recipe not in found.setdefault(name, {}):
                found[name][recipe] = cell = measured(name, recipe)
                FOUND.parent.mkdir(exist_ok=True)
                FOUND.write_text(json.dumps(found, indent=1) + "\n")
                print(f"{name} {recipe}: {_said(cell)}", flush=True)
    text = table(found)
    FOUND.with_suffix(".md").write_text(text)
    print(text)


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--classes", default="*")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--again", action="store_true")
    return parser.parse_args()


def measured(name: str, recipe: str) -> dict[str, Any]:
    """What became of one class in one recipe."""
    started = time.perf_counter()
    try:
        cell = _through(CLASSES[name], name, recipe)
    except fewbit.FewbitError as error:
        cell = {"error": str(error)}
    except Exception:  # a cell tells it; the census goes on
        cell = {"raw": traceback.format_exc(limit=-4)}
    return {**cell, "seconds": round(time.perf_counter() - started, 1)}


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
        bind(loaded, describe(loaded, spec))  # what a spec tells is not in the folder
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


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["| class | " + " | ".join(RECIPES) + " |", "| --- |" + " --- |" * len(RECIPES)]
    for name, cells in found.items():
        said = [_said(cells[recipe]) if recipe in cells else "" for recipe in RECIPES]
        lines.append(f"| {name} | " + " | ".join(said) + " |")
    lines.append("| **passed** | " + " | ".join(_counted(found)) + " |")
    return "\n".join(lines) + "\n"


def _counted(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for recipe in RECIPES:
        cells = [one[recipe] for one in found.values() if recipe in one]
        ran = sum("db" in cell and passed(cell) for cell in cells)
        told = sum("error" in cell for cell in cells)
        yield f"{ran} ran, {told} refused, of {len(cells)}"


def _said(cell: Mapping[str, Any]) -> str:
    if "db" in cell:
        return f"{cell['db']:.1f}" if cell["equal"] else "loaded otherwise"
    if "error" in cell:
        return f"refused: {cell['error'][:80]}".replace("|", "/").replace("\n", " ")
    return "BROKEN: " + cell["raw"].strip().splitlines()[-1][:80].replace("|", "/")


if __name__ == "__main__":
    main()
