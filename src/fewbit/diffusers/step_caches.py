"""Diffusers' step caches look a block up by its class, which may be one that `bind` gave it."""

from __future__ import annotations

from typing import Any

from diffusers.hooks._helpers import TransformerBlockRegistry

from fewbit.layers.swap import own_class


def by_own_class(get: Any) -> Any:
    def get_by_own_class(registry: Any, model_class: type) -> Any:
        return get(own_class(model_class))

    return classmethod(get_by_own_class)


Registry: Any = TransformerBlockRegistry
Registry.get = by_own_class(Registry.get)
