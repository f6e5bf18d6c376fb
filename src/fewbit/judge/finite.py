"""Which layer is the first whose output is not finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class NotFinite(Exception):
    """`layer` gave a NaN or an infinity."""

    def __init__(self, layer: str, besides: str = "") -> None:
        super().__init__(f"the output of {layer} is not finite{besides}")
        self.layer = layer


class PathsDisagree(NotFinite):
    """`layer` gave such an output, but none did when every layer was watched."""

    def __init__(self, layer: str) -> None:
        super().__init__(
            layer,
            " but for when every layer is watched: the fused path and the layers' own forwards "
            "disagree",
        )


@contextmanager
def finite_outputs(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """While inside, the first of these modules that ends with such an output raises NotFinite.

    A module ends after those inside it, so the layer named is the innermost.
    """

    def looking_at(name: str) -> Any:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not _is_finite(output):
                raise NotFinite(name)

        return look

    hooks = [module.register_forward_hook(looking_at(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def networks(pipe: Any) -> dict[str, nn.Module]:
    """The parts of a pipeline that have weights; a transformer alone has no such parts."""
    parts: Mapping[str, Any] = getattr(pipe, "components", {})
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


def outermost(pipe: Any) -> dict[str, nn.Module]:
    """The networks, their direct children and the blocks in lists of those: some networks, as a
    VAE, are only run through their children, and a list only through its blocks."""
    found = dict(networks(pipe))
    for name, network in networks(pipe).items():
        for path, child in network.named_children():
            inside = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
            found |= {f"{name}.{path}.{own}".rstrip("."): module for own, module in inside}
    return found


def every_layer(pipe: Any) -> dict[str, nn.Module]:
    return {
        f"{name}.{path}".rstrip("."): module
        for name, network in networks(pipe).items()
        for path, module in network.named_modules()
    }


def _is_finite(output: Any) -> bool:
    if isinstance(output, Tensor):
        return not output.is_floating_point() or bool(torch.isfinite(output).all())
    if isinstance(output, Mapping):
        return all(map(_is_finite, output.values()))
    return all(map(_is_finite, output)) if isinstance(output, tuple | list) else True
