"""How far a quantized pipeline's noise prediction strays from full precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from fewbit.calibration import CalibrationSet
from fewbit.calibration.modes import evaluating
from fewbit.engine.decibel import energies, ratio_db
from fewbit.engine.measured import noise_prediction
from fewbit.judge.layers import LayerError, LayerErrors


@dataclass(frozen=True)
class TrajectoryFidelity:
    """In dB over all rows, and over those of each timestep, the cleanest first."""

    sqnr: float
    by_timestep: dict[float, float]
    layers: tuple[LayerError, ...] = ()


@dataclass(frozen=True)
class Pair:
    """The same network twice, and what the reference's was called with."""

    reference: nn.Module
    quantized: nn.Module
    rows: CalibrationSet


def trajectory_fidelity(
    reference: nn.Module,
    quantized: nn.Module,
    rows: CalibrationSet,
    batch: int = 16,
    layers: LayerErrors | None = None,
) -> TrajectoryFidelity:
    """Both networks on the same inputs, those that `calibration.sample` recorded of the reference.

    Only running sums are kept, so memory does not grow with the number of rows. `layers` listens
    to single layers as well.
    """
    signal, noise = energies_of(Pair(reference, quantized, rows), batch, layers)
    return fidelity(signal, noise, () if layers is None else layers.found())


def fidelity(
    signal: Mapping[float, float], noise: Mapping[float, float], layers: Sequence[LayerError]
) -> TrajectoryFidelity:
    """Of the energies at each timestep."""
    return TrajectoryFidelity(
        ratio_db(sum(signal.values()), sum(noise.values())),
        {time: ratio_db(signal[time], noise[time]) for time in sorted(signal)},
        tuple(layers),
    )


@torch.no_grad()
def energies_of(
    pair: Pair, batch: int, layers: LayerErrors | None
) -> tuple[Counter[float], Counter[float]]:
    """Of the output and of its error, by timestep."""
    reference, quantized, rows = pair.reference, pair.quantized, pair.rows
    times = rows.timesteps()
    signal: Counter[float] = Counter()
    noise: Counter[float] = Counter()
    listening = nullcontext() if layers is None else layers.listening()
    with evaluating(reference, quantized), listening:
        for part in rows.parts(batch):
            inputs = rows.take(part)
            exact, actual = (noise_prediction(net, inputs) for net in (reference, quantized))
            when = torch.zeros(len(part)) if times is None else times[part.start : part.stop]
            if layers is not None:
                layers.compare(when)
            if len(exact) != len(part):  # a call whose rows are not told apart
                exact, actual, when = exact[None], actual[None], when.mean()[None]
            for time in when.unique().tolist():
                here = when == time
                more = energies(exact[here], actual[here])
                signal[time] += more[0]  # type: ignore[assignment]
                noise[time] += more[1]  # type: ignore[assignment]
    return signal, noise
