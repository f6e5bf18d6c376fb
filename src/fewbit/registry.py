"""Finding things by listing the folder they live in: a new file is all that a new kind needs."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any

from fewbit.errors import BrokenFile


@cache
def modules(package: str, marker: str) -> dict[str, ModuleType]:
    """The modules of `fewbit.<package>` that define `marker`, by its value."""
    parent = importlib.import_module(f"fewbit.{package}")
    children = (
        importlib.import_module(f"{parent.__name__}.{info.name}")
        for info in pkgutil.iter_modules(parent.__path__)
    )
    return {getattr(m, marker): m for m in children if hasattr(m, marker)}


def build(package: str, config: dict[str, Any]) -> Any:
    """The part that `config` describes, its tensors still to be loaded."""
    kinds = modules(package, "KIND")
    kind = config.get("kind")
    if kind not in kinds:
        raise BrokenFile(
            f"unknown kind {kind!r} in {package}; this version knows: {', '.join(sorted(kinds))}"
        )
    return kinds[kind].from_config(config)
