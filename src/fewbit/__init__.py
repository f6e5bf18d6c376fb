"""fewbit: few-bit diffusion transformers.

Importing this registers fewbit with diffusers and peft, whichever is imported first.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewbit.diffusers.registration import register
from fewbit.version import __version__

if TYPE_CHECKING:
    from fewbit.api import dequantize, export, inspect, prepare, push, save
    from fewbit.calibration import Calibration
    from fewbit.diffusers.plugin import FewbitConfig
    from fewbit.engine.recipe import recipes
    from fewbit.engine.report import Report
    from fewbit.engine.run import quantize
    from fewbit.errors import FewbitError
    from fewbit.models import ModelSpec
    from fewbit.pipelines.opening import load

_HOMES = {
    "Calibration": "fewbit.calibration",
    "FewbitConfig": "fewbit.diffusers.plugin",
    "FewbitError": "fewbit.errors",
    "ModelSpec": "fewbit.models",
    "Report": "fewbit.engine.report",
    "dequantize": "fewbit.api",
    "export": "fewbit.api",
    "inspect": "fewbit.api",
    "load": "fewbit.pipelines.opening",
    "prepare": "fewbit.api",
    "push": "fewbit.api",
    "quantize": "fewbit.engine.run",
    "recipes": "fewbit.engine.recipe",
    "save": "fewbit.api",
}

__all__ = [
    "Calibration",
    "FewbitConfig",
    "FewbitError",
    "ModelSpec",
    "Report",
    "__version__",
    "dequantize",
    "export",
    "inspect",
    "load",
    "prepare",
    "push",
    "quantize",
    "recipes",
    "save",
]


def __dir__() -> list[str]:
    """What is public."""
    return sorted([*__all__, "demo"])


def __getattr__(name: str) -> Any:
    """Names come when first asked for, so that `fewbit --help` does not wait for torch."""
    if name == "demo":
        return import_module("fewbit.demo")
    if name not in _HOMES:
        raise AttributeError(f"module 'fewbit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


register()
