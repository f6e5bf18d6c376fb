"""What a model computes of timestep and label alone, remembered from call to call.

An adaLN block sees its tokens shifted and scaled by vectors that depend on nothing but timestep and
label, and diffusers' DiT embeds both anew in every block. A call with an input that was seen before
gives the tensor it gave then, the same bits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.layers.intact import Intact
from fewbit.layers.swap import RUN_TIME, Forward, may_answer, swap

LIMIT = 64 << 20  # bytes of what a model remembers; 50 steps of a DiT-XL/2 in bfloat16 need 40 MB
ALONE = 2 << 20  # bytes of a module that was copied out of its model
FEW = 1 << 16  # elements of an input that is still quickly compared


def remembering(inherited: Forward, name: str) -> Forward:
    """For a module that reads timestep and label only."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        memory = None if self.training or not may_answer() else _memory_of(self)
        asked = None if memory is None else memory.question(args, kwargs)
        if memory is None or asked is None:
            return inherited(self, *args, **kwargs)
        known = memory.answers.get((memory.weights(), asked))
        if known is None:
            known = inherited(self, *args, **kwargs)
            memory.keep((memory.weights(), asked), known)  # the first call may lay weights out
        return known

    return forward


def remember(modules: Iterable[nn.Module], limit: int = LIMIT) -> None:
    """Modules that share their tensors share what they make of an input."""
    alike: dict[tuple[int, ...], list[nn.Module]] = {}
    for module in modules:
        alike.setdefault(tuple(map(id, _tensors(module))), []).append(module)
    for group in alike.values():
        answers = Answers(limit // len(alike))
        for module in group:
            swap(module, remembering)
            vars(module)[RUN_TIME] = Memory(module, answers)


class Answers(OrderedDict[Hashable, Tensor]):
    """What was computed, the oldest first; no more than a number of bytes of it."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.left = limit

    def keep(self, key: Hashable, result: Tensor) -> None:
        self[key] = result
        self.left -= result.nbytes
        while self.left < 0 and len(self) > 1:
            _, oldest = self.popitem(last=False)
            self.left += oldest.nbytes


class Memory:
    """What one module has computed, as long as it is intact."""

    def __init__(self, module: nn.Module, answers: Answers) -> None:
        self.intact = Intact(module)
        self.answers, self.keep = answers, answers.keep
        self.slots: list[tuple[dict[str, Any], str]] = [
            (held, name)
            for part in module.modules()
            for held in (part._parameters, part._buffers)
            for name, tensor in held.items()
            if tensor is not None
        ]

    def question(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable | None:
        """The contents of the arguments; None if they are not quickly compared."""
        if not self.intact.holds():
            return None
        contents: list[Hashable] = [*kwargs]
        for value in (*args, *kwargs.values()):
            if not isinstance(value, Tensor):
                contents.append(value if isinstance(value, Hashable) else id(value))
            elif value.device.type != "cpu" or value.numel() > FEW:
                return None
            else:
                contents += value.dtype, value.shape, _bytes(value)
        return tuple(contents)

    def weights(self) -> Hashable:
        """Where the weights lie, and how often they were written to."""
        places: list[int] = []
        for held, name in self.slots:
            tensor = held[name]
            places += tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
        return tuple(places)


def _memory_of(module: nn.Module) -> Memory:
    """A copy of a module remembers on its own."""
    memory: Memory | None = vars(module).get(RUN_TIME)
    if memory is None:
        memory = vars(module)[RUN_TIME] = Memory(module, Answers(ALONE))
    return memory


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    return chain(module.parameters(), module.buffers())


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy())
