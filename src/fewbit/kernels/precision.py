"""Autocast kept out of what has a precision of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def as_written(x: Tensor) -> AbstractContextManager[object]:
    """Each operation in the dtypes it is given; free of cost where there is no autocast."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
