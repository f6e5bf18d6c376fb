"""A forward of an instance's own for a while, and the one that was there before put back.

Others do the same: accelerate brings offloaded weights in a forward that it puts there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import nn

from fewbit.errors import BadModel


def is_wrapped(module: nn.Module) -> bool:
    """Whether calls reach another forward than that of the class. accelerate leaves the class's own
    behind, as an attribute of the instance, when it takes a hook away."""
    forward = vars(module).get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def forget_leftover(module: nn.Module) -> None:
    """Take away the class's own forward where it was left behind: calls would go by it, and not by
    the class that the module gets next."""
    if "forward" in vars(module) and not is_wrapped(module):
        del vars(module)["forward"]


def refuse_bound_to_one(model: nn.Module) -> None:
    """A plain function finds its module, or what that module called before, by itself. A copy of
    the model would have the same function, and run the modules of the original."""
    for name, module in model.named_modules():
        if isinstance(vars(module).get("forward"), FunctionType):
            raise BadModel(
                f"{name or 'the model'} has a forward of its own, a function put there by hand, "
                "which would run the original where a copy is trained; allowed: take it away "
                "before quantizing and put it back afterwards"
            )


@contextmanager
def own_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Calls of the module reach `forward`, which calls the module's own if it likes."""
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before
