"""Modulations remembered: what a block makes of timestep and label alone is computed once.

An adaLN block sees its tokens shifted and scaled by vectors that depend on nothing but timestep and
label, and diffusers' DiT embeds both anew in every block. While pictures are drawn, a call with an
input that was seen before gives the tensor it gave then, the same bits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import BadModel
from fewbit.layers.adapters import is_adapted
from fewbit.models import Role, describe
from fewbit.models.own_forward import own_forward

EMBEDDERS = ("CombinedTimestepLabelEmbeddings",)  # of timestep and label, one in each block
LIMIT = 64 << 20  # bytes of what is remembered; 50 steps of a DiT-XL/2 in bfloat16 need 40 MB
FEW = 1 << 16  # elements of an input that is still quickly compared


@contextmanager
def remembered(model: nn.Module, limit: int = LIMIT) -> Iterator[None]:
    """For the time of the context; nothing is remembered of what is trained or compiled."""
    memory = _Memory(model, limit)
    modules = list(_conditioned(model))
    with ExitStack() as inside:
        for module in modules:
            inside.enter_context(own_forward(module, memory.of(module, module.forward)))
        yield


def _conditioned(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that read timestep and label only, and in which nobody has put a forward of his
    own: offloading brings the weights there, and wants to be called each time. What an adapter adds
    is scaled by a number that may change between two calls."""
    return (module for module in _candidates(model) if not any(map(_is_wrapped, module.modules())))


def _is_wrapped(module: nn.Module) -> bool:
    return "forward" in vars(module) or is_adapted(module)


def _candidates(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if type(module).__name__ in EMBEDDERS:
            yield module
    try:
        layers = describe(model).layers
    except BadModel:  # of a family without an adapter, or none: nothing is known to be modulation
        return
    for layer in layers:
        if layer.role is Role.ADALN:
            yield model.get_submodule(layer.name)


class _Memory:
    def __init__(self, model: nn.Module, limit: int) -> None:
        self.model = model
        self.left = limit
        self.known: OrderedDict[Hashable, Tensor] = OrderedDict()

    def of(self, module: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def recalled(*args: Any, **kwargs: Any) -> Tensor:
            given = (*args, *kwargs.values())
            if self.model.training or not all(map(_quickly_compared, given)):
                return forward(*args, **kwargs)
            asked = tuple(kwargs), tuple(map(_content, given))
            known = self.known.get((_weights(module), asked))
            if known is not None:
                self.known.move_to_end((_weights(module), asked))
                return known
            result = forward(*args, **kwargs)
            self._keep((_weights(module), asked), result)  # the first call may lay weights out
            return result

        return recalled

    def _keep(self, key: Hashable, result: Tensor) -> None:
        self.known[key] = result
        self.left -= result.nbytes
        while self.left < 0 and len(self.known) > 1:
            _, oldest = self.known.popitem(last=False)
            self.left += oldest.nbytes


def _quickly_compared(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return True
    traced = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return not traced and value.device.type == "cpu" and value.numel() <= FEW


def _content(value: Any) -> Hashable:
    if not isinstance(value, Tensor):
        return value if isinstance(value, Hashable) else id(value)
    content = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return value.dtype, tuple(value.shape), content


def _weights(module: nn.Module) -> Hashable:
    """Blocks that share their tensors share what they make of an input."""
    tensors = chain(module.parameters(), module.buffers())
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
