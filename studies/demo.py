"""What all studies share: a demo, rows it was never calibrated on, one measurement."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from plot import bars

import fewbit
from fewbit.calibration import CalibrationSet, sample
from fewbit.demo import load
from fewbit.judge import pixels
from fewbit.judge.reading import as_bytes
from fewbit.judge.trajectory import TrajectoryFidelity, trajectory_fidelity
from fewbit.layers.linear import quantized_layers
from fewbit.pipelines.generate import generate

RESULTS = Path(__file__).parent / "results"
MANNERS = {"shapes": {"steps": 25, "guidance": 2.5}, "scenes": {"steps": 20, "guidance": 4.5}}
CALIBRATION_SEED, HELD_OUT_SEED = 0, 1000
HELD_OUT_ROWS, PICTURES = 128, 16


def pipeline(demo: str = "shapes") -> Any:
    pipe = load(demo)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def reference(demo: str = "shapes") -> Any:
    return pipeline(demo)


@cache
def calibration(
    samples: int = 128, seed: int = CALIBRATION_SEED, demo: str = "shapes"
) -> CalibrationSet:
    return sample(reference(demo), samples=samples, seed=seed, **MANNERS[demo])


@cache
def held_out(demo: str = "shapes") -> CalibrationSet:
    return sample(reference(demo), samples=HELD_OUT_ROWS, seed=HELD_OUT_SEED, **MANNERS[demo])


def quantized(recipe: str, samples: int = 128, **settings: Any) -> tuple[Any, fewbit.Report]:
    pipe = pipeline()
    rows = {} if recipe == "rtn" else {"calibration": calibration(samples)}
    return pipe, fewbit.quantize(pipe, recipe, progress=False, **rows, **settings)


def fidelity(pipe: Any, demo: str = "shapes") -> TrajectoryFidelity:
    return trajectory_fidelity(reference(demo).transformer, pipe.transformer, held_out(demo))


def bits(transformer: Any, modulation: bool = False) -> float:
    """Of a quantized weight, in all: codes, scales, sides, and the directions; of those whose input
    is rounded, or with the modulation of all."""
    layers = quantized_layers(transformer).values()
    if not modulation:
        layers = [layer for layer in layers if layer.stage is not None]
    stages = {layer.stage for layer in layers if layer.stage is not None}
    apart = [stage.principal.codes for stage in stages if stage.principal is not None]
    stored = [layer.weight_bytes for layer in layers] + [tensor.nbytes for tensor in apart]
    return 8 * sum(stored) / sum(layer.in_features * layer.out_features for layer in layers)


def psnr(pipe: Any, demo: str = "shapes") -> float:
    """Mean over pictures of the same seeds."""
    pairs = zip(_reference_pictures(demo), _pictures(pipe, demo), strict=True)
    return fmean(pixels.psnr(as_bytes(exact), as_bytes(drawn)) for exact, drawn in pairs)


@cache
def _reference_pictures(demo: str) -> Sequence[Any]:
    return _pictures(reference(demo), demo)


def _pictures(pipe: Any, demo: str) -> Sequence[Any]:
    return generate(pipe, seeds=range(PICTURES), **MANNERS[demo])


def write_table(name: str, title: str, notes: str, header: Sequence[str],
                rows: Sequence[Sequence[Any]], plotted: Sequence[str] = ()) -> None:  # fmt: skip
    """As Markdown, with the plot of the same name under it: bars of these columns, or the
    caller's own."""
    RESULTS.mkdir(exist_ok=True)
    shown = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in r] for r in rows]
    table = [header, ["---"] * len(header), *shown]
    body = "\n".join(f"| {' | '.join(row)} |" for row in table)
    text = f"# {title}\n\n{notes}\n\n{body}\n\n![{title}]({name}.svg)\n"
    (RESULTS / f"{name}.md").write_text(text)
    if plotted:
        columns = [list(header).index(one) for one in plotted]
        full = [row for row in rows if all(isinstance(row[column], float) for column in columns)]
        series = {header[c].partition(",")[0]: [row[c] for row in full] for c in columns}
        unit = plotted[0].partition(", ")[2]
        bars(RESULTS / f"{name}.svg", title, unit, [str(row[0]) for row in full], series)
    print(text)
