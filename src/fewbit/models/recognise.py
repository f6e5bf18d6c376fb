"""Where the structure of a model is known from."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from torch import nn

from fewbit.models.discover import discover
from fewbit.models.families import family_of
from fewbit.models.guess import guess
from fewbit.models.spec import SPEC, ModelSpec


class Origin(StrEnum):
    """Where a spec is from; the first two are intended by somebody who knows the model."""

    GIVEN = "as given"
    FAMILY = "of its family"
    STORED = "as stored with it"
    FORWARD = "found by one forward"
    NAMES = "found by names alone"


def is_known(model: nn.Module) -> bool:
    """Whether nothing has to be found out."""
    return hasattr(model, SPEC) or family_of(model) is not None


def recognise(
    model: nn.Module, call: Mapping[str, Any] | None = None
) -> tuple[str, ModelSpec, Origin]:
    """The family, or else the class, with its spec."""
    family = family_of(model)
    name = type(model).__name__ if family is None else family[0]
    if hasattr(model, SPEC):
        return name, getattr(model, SPEC), Origin.STORED
    if family is not None:
        return *family, Origin.FAMILY
    if call is not None:
        return name, discover(model, call), Origin.FORWARD
    return name, guess(model), Origin.NAMES
