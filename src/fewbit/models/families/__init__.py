"""Which family a model belongs to, by class name, so that no model library is ever imported."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType

from torch import nn

from fewbit.models.spec import ModelSpec


@cache
def families() -> dict[str, ModuleType]:
    """Every model class an adapter knows -> the adapter's module."""
    names = (info.name for info in pkgutil.iter_modules(__path__, f"{__name__}."))
    modules = (importlib.import_module(name) for name in names)
    return {known: module for module in modules for known in getattr(module, "CLASSES", ())}


def family_of(model: nn.Module) -> tuple[str, ModelSpec] | None:
    """The family's name and the spec of this model; a subclass counts as its parent."""
    known = families()
    for ancestor in type(model).__mro__:
        if ancestor.__name__ in known:
            family = known[ancestor.__name__]
            return family.__name__.rpartition(".")[2], family.spec(model)
    return None
