"""Bytes: of weights that stay, and of what one call takes on top of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from fewbit.engine.memory import release

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def resident_bytes(module: nn.Module) -> int:
    """Of all parameters and buffers, layouts and other libraries' tensors included, once each."""
    sizes: dict[int, int] = {}
    for tensor in chain(module.parameters(), module.buffers()):
        for inner in _inside(tensor):
            storage = inner.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values()) + sum(getattr(m, "hidden_bytes", 0) for m in module.modules())


def working_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """The most that a call needs beyond what was there before; None where that is not told."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    release()
    try:
        _CLEAR.write_text(_RESET_PEAK)
        before = _kilobytes("VmRSS")
        run()
        return 1024 * max(_kilobytes("VmHWM") - before, 0)
    except OSError:
        return None


def _inside(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that a tensor of another library is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor.data if isinstance(tensor, nn.Parameter) else tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _inside(getattr(tensor, name))


def _kilobytes(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise OSError(f"{_STATUS} does not tell {key}")
