"""Which backend computes, chosen in one place that can say why.

`FEWBIT_BACKEND=reference|torch|native|cuda` forces one; it is an error where that cannot run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.errors import BadArgument
from fewbit.kernels.cuda import Cuda
from fewbit.kernels.native.backend import Native
from fewbit.kernels.reference import Reference
from fewbit.kernels.torch_cpu import Portable

VARIABLE = "FEWBIT_BACKEND"
BACKENDS: tuple[Reference, ...] = (Cuda(), Native(), Portable(), Reference())  # as they are tried
_CHOSEN: dict[tuple[str | None, str], int] = {}


@dataclass(frozen=True)
class Choice:
    backend: Reference
    why: str


def backend_for(x: Tensor) -> Reference:
    """The backend for x's device; the reference where x needs a gradient, because only it is
    differentiable."""
    trained = torch.is_grad_enabled() and x.requires_grad
    return BACKENDS[-1] if trained else backend_on(x.device)


def backend_on(device: torch.device) -> Reference:
    return BACKENDS[_place(device.type)]


@torch.compiler.assume_constant_result
def _place(device: str) -> int:
    """Of the backend among all. Looking for a library is nothing that a compiler can trace."""
    key = os.environ.get(VARIABLE), device
    if key not in _CHOSEN:
        _CHOSEN[key] = BACKENDS.index(choose(torch.device(device)).backend)
    return _CHOSEN[key]


def backend_named(name: str) -> Reference:
    return next(backend for backend in BACKENDS if backend.name == name)


def choose(device: torch.device) -> Choice:
    forced = os.environ.get(VARIABLE)
    if forced:
        return Choice(_forced(forced, device), f"{VARIABLE} says so")
    refused: list[str] = []
    for backend in BACKENDS:
        why_not = backend.why_not(device)
        if why_not is None:
            return Choice(backend, "; ".join(refused) or "the fastest here")
        if backend.home == device.type:
            refused.append(f"{backend.name} cannot: {why_not}")
    raise AssertionError("the definition runs everywhere")


def _forced(name: str, device: torch.device) -> Reference:
    named = {backend.name: backend for backend in BACKENDS}
    if name not in named:
        allowed = ", ".join(sorted(named))
        raise BadArgument(f"{VARIABLE} is {name!r}; allowed: {allowed}, or leave it unset")
    why_not = named[name].why_not(device)
    if why_not is not None:
        raise BadArgument(f"{VARIABLE} forces {name!r}, which cannot run: {why_not}")
    return named[name]
