"""One call of a network's forward, to see how the network is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fewbit.calibration import Calibration, CalibrationSet, Source, manner_of
from fewbit.errors import BadModel
from fewbit.models import Component
from fewbit.pipelines.first_call import first_call
from fewbit.pipelines.size import smallest

AS_USUAL = Calibration()


def call_for(
    model: Any,
    component: Component,
    source: CalibrationSet | Source | None = None,
    asked: Calibration = AS_USUAL,
) -> Mapping[str, Any] | None:
    """From the calibration data, or else from the pipeline, or None where there is neither."""
    if isinstance(source, CalibrationSet):
        return source.take(source.parts(1)[0])
    if isinstance(model, nn.Module):
        return None
    try:
        if source is not None:
            return first_call(model, source.manner) or None
        manner = smallest(model, manner_of(model, asked, component.name))
    except BadModel:  # a pipeline that is asked in a way of its own
        return None
    return first_call(model, manner) or None


def usual_call(model: Any, component: Component) -> Mapping[str, Any] | None:
    """As a pipeline makes it for a picture of its usual size; None for a network alone."""
    if isinstance(model, nn.Module):
        return None
    return first_call(model, manner_of(model, AS_USUAL, component.name)) or None
