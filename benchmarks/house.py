"""Figures of the house: Python calls of a layer and a block, the depth of a verb, lines, rings.

python benchmarks/house.py
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable
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
sys.path.append(str(TESTS))
from test_house import ring  # noqa: E402

ROUNDS = {"encode", "encode_rows", "round", "round_rows"}  # functions that round
INSIDE = {"rtn": "solve", "hq-dit": "gptq"}  # where a recipe rounds its weights
INSTRUMENTS = ("cli", "judge", "bench", "pages", "demo")
REPEATED = 6  # lines
GOALS = {
    **{f"calls in a QLinear, {bits}": "at most 25" for bits in ("w4a4", "w8a8", "w4a16")},
    **{f"calls in a DiT block, {bits}": "at most 250" for bits in ("w4a4", "w8a8", "w4a16")},
    "frames, rtn": "at most 7",
    "frames, hq-dit": "at most 12",
    "flat files": "at most 8",
    "modules in an import ring": "none",
    "isinstance on formats outside formats": "none",
    "core lines": "at most 20500",
    "tests : core": "at least 0.9",
    "instruments, % of the lines": "at most 33",
    "lines of a function, median": "5",
    "lines of a function, 90 %": "16",
    "repeated runs of 6 lines": "none that matter",
}


def main() -> None:
    figures = {**calls(), **frames(), **sizes(), **repetitions()}
    for name, value in figures.items():
        print(f"{name:42} {value:8}   {GOALS[name]}")
    rows = {name: {"now": value, "goal": GOALS[name]} for name, value in figures.items()}
    write_result("house", {"figures and goals": rows})


@torch.no_grad()
def calls() -> dict[str, float]:
    """In one forward of a layer and of a DiT block, by the bits of rtn."""
    found: dict[str, float] = {}
    for bits in ("w4a4", "w8a8", "w4a16"):
        model = dit_xl_2(1)
        fewbit.quantize(model, "rtn", bits=bits, progress=False)
        block = model.transformer_blocks[0]
        layer, tokens = block.ff.net[2], torch.randn(2, 16, 1152)
        given = {"timestep": torch.tensor([3, 500]), "class_labels": torch.tensor([1, 7])}
        rows = torch.randn(2, 16, layer.in_features)
        found[f"calls in a QLinear, {bits}"] = counted(partial(layer, rows))
        found[f"calls in a DiT block, {bits}"] = counted(partial(block, tokens, **given))
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


def frames() -> dict[str, float]:
    """Functions of fewbit on the stack, from the verb to the first that rounds a weight."""
    return {f"frames, {recipe}": _depth(recipe, name) for recipe, name in INSIDE.items()}


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
    instruments = _lines(file for room in INSTRUMENTS for file in (SOURCE / room).rglob("*.py"))
    return {
        "flat files": len(list(SOURCE.glob("*.py"))),
        "modules in an import ring": len(ring(files)),
        "isinstance on formats outside formats": sum(map(_asks_for_formats, files)),
        "core lines": core,
        "tests : core": round(tests / core, 2),
        "instruments, % of the lines": round(100 * instruments / core),
        **_functions(files),
    }


def _functions(files: list[Path]) -> dict[str, float]:
    """Lines of a function, docstrings included."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    lines = sorted(node.end_lineno - node.lineno + 1 for node in nodes if isinstance(node, kinds))
    half, most = (lines[int(len(lines) * share)] for share in (0.5, 0.9))
    return {"lines of a function, median": half, "lines of a function, 90 %": most}


def repetitions() -> dict[str, float]:
    """Runs of REPEATED lines or more that stand in two places of the core."""
    windows: dict[tuple[str, ...], tuple[Path, int]] = {}
    runs, before = 0, None
    for file in sorted(SOURCE.rglob("*.py")):
        lines = _told(file)
        for place in range(len(lines) - REPEATED + 1):
            first = windows.setdefault(tuple(lines[place : place + REPEATED]), (file, place))
            if first == (file, place):
                continue
            goes_on = before is not None and before == (first[0], first[1] - 1)
            runs, before = runs + (not goes_on), first
    return {"repeated runs of 6 lines": runs}


def _told(file: Path) -> list[str]:
    """The lines that say something: no blanks, comments, lone brackets or imports."""
    lines = (line.strip() for line in file.read_text().splitlines())
    return [
        line for line in lines if len(line) > 2 and not line.startswith(("#", "from ", "import "))
    ]


def _lines(files: Iterable[Path]) -> int:
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
