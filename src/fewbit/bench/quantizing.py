"""The subject quantized for speed: the recipe's run-time work, without its search for weights."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

from torch import nn

from fewbit.bench.subject import Subject
from fewbit.engine import quantize
from fewbit.errors import BadArgument
from fewbit.recipe import method_named

NO_SEARCH = {"gptq": False, "clip": False, "propagate": False}


def quantized(subject: Subject, recipe: str | None, bits: str | None) -> nn.Module:
    """A copy. A method that wants data sees the one step that is measured."""
    if subject.quantized is not None:
        if recipe is not None or bits is not None:
            raise BadArgument(f"{subject.name} is already quantized; leave recipe and bits out")
        return copy.deepcopy(subject.quantized)
    method = method_named(recipe or "hq-dit")
    known = {field.name for field in fields(method.Settings)}  # type: ignore[arg-type]
    settings: dict[str, Any] = {k: v for k, v in NO_SEARCH.items() if k in known}
    network = copy.deepcopy(subject.network)
    data = [subject.inputs] if method.CALIBRATED else None
    quantize(network, method.NAME, bits=bits, calibration=data, progress=False, **settings)
    return network
