"""The subject quantized for speed: the recipe's run-time work, without its search for weights."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from fewbit.bench.subject import Subject
from fewbit.engine.recipe import Recipe
from fewbit.engine.run import quantize
from fewbit.errors import BadArgument

OFF = ("gptq", "clip", "propagate", "ho", "weighted")
NO_SEARCH = {**dict.fromkeys(OFF, False), "steps": 0}
MOMENTS = 16  # for methods that tell early steps from late ones


def quantized(subject: Subject, recipe: str | None, bits: str | None) -> nn.Module:
    """A copy. A method that wants data sees the one step that is measured, at many times."""
    if subject.quantized is not None:
        if recipe is not None or bits is not None:
            raise BadArgument(f"{subject.name} is already quantized; leave recipe and bits out")
        return copy.deepcopy(subject.quantized)
    chosen = Recipe.resolve(recipe or "hq-dit", bits, {})
    settings = asdict(chosen.settings)
    settings |= {name: off for name, off in NO_SEARCH.items() if name in settings}
    network = copy.deepcopy(subject.network)
    data = _at_many_times(subject.inputs) if chosen.method.calibrated else None
    bits = chosen.bits
    quantize(
        network,
        chosen.method,
        bits=bits,
        calibration=data,
        progress=False,
        measure=False,
        **settings,
    )
    return network


def _at_many_times(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    time = inputs.get("timestep")
    if time is None:
        return [inputs]
    moments = torch.linspace(0, float(time.max()), MOMENTS).to(time)
    return [{**inputs, "timestep": moment.expand_as(time)} for moment in moments]
