"""Which argument of a network's forward is the time."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

TIMES = ("timestep", "timesteps", "t")


def time_argument(model: nn.Module) -> tuple[str, int] | None:
    """Its name and place, or None where the forward takes no time."""
    names = list(inspect.signature(model.forward).parameters)
    return next(((name, names.index(name)) for name in TIMES if name in names), None)


def time_of_rows(time: Tensor) -> Tensor:
    """float32 [rows], or [1] for all rows; the mean of a row whose frames or tokens have timesteps
    of their own."""
    return time.float().reshape(len(time) if time.ndim else 1, -1).mean(1)
