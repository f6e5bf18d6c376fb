"""A module's class exchanged for a subclass of the same name that answers its forward, and back.

Nothing of the module is touched but its class, so hooks, adapters, offloading and an instance's own
forward work as before. A copy or a pickle names the class that was there and how the other is made
of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from fewbit.kernels.precision import is_traced
from fewbit.models.own_forward import forget_leftover

RUN_TIME = "_run_time"  # what an answer remembers in its module; it belongs to this process
ANSWER = "_answer"

Forward = Callable[..., Any]
Answer = Callable[[Forward, str], Forward]  # a class's forward and name to the new forward


def swap(module: nn.Module, answer: Answer) -> None:
    """From now on the module's forward is what `answer`, a function of some module, makes of it."""
    own: Any = type(module)
    forget_leftover(module)
    module.__class__ = _subclass(own, answer)


def swap_back(module: nn.Module) -> None:
    vars(module).pop(RUN_TIME, None)
    forget_leftover(module)
    module.__class__ = own_class(type(module))


def own_class(cls: type) -> type:
    """The class that a module had, whose class now may be a swapped one."""
    return cls.__bases__[0] if ANSWER in vars(cls) else cls


def answer_of(module: nn.Module) -> Answer | None:
    """What the module's class was swapped by, if it was."""
    return vars(type(module)).get(ANSWER)


def may_answer() -> bool:
    """Whether nobody derives, traces or changes operations just now."""
    return not (
        torch.is_grad_enabled()
        or is_traced()
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_function_stack()
    )


@cache
def _subclass(cls: Any, answer: Answer) -> Any:
    inherited_reduce = cls.__reduce_ex__

    def reduced(self: Any, protocol: Any) -> Any:
        _, _, state, *rest = inherited_reduce(self, protocol)
        kept = {name: value for name, value in state.items() if name != RUN_TIME}
        return _empty, (cls, answer), kept, *rest

    members = {
        "forward": answer(cls.forward, cls.__name__),
        ANSWER: answer,
        "__reduce_ex__": reduced,
        "__module__": cls.__module__,
    }
    return type(cls.__name__, (cls,), members)


def _empty(cls: Any, answer: Answer) -> Any:
    """One of the class, its state yet to come."""
    swapped = _subclass(cls, answer)
    return swapped.__new__(swapped)
