"""What quantizing will take on this machine: a coarse model of time and memory, known beforehand.

Most time goes into rows that run through the network: those of the pipeline while it draws, and
some passes of the calibration through the blocks. So a call of the network is timed, and the rest
is counted. The constants were fitted on the demo `shapes`, with rtn, hq-dit and best on one core.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import torch
from torch import nn

from fewbit.calibration import Calibration, CalibrationSet, Source
from fewbit.calibration.drawing import CALIBRATION
from fewbit.calibration.tree import tensors
from fewbit.engine.call import call_for
from fewbit.engine.measured import noise_prediction
from fewbit.engine.memory import resident_bytes
from fewbit.engine.plan import Plan
from fewbit.engine.recipe import Recipe
from fewbit.engine.source import PASSES, asked_by, source_of
from fewbit.errors import FewbitError
from fewbit.models import Component
from fewbit.progress import clock

SURVEY, BLOCKS, TRAINING = "survey", "blocks", "last training"  # after the calibration
BACK_AND_FORTH = 3  # times as long as forth alone
ROUNDED, SOLVED = 8e6, 4e5  # weights a second and thread: plainly, and by calibration data
CALLS, LONGEST = 9, 1.0  # to be timed, and how long at most, in seconds
WORKING = 0.2e9  # bytes beside the network: of libraries at work, and of a batch
COPIES = 4  # of the largest block: its weights, moments and candidates
STREAMS = 3  # of the calibration's rows, each as wide as what reaches a block
WIDTH = 80
WITHIN = 2.0  # times more or less, on the demo


@dataclass(frozen=True)
class Expected:
    seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        return (
            f"  about {clock(self.seconds)} and {self.peak_bytes / 1e9:.1f} GB of memory here, "
            f"within {WITHIN:g}x on the demo shapes"
        )


def rows_of(recipe: Recipe, source: CalibrationSet | Source | None) -> dict[str, float]:
    """How many rows run through the network in each phase to come; a coarse guess."""
    if source is None:
        return {BLOCKS: 0.0}
    method, settings, rows = recipe.method, recipe.settings, len(source)
    found: dict[str, float] = {}
    if isinstance(source, Source):
        found[CALIBRATION] = source.rows_run
    if method.survey is not None:
        found[SURVEY] = BACK_AND_FORTH * rows
    found[BLOCKS] = PASSES * rows + BACK_AND_FORTH * settings.trained_rows
    if method.finish is not None:
        found[TRAINING] = BACK_AND_FORTH * settings.tuned_rows
    return found


def cost_of(
    model: Any, component: Component, plan: Plan, calibration: object, seed: int
) -> Expected | str:
    """A line for people where it cannot be known."""
    try:
        asked = asked_by(plan.recipe, calibration)
        source = source_of(model, component, plan.recipe, asked, seed)
        how = asked if isinstance(asked, Calibration) else Calibration()
        call = None if source is None else call_for(model, component, source, how)
    except FewbitError as error:
        said = f"time and memory are not known: {error}"
        return fill(said, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return expected(component.network, plan, source, call)


def expected(
    network: nn.Module,
    plan: Plan,
    source: CalibrationSet | Source | None,
    call: Mapping[str, Any] | None,
) -> Expected:
    weights = sum(layer.shape[0] * layer.shape[1] for layer in plan.layers)
    threads = torch.get_num_threads()
    seconds, wide = weights / (ROUNDED if source is None else SOLVED) / threads, 0.0
    if source is not None and call is not None:
        each, wide = _of_a_row(network, plan.structure.blocks[0], call)
        seconds += each * sum(rows_of(plan.recipe, source).values())
    blocks: Counter[int | None] = Counter()
    for layer in plan.layers:
        blocks[layer.block] += layer.bytes
    largest = max(blocks.values(), default=0)
    rows = 0 if source is None else len(source)
    peak = resident_bytes() + WORKING + COPIES * largest + STREAMS * rows * wide
    return Expected(seconds, round(peak))


@torch.no_grad()
def _of_a_row(network: nn.Module, block: str, call: Mapping[str, Any]) -> tuple[float, float]:
    """The seconds of a row of a call, and the bytes of it that reach a block."""
    seen: list[int] = []

    def listen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = tensors({"args": args, "kwargs": kwargs}).values()
        seen.append(sum(tensor.nbytes for tensor in given))

    hook = network.get_submodule(block).register_forward_pre_hook(listen, with_kwargs=True)
    try:
        noise_prediction(network, dict(call))
    finally:
        hook.remove()
    rows = _rows(call)
    return min(_seconds(network, call)) / rows, seen[0] / rows


def _seconds(network: nn.Module, call: Mapping[str, Any]) -> Iterator[float]:
    """Of some calls: the shortest is the least disturbed."""
    began = time.perf_counter()
    for _ in range(CALLS):
        started = time.perf_counter()
        noise_prediction(network, dict(call))
        yield time.perf_counter() - started
        if time.perf_counter() - began > LONGEST:
            return


def _rows(call: Mapping[str, Any]) -> int:
    return next((len(one) for one in tensors(call).values() if one.ndim), 1)
