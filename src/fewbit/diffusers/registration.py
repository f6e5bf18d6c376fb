"""Telling diffusers and peft about fewbit, whichever is imported first, without importing them.

Neither has an entry point for what fewbit adds: the accepted way is to add to their tables and
classes. A module of theirs that is not there yet is met when it arrives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

PLUGINS = {  # a module of theirs: one of ours, which registers when it is imported
    "diffusers.quantizers.auto": "fewbit.diffusers.plugin",
    "diffusers.configuration_utils": "fewbit.diffusers.configuration",
    "diffusers.models.modeling_utils": "fewbit.diffusers.counting",
    "diffusers.hooks._helpers": "fewbit.diffusers.step_caches",
    "diffusers.loaders.peft": "fewbit.diffusers.adapters",
    "diffusers.loaders.lora_pipeline": "fewbit.diffusers.flux_adapters",
    "peft.tuners.lora": "fewbit.diffusers.peft_plugin",
    "transformers.quantizers.auto": "fewbit.diffusers.text_encoders",
}


def register() -> None:
    for target in PLUGINS:
        when_imported(target, _import_ours)


def when_imported(name: str, action: Callable[[ModuleType], object]) -> None:
    """Now, if the module is there; else once it is."""
    if name in sys.modules:
        action(sys.modules[name])
        return
    ours = [one for one in sys.meta_path if isinstance(one, _Finder) and one.name == name]
    if not ours:
        sys.meta_path.insert(0, _Finder(name, [action]))
    elif action not in ours[0].actions:
        ours[0].actions.append(action)


def _import_ours(module: ModuleType) -> None:
    import_module(PLUGINS[module.__name__])


Action = Callable[[ModuleType], object]


class _Finder(MetaPathFinder):
    """Finds nothing itself; lets the real loader work and acts when it is done."""

    def __init__(self, name: str, actions: list[Action]) -> None:
        self.name, self.actions = name, actions

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _ActingLoader(spec.loader, self.actions)
        return spec


class _ActingLoader(Loader):
    def __init__(self, real: Loader, actions: Sequence[Action]) -> None:
        self.real, self.actions = real, actions

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.real.exec_module(module)
        for action in self.actions:
            action(module)
