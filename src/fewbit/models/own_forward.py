"""A forward of an instance's own for a while, and the one that was there before put back.

Others do the same: accelerate brings offloaded weights in a forward that it puts there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def is_wrapped(module: nn.Module) -> bool:
    """Whether calls reach another forward than that of the class. accelerate leaves the class's own
    behind, as an attribute of the instance, when it takes a hook away."""
    forward = vars(module).get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


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
