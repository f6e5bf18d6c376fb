"""The measurement: every arm made from the same weights, checked, timed in turn, looked into."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.bench.arms import DEFINITION, EXACT, Arm, arms_named
from fewbit.bench.environment import environment
from fewbit.bench.footprint import resident_bytes, working_bytes
from fewbit.bench.gpu import captured
from fewbit.bench.levels import LEVELS, PRODUCT, Case, ProductAlone, blocks_needed, called
from fewbit.bench.quantizing import quantized
from fewbit.bench.result import Result, Row, Table
from fewbit.bench.shares import shares, waiting_for
from fewbit.bench.subject import open_subject
from fewbit.bench.turns import Times, Turn, ratio, take_turns
from fewbit.calibration.flat import output
from fewbit.engine.decibel import sqnr
from fewbit.errors import BadArgument
from fewbit.layers.linear import QLinear

AS_NEAR = 0.05  # dB: what roundings of float32 and bfloat16 in another order may cost


@torch.no_grad()
def bench(
    model: str,
    level: str = "block",
    *,
    recipe: str | None = None,
    bits: str | None = None,
    arms: Collection[str] | None = None,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    rounds: int = 7,
    batch: int = 1,
) -> Result:
    """`model` is `dit-xl-2` or `pixart-1024` (full size, random weights), a demo or a path."""
    if level not in LEVELS:
        raise BadArgument(f"unknown level {level!r}; allowed: {', '.join(LEVELS)}")
    place = torch.device(device)
    chosen = arms_named(arms, place)
    left_out = {arm.name: why for arm in chosen if (why := _absent(arm, level, place))}
    with _threads(threads):
        subject = open_subject(model, batch, place)
        ours = quantized(subject, recipe, bits)
        taking_part = _with_standards([arm for arm in chosen if arm.name not in left_out])
        blocks, at_work = blocks_needed(level, subject), called(level, subject)
        networks: dict[str, nn.Module] = {}
        for arm in taking_part.values():
            base = ours if arm.backend else subject.network
            with _forgiven(arm, left_out):
                networks[arm.name] = arm.network(base, subject, blocks, at_work)
        cases = LEVELS[level](subject, networks)
        tables = tuple(_measured(case, taking_part, rounds, place, left_out) for case in cases)
        asked = {
            "model": model,
            "level": level,
            "recipe": _recipe_of(ours),
            "device": str(place),
            "batch": batch,
            "rounds": rounds,
        }
        return Result(asked, environment(), left_out, tables)


@dataclass(frozen=True)
class _Contender:
    arm: Arm
    modules: list[nn.Module]
    arguments: dict[str, Any]

    def make_ready(self) -> Tensor:
        """Layouts are made, graphs compiled or captured; what the first set of weights gives."""
        with self.active():
            first, *_ = [run() for run in self.runs]
            return first.float()

    def active(self) -> AbstractContextManager[None]:
        return self.arm.active()

    @cached_property
    def runs(self) -> list[Callable[[], Tensor]]:
        plain = [partial(output, module, self.arguments) for module in self.modules]
        return [captured(run) for run in plain] if self.arm.graph else list(plain)


def _measured(
    case: Case,
    arms: Mapping[str, Arm],
    rounds: int,
    device: torch.device,
    left_out: dict[str, str],
) -> Table:
    contenders: dict[str, _Contender] = {}
    results: dict[str, Tensor] = {}
    for name, one in _contenders(case, arms).items():
        with _forgiven(one.arm, left_out):
            results[name] = one.make_ready()
            contenders[name] = one
    for standard in (EXACT, DEFINITION):
        contenders.pop(standard.name, None)
    exact = results["fp32" if "fp32" in results else EXACT.name]
    lost = partial(_sqnr, exact, case.call.arguments.get(case.residual or ""))
    reference = lost(results[DEFINITION.name]) if DEFINITION.name in results else None
    turns = {name: Turn(one.runs, one.active) for name, one in contenders.items()}
    times = take_turns(turns, rounds, waiting_for(device))
    rows = tuple(
        _row(name, one, case, times, lost(results[name]), reference, device)
        for name, one in contenders.items()
    )
    return Table(case.title, reference, rows)


def _contenders(case: Case, arms: Mapping[str, Arm]) -> dict[str, _Contender]:
    found: dict[str, _Contender] = {}
    for name, modules in case.modules.items():
        arm = arms[name]
        arguments = case.call.in_dtype(arm.dtype)
        found[name] = _Contender(arm, modules, arguments)
        if case.operations and arm.backend and arm is not DEFINITION:
            alone = _products(arm, modules, arguments)
            if alone:
                found[name + PRODUCT] = _Contender(arm, alone, arguments)
    return found


def _products(arm: Arm, modules: list[nn.Module], arguments: dict[str, Any]) -> list[nn.Module]:
    (x,) = arguments.values()
    with arm.active():
        layers = [one for one in modules if isinstance(one, QLinear) and one.activation is not None]
        return [ProductAlone(layer, x.flatten(0, -2)) for layer in layers]


def _row(
    name: str,
    contender: _Contender,
    case: Case,
    times: Mapping[str, Times],
    sqnr_db: float,
    reference: float | None,
    device: torch.device,
) -> Row:
    """The looks inside, after the rounds. Only ours are compared with all the others."""
    arm, run = contender.arm, contender.runs[0]
    others = [n for n in times if arm.backend and not n.startswith("ours")] or [next(iter(times))]
    with contender.active():
        opaque = case.operations or arm.graph or arm.takes_blocks
        parts = None if opaque else _shares(contender, device)
        working = working_bytes(run, device)
    own = times[name]
    return Row(
        arm=name,
        times=own,
        faster={other: ratio(times[other], own) for other in others if other != name},
        gop_per_second=case.operations and case.operations / own.median / 1e6,
        shares=parts,
        resident_bytes=resident_bytes(contender.modules[0]),
        working_bytes=working,
        sqnr_db=sqnr_db,
        agrees=None if not arm.backend or reference is None else sqnr_db >= reference - AS_NEAR,
    )


def _shares(contender: _Contender, device: torch.device) -> dict[str, float] | None:
    """None where a library's compiler takes the listening for a part of what it compiles."""
    try:
        return shares(contender.modules[0], contender.runs[0], waiting_for(device))
    except Exception:
        if not contender.arm.foreign:
            raise
        return None


