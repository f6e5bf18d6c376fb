"""Telling diffusers about fewbit, whichever of the two is imported first, without importing it.

diffusers has no entry point for quantizers: the accepted way is to add to two dictionaries of
`diffusers.quantizers.auto`. If that module is not there yet, it is met when it arrives.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

TARGET = "diffusers.quantizers.auto"
PLUGIN = "fewbit.diffusers_plugin"  # registers itself when it is imported


def register_with_diffusers() -> None:
    if TARGET in sys.modules:
        import_module(PLUGIN)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds nothing itself; lets the real loader work and registers when it is done."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != TARGET:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    def __init__(self, real: Loader) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.real.exec_module(module)
        import_module(PLUGIN)
