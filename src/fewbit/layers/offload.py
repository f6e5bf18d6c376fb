"""Libraries that take weights away between forwards, as far as a layer has to know of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from fewbit.errors import BadModel

HOOK = "_hf_hook"  # where accelerate keeps its hook on a module


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate brings its tensors for a forward and takes them away after it."""
    hook = getattr(module, HOOK, None)
    return any(getattr(part, "offload", False) for part in getattr(hook, "hooks", (hook,)))


def refuse_empty(model: nn.Module, doing: str) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise BadModel(
                f"{name} of {type(model).__name__} is on the meta device and holds no numbers; "
                f"load the weights, or take away what offloads them, before {doing}"
            )


@contextmanager
def brought(*roots: nn.Module | None) -> Iterator[None]:
    """The tensors of modules that are used by other ways than their forward, which accelerate
    would bring them for."""
    parts = [part for root in roots if root is not None for part in root.modules()]
    with ExitStack() as leaving:
        for part in filter(is_offloaded, parts):
            hook = getattr(part, HOOK)
            hook.pre_forward(part)
            leaving.callback(hook.post_forward, part, None)
        yield
