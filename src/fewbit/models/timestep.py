"""Which argument of a network's forward is the time."""

from __future__ import annotations

import inspect

from torch import nn

TIMES = ("timestep", "timesteps", "t")


def time_argument(model: nn.Module) -> tuple[str, int] | None:
    """Its name and place, or None where the forward takes no time."""
    names = list(inspect.signature(model.forward).parameters)
    return next(((name, names.index(name)) for name in TIMES if name in names), None)
