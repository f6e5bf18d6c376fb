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
from fewbit.layers.snapshot import Snapshot
from fewbit.layers.swap import RUN_TIME, Forward, may_answer, swap

LIMIT = 64 << 20  # bytes of what a model remembers; 50 steps of a DiT-XL/2 in bfloat16 need 40 MB
ALONE = 2 << 20  # bytes of a module that was copied out of its model
SAMPLES = 64  # bytes of a tensor that are looked at in each call
Sampled = list[bytes]
FEW = 1 << 16  # elements of an input that is still quickly compared


def remembering(inherited: Forward, name: str) -> Forward:
    """For a module that reads timestep and label only."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        memory = None if self.training or not may_answer() else _memory_of(self)
        asked = None if memory is None else memory.question(args, kwargs)
        if memory is None or asked is None:
            return inherited(self, *args, **kwargs)
        known = memory.answers().get(asked)
        if known is None:
            known = inherited(self, *args, **kwargs)
            memory.answers().keep(asked, known)  # the first call may lay weights out
        return known.clone()  # whoever gets it may write to it

    return forward


def remember(modules: Iterable[nn.Module], limit: int = LIMIT) -> None:
    """Modules that share their tensors share what they make of an input."""
    alike: dict[tuple[int, ...], list[nn.Module]] = {}
    for module in modules:
        alike.setdefault(tuple(map(id, _tensors(module))), []).append(module)
    for group in alike.values():
        shared = Shared(limit // len(alike))
        for module in group:
            swap(module, remembering)
            vars(module)[RUN_TIME] = Memory(module, shared)


class Answers(OrderedDict[Hashable, Tensor]):
    """What was computed with some weights, the oldest first; no more than a number of bytes."""

    def __init__(self, made_of: Snapshot, sampled: Sampled, limit: int) -> None:
        super().__init__()
        self.made_of, self.sampled, self.limit = made_of, sampled, limit

    def is_of(self, made_of: Snapshot, sampled: Sampled) -> bool:
        return self.made_of.state == made_of.state and self.sampled == sampled

    def keep(self, key: Hashable, result: Tensor) -> None:
        self[key] = result
        while sum(kept.nbytes for kept in list(self.values())) > self.limit and len(self) > 1:
            self.popitem(last=False)


class Shared:
    """The answers that modules of the same tensors share, as long as these stay the same."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.answers: Answers | None = None

    def of(self, made_of: Snapshot, sampled: Sampled) -> Answers:
        answers = self.answers
        if answers is None or not answers.is_of(made_of, sampled):
            answers = self.answers = Answers(made_of, sampled, self.limit)
        return answers


class Memory:
    """What one module has computed, as long as it is intact.

    A snapshot keeps weights in memory. So there is none before the first question, and none of a
    module that is offloaded or on another device.
    """

    def __init__(self, module: nn.Module, shared: Shared) -> None:
        self.module, self.intact, self.shared = module, Intact(module), shared
        self.made_of: Snapshot | None = None
        self.samples: list[Tensor] = []

    def answers(self) -> Answers:
        """Those of the weights as they are now."""
        made_of, sampled = self.made_of, _bytes_of(self.samples)
        if made_of is None or not made_of.holds() or sampled != self.sampled:
            made_of, sampled = self._look()
        return self.shared.of(made_of, sampled)

    def _look(self) -> tuple[Snapshot, Sampled]:
        made_of = Snapshot(self.module)
        self.samples = [_sample(tensor) for tensor in made_of.kept if not tensor.is_meta]
        self.made_of, self.sampled = made_of, _bytes_of(self.samples)
        return made_of, self.sampled

    def _forget(self) -> None:
        self.made_of, self.samples, self.shared.answers = None, [], None

    def question(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable | None:
        """The contents of the arguments; None if they are not quickly compared."""
        given = (*args, *kwargs.values())
        elsewhere = any(isinstance(one, Tensor) and one.device.type != "cpu" for one in given)
        if elsewhere or not self.intact.holds():
            self._forget()
            return None
        contents: list[Hashable] = [*kwargs]
        for value in given:
            if not isinstance(value, Tensor | Hashable):
                return None
            if not isinstance(value, Tensor):
                contents += type(value), value
            elif value.numel() > FEW:
                return None
            else:
                contents += value.dtype, value.shape, _bytes(value)
        return tuple(contents)


def _memory_of(module: nn.Module) -> Memory:
    """A copy of a module remembers on its own."""
    memory: Memory | None = vars(module).get(RUN_TIME)
    if memory is None:
        memory = vars(module)[RUN_TIME] = Memory(module, Shared(ALONE))
    return memory


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    return chain(module.parameters(), module.buffers())


def _sample(weight: Tensor) -> Tensor:
    """Bytes here and there, which tell of a write through `.data` that nobody counts: adapters are
    fused and averages of weights copied so. A write to a few numbers alone may be missed."""
    stored = weight.cpu().reshape(-1).view(torch.uint8)
    return stored[:: max(1, stored.numel() // SAMPLES) | 1]


def _bytes_of(samples: list[Tensor]) -> Sampled:
    return [sample.numpy().tobytes() for sample in samples]


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy())
