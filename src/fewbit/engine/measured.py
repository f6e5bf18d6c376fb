"""A quantized network beside what it was: how fast on this machine, and how far from its output."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewbit.calibration import CalibrationSet
from fewbit.calibration.modes import evaluating
from fewbit.calibration.tree import map_tensors, tensors
from fewbit.engine.decibel import energies, ratio_db
from fewbit.engine.memory import available_bytes
from fewbit.formats.names import megabytes

T = TypeVar("T")
ROWS, BATCH = 8, 2  # rows that the error is measured on, and those of one call
ROUNDS, SECONDS = 5, 10.0  # of timing: whatever is reached first
CALLS = 2 * ROWS + 2 * BATCH * (ROUNDS + 1)  # rows that are run to measure all


@dataclass(frozen=True)
class Measured:
    """What a few calls of a quantized network showed.

    Attributes:
        seconds: The time of one call on this machine; None where it was not measured.
        bf16_seconds: That of the same network in bfloat16, in turns with it.
        db: The error of the output over rows of the calibration, in dB; None without such data.
        rows: How many rows these are.
        why_not: Why something was not measured.
    """

    seconds: float | None = None
    bf16_seconds: float | None = None
    db: float | None = None
    rows: int = 0
    why_not: str = ""

    @property
    def faster(self) -> float | None:
        """How many times as fast as bfloat16."""
        if self.seconds is None or self.bf16_seconds is None:
            return None
        return self.bf16_seconds / self.seconds


class Measurement:
    """Begun while a network is in full precision, ended when it is quantized.

    The twin is the network as it was: its modules are copies, but their tensors are the network's
    own, so that they cost no memory and are parked with them.
    """

    def __init__(self, network: nn.Module, rows: CalibrationSet, drawn: bool) -> None:
        """`drawn` rows are of a calibration, so that an error on them says something."""
        self.rows = rows
        self.exact = list(_outputs(network, rows)) if drawn else []
        shared: dict[int, Any] = {id(one): one for one in _tensors(network)}
        self.twin = copy.deepcopy(network, shared)

    def end(self, network: nn.Module) -> Measured:
        found = Measured()
        if self.exact:
            pairs = zip(self.exact, _outputs(network, self.rows), strict=True)
            signal, noise = map(sum, zip(*(energies(*pair) for pair in pairs), strict=True))
            found = replace(found, db=ratio_db(signal, noise), rows=len(self.rows))
        speed = attempted(lambda: self._speed(network))
        if isinstance(speed, str):
            return replace(found, why_not=speed)
        return replace(found, seconds=speed[0], bf16_seconds=speed[1])

    def _speed(self, network: nn.Module) -> tuple[float, float] | str:
        needed, free = bfloat16_bytes(self.twin), available_bytes()
        if free is not None and needed > free:
            return f"{megabytes(needed)} for a copy in bfloat16, {megabytes(free)} are free"
        plain = _in_bfloat16(self.twin)
        return seconds_in_turns(network, plain, next(self.rows.batches(BATCH)))


def attempted(measure: Callable[[], T]) -> T | str:
    """What was measured, or in words why not: measuring never ends the work that it is of."""
    try:
        return measure()
    except Exception as error:  # a network may do anything in bfloat16
        return f"{type(error).__name__}: {error}".partition("\n")[0][:200]


@torch.no_grad()
def seconds_in_turns(
    network: nn.Module, plain: nn.Module, inputs: dict[str, Any]
) -> tuple[float, float]:
    """Of one call of each, the median over rounds; the first round warms up, unless it alone takes
    as long as all may. `plain` is in bfloat16."""
    halved = map_tensors(inputs, _halved)
    turns: list[tuple[float, float]] = []
    started = time.perf_counter()
    with evaluating(network, plain):
        while len(turns) <= ROUNDS:
            turns.append((_seconds(network, inputs), _seconds(plain, halved)))
            if time.perf_counter() - started > SECONDS:
                break
    ours, theirs = zip(*(turns[1:] or turns), strict=True)
    return median(ours), median(theirs)


def noise_prediction(network: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """What the scheduler reads, without a learned variance behind it."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    output = network(**map_tensors(inputs, lambda tensor: tensor.to(device)))
    prediction = next(iter(tensors(output).values())).cpu()
    latent = inputs.get("hidden_states")
    if isinstance(latent, Tensor) and latent.ndim == prediction.ndim == 4:
        prediction = prediction[:, : latent.shape[1]]
    return prediction


@torch.no_grad()
def _outputs(network: nn.Module, rows: CalibrationSet) -> Iterator[Tensor]:
    with evaluating(network):
        for inputs in rows.batches(BATCH):
            yield noise_prediction(network, inputs)


def _seconds(network: nn.Module, inputs: dict[str, Any]) -> float:
    started = time.perf_counter()
    noise_prediction(network, inputs)
    return time.perf_counter() - started


def _halved(tensor: Tensor) -> Tensor:
    return tensor.bfloat16() if tensor.is_floating_point() else tensor


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    return chain(network.parameters(), network.buffers())


def bfloat16_bytes(network: nn.Module) -> int:
    return sum(2 * one.numel() for one in _tensors(network))


def _in_bfloat16(twin: nn.Module) -> nn.Module:
    """The twin with tensors of its own, one after the other."""
    halved: dict[Tensor, Tensor] = {}
    for module in twin.modules():
        for held in (vars(module)["_parameters"], vars(module)["_buffers"]):
            for name, tensor in held.items():
                if tensor is not None and tensor not in halved:
                    halved[tensor] = _copied(tensor)
                held[name] = None if tensor is None else halved[tensor]
    return twin


def _copied(tensor: Tensor) -> Tensor:
    plain = _halved(tensor.detach())
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(plain, requires_grad=False) if is_parameter else plain
