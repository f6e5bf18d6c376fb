"""Whether the inside of a module is as it was when its fast form was made, and nobody listens."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_modules

from fewbit.models.own_forward import is_wrapped


class Intact:
    """All modules inside one, by where they are held: a hook, an adapter, an offload wrapper or
    another module in the place of one is seen in a pass over them without a Python call."""

    def __init__(self, root: nn.Module) -> None:
        self.sizes = [(holder._modules, len(holder._modules)) for holder in root.modules()]
        self.places = [
            (holder._modules, name, inner)
            for holder in root.modules()
            for name, inner in holder._modules.items()
            if inner is not None
        ]

    def holds(self) -> bool:
        if anybody_listens():
            return False
        for modules, size in self.sizes:  # a parametrization is added to a module
            if len(modules) != size:
                return False
        for modules, name, inner in self.places:
            listened = inner._forward_hooks or inner._forward_pre_hooks
            if modules.get(name) is not inner or listened:
                return False
            if "forward" in inner.__dict__ and is_wrapped(inner):
                return False
        return True


def is_heard(module: nn.Module) -> bool:
    """Whether a call of the module would be heard by a hook."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or anybody_listens()


def anybody_listens() -> bool:
    """Whether a hook hears the calls of all modules."""
    return bool(torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks)
