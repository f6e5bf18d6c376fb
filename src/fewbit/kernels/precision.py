"""Whatever changes torch's operations from outside, kept out of what has a precision of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Each operation in the dtypes it is given; free of cost where there is no autocast."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def without_function_modes() -> AbstractContextManager[object]:
    """Each operation without a word to torch function modes, which would take longer in Python
    than a small layer computes; the compiler, which has none, cannot trace this."""
    return nullcontext() if torch.compiler.is_compiling() else torch._C.DisableTorchFunction()
