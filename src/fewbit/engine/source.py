"""Where a calibrated recipe gets the data of one network from, settled before any work."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from fewbit.calibration import (
    Calibration,
    CalibrationSet,
    CallSet,
    Reading,
    Sampling,
    Source,
    manner_of,
)
from fewbit.engine.recipe import Recipe
from fewbit.errors import BadCalibration
from fewbit.models import Component
from fewbit.pipelines.size import affordable

PASSES = 6  # of all rows through the blocks, beside their training

Asked = Calibration | CalibrationSet | Iterable[Mapping[str, Any]]


def asked_by(recipe: Recipe, calibration: object) -> Asked:
    """What a recipe is to see, judged as far as it can be before it is made."""
    if not recipe.method.calibrated and not _is_call_alone(calibration):
        raise BadCalibration(
            f"{recipe.method} looks at no data; leave calibration out, or give what the pipeline "
            "must be told to run at all: fewbit.Calibration(call={...})"
        )
    if calibration is None:
        return Calibration()
    if isinstance(calibration, int):
        return Calibration(calibration)
    if isinstance(calibration, Calibration | CalibrationSet):
        return calibration
    if isinstance(calibration, str | bytes | Mapping) or not isinstance(calibration, Iterable):
        raise BadCalibration(
            f"calibration must be a number of samples, a fewbit.Calibration, or a list of dicts "
            f"of the forward's keyword arguments, got {type(calibration).__name__}"
        )
    return calibration


def _is_call_alone(calibration: object) -> bool:
    """How the pipeline is to be called, and nothing of the data."""
    if isinstance(calibration, Calibration):
        return calibration == Calibration(call=calibration.call)
    return calibration is None


def source_of(
    model: Any, component: Component, recipe: Recipe, asked: Asked, seed: int
) -> CalibrationSet | Source | None:
    """What was given, or how the pipeline is to be watched."""
    if not recipe.method.calibrated:
        return None
    if not isinstance(asked, Calibration):
        given = asked if isinstance(asked, CalibrationSet) else CallSet.from_items(asked)
        _refuse_foreign(given, component.network)
        return given
    if isinstance(model, nn.Module):
        raise BadCalibration(
            f"{recipe.method} needs to see data, and a bare {type(model).__name__} cannot make "
            "its own; give calibration=[{...}, ...], dicts of its forward's keyword arguments, "
            "or quantize the whole pipeline"
        )
    manner = manner_of(model, asked, component.name)
    samples = asked.samples or recipe.settings.samples
    if not component.denoises:
        return Reading(manner, samples, seed)
    times = recipe.settings.time_groups
    sampling = Sampling.of(manner, samples, seed, times=times, asked=asked)
    smaller, note = affordable(model, manner, sampling.rows_run + PASSES * len(sampling))
    if note is None:
        return sampling
    return Sampling.of(smaller, samples, seed, times=times, asked=asked, note=note)


def note_of(source: CalibrationSet | Source | None) -> str | None:
    """What a user would not expect of the calibration."""
    return source.note if isinstance(source, Source) else None


def _refuse_foreign(data: CalibrationSet, network: nn.Module) -> None:
    """Rows whose arguments the network does not take, or that lack one it needs."""
    forward = inspect.signature(network.forward)
    try:
        forward.bind(**data.examples()[0])
    except TypeError as error:
        raise BadCalibration(
            f"calibration does not suit the forward of {type(network).__name__}: {error}; "
            f"it takes {', '.join(forward.parameters)}"
        ) from None
