"""Finding things by listing the folder they live in: a new file is all that a new kind needs."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Sequence
from functools import cache, lru_cache
from operator import attrgetter
from types import ModuleType
from typing import Any

from fewbit.errors import BrokenFile


@cache
def modules(package: str, marker: str) -> dict[Any, ModuleType]:
    """The modules of `fewbit.<package>` that define `marker`, such as `KIND` or `METHOD.name`, by
    its value."""
    parent = importlib.import_module(f"fewbit.{package}")
    children = (
        importlib.import_module(f"{parent.__name__}.{info.name}")
        for info in pkgutil.iter_modules(parent.__path__)
    )
    return {value: m for m in children if (value := _value(m, marker)) is not None}


@lru_cache
def find(package: str, marker: str, value: str) -> ModuleType | None:
    """The one of this value. A file called like it is looked at first, so that a model that needs
    one method does not wait for the others."""
    parent = importlib.import_module(f"fewbit.{package}")
    name = value.replace("-", "_")
    if name in (info.name for info in pkgutil.iter_modules(parent.__path__)):
        module = importlib.import_module(f"{parent.__name__}.{name}")
        if _value(module, marker) == value:
            return module
    return modules(package, marker).get(value)


def _value(module: ModuleType, marker: str) -> Any:
    try:
        return attrgetter(marker)(module)
    except AttributeError:
        return None


def missing(packages: Sequence[str]) -> str | None:
    """Why what needs these packages cannot run."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed"


def build(package: str, config: dict[str, Any]) -> Any:
    """The part that `config` describes, its tensors still to be loaded."""
    kind = config["kind"]
    if not isinstance(kind, str):
        raise BrokenFile(f"a kind in {package} is a text, got {kind!r:.80}")
    found: Any = find(package, "KIND", kind)
    if found is None:
        known = ", ".join(sorted(modules(package, "KIND")))
        raise BrokenFile(f"unknown kind {kind!r:.80} in {package}; this version knows: {known}")
    return found.from_config(config)