def _sqnr(exact: Tensor, residual: Tensor | None, actual: Tensor) -> float:
    """Of what a block adds, where its output is mostly what it was given."""
    if residual is None or residual.shape != exact.shape:
        return sqnr(exact, actual)
    return sqnr(exact - residual, actual - residual)


def _with_standards(arms: list[Arm]) -> dict[str, Arm]:
    """And what errors are measured against."""
    standards = [] if any(arm.name == "fp32" for arm in arms) else [EXACT]
    if any(arm.backend for arm in arms):
        standards.append(DEFINITION)
    return {arm.name: arm for arm in [*arms, *standards]}


def _absent(arm: Arm, level: str, device: torch.device) -> str | None:
    if level == "gemm" and arm.takes_blocks:
        return "it takes whole blocks and has no single layers"
    return arm.absent(device)


def _recipe_of(network: Any) -> str:
    recipe = network.fewbit.recipe
    return f"{recipe['method']}:{recipe['bits']}"


@contextmanager
def _forgiven(arm: Arm, left_out: dict[str, str]) -> Iterator[None]:
    """A library that breaks down here leaves the others their turns."""
    try:
        yield
    except Exception as error:
        if not arm.foreign:
            raise
        left_out[arm.name] = f"it fails here: {type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    """Compilers go on with paths of this machine."""
    return str(error).strip().partition("\n")[0][:80]


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    cores, before = len(os.sched_getaffinity(0)), torch.get_num_threads()
    if count is not None and not 0 < count <= cores:
        raise BadArgument(f"{count} threads cannot run side by side; allowed: 1 to {cores} cores")
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
