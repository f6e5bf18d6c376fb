"""Figures of the house: how many Python calls a layer and a block make, how deep a verb goes.

python benchmarks/house.py
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from environment import write_result
from models import dit_rows, dit_xl_2

import fewbit

SOURCE = Path(fewbit.__file__).parent
TESTS = SOURCE.parents[1] / "tests"
ROUNDS = {"encode", "encode_rows", "round", "round_rows"}  # functions that round
INSIDE = {"rtn": "solve", "hq-dit": "gptq"}  # where a recipe rounds its weights


def main() -> None:
    figures = {"python calls": calls(), "frames to the line that rounds": frames(), **sizes()}
    for name, value in figures.items():
        print(f"{name}: {value}")
    write_result("house", figures)


@torch.no_grad()
def calls() -> dict[str, dict[str, int]]:
    """In one forward of a layer and of a DiT block, by the bits of rtn."""
    found = {}
    for bits in ("w4a4", "w8a8", "w4a16"):
        model = dit_xl_2(1)
        fewbit.quantize(model, "rtn", bits=bits, progress=False)
        block = model.transformer_blocks[0]
        layer, tokens = block.ff.net[2], torch.randn(2, 16, 1152)
        given = {"timestep": torch.tensor([3, 500]), "class_labels": torch.tensor([1, 7])}
        found[bits] = {
            "layer": counted(partial(layer, torch.randn(2, 16, layer.in_features))),
            "block": counted(partial(block, tokens, **given)),
        }
    return found


def counted(run: Callable[[], object]) -> int:
    """Python functions called in a run that is not the first."""
    run()
    run()
    events: list[str] = []
    sys.setprofile(lambda frame, event, _: events.append(event) if event == "call" else None)
    run()
    sys.setprofile(None)
    return len(events)


def frames() -> dict[str, int]:
    """Functions of fewbit on the stack, from the verb to the first that rounds a weight."""
    return {recipe: _depth(recipe, name) for recipe, name in INSIDE.items()}


def _depth(recipe: str, inside: str) -> int:
    depths: list[int] = []

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name in ROUNDS and _is_ours(frame):
            stack = _names(frame)
            if inside in stack:
                depths.append(len(stack))

    model = dit_xl_2(1)
    given: dict[str, Any] = {} if recipe == "rtn" else {"calibration": list(dit_rows(4))}
    sys.setprofile(look)
    fewbit.quantize(model, recipe, bits="w4a4", progress=False, **given)
    sys.setprofile(None)
    return min(depths)


def _names(frame: FrameType | None) -> list[str]:
    names = []
    while frame is not None:
        if _is_ours(frame):
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


def _is_ours(frame: FrameType) -> bool:
    return str(SOURCE) in frame.f_code.co_filename and not frame.f_code.co_name.startswith("<")


def sizes() -> dict[str, float]:
    files = sorted(SOURCE.rglob("*.py"))
    core, tests = _lines(files), _lines(TESTS.rglob("*.py"))
    return {
        "flat files": len(list(SOURCE.glob("*.py"))),
        "core lines": core,
        "tests to core": round(tests / core, 2),
        "isinstance on formats outside formats": sum(map(_asks_for_formats, files)),
    }


def _lines(files: Any) -> int:
    return sum(len(file.read_text().splitlines()) for file in files)


def _asks_for_formats(file: Path) -> int:
    if "formats" in file.relative_to(SOURCE).parts:
        return 0
    kinds = {"Codebook", "FormatChoice", "Integer", "Minifloat"}
    asked = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
    named = (node for node in asked if getattr(node.func, "id", "") == "isinstance")
    return sum(any(kind in ast.unparse(node.args[1]) for kind in kinds) for node in named)


if __name__ == "__main__":
    main()
