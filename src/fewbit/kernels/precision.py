"""Whatever changes torch's operations from outside, kept out of what has a precision of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class _Ours(threading.local):
    """How many dispatch modes of this thread are our own, which hear the native library too."""

    modes = 0


_ours = _Ours()


@contextmanager
def own_mode(mode: TorchDispatchMode) -> Iterator[None]:
    _ours.modes += 1
    try:
        with mode:
            yield
    finally:
        _ours.modes -= 1


def is_traced() -> bool:
    """Whether operators are recorded, transformed or listened to, so that a call of the native
    library past torch's dispatcher would be missed: the compiler, torch.jit.trace, functorch,
    dispatch modes."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > _ours.modes
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


@contextmanager
def without_recording() -> Iterator[None]:
    """What is done in here is no part of the graph that torch.jit.trace records."""
    tracing: Any = torch._C
    recording = tracing._get_tracing_state()
    tracing._set_tracing_state(None)
    try:
        yield
    finally:
        tracing._set_tracing_state(recording)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Each operation in the dtypes it is given; free of cost where there is no autocast."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def without_function_modes() -> AbstractContextManager[object]:
    """Each operation without a word to torch function modes, which would take longer in Python
    than a small layer computes; the compiler, which has none, cannot trace this."""
    return nullcontext() if torch.compiler.is_compiling() else torch._C.DisableTorchFunction()
