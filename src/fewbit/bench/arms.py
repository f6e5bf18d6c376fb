"""The arms: ways to compute the same network, each made from the same weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from fewbit.api import prepare
from fewbit.bench import onednn
from fewbit.bench.peers import (
    OpenVinoBlock,
    by_sdnq,
    by_torchao,
    compiling_for_our_threads,
    missing,
)
from fewbit.bench.subject import Subject
from fewbit.errors import BadArgument
from fewbit.kernels.choose import VARIABLE, backend_named
from fewbit.layers.bind import bind, bind_attention, unbind
from fewbit.models import describe

REFERENCE = "reference"
FP32, BF16 = torch.float32, torch.bfloat16


def _as_it_is(network: nn.Module, names: Collection[str]) -> nn.Module:
    return network


def _can() -> str | None:
    return None


@dataclass(frozen=True)
class Arm:
    """convert: before a random network's block is repeated; finish: after it, on every block."""

    name: str
    dtype: torch.dtype
    convert: Callable[[nn.Module, Collection[str]], nn.Module] = _as_it_is
    finish: Callable[[nn.Module], nn.Module] = lambda network: network
    backend: str | None = None  # ours, by this backend
    takes_blocks: bool = False  # it optimises whole blocks and has no single layers
    graph: bool = False  # recorded as a CUDA graph
    device: str = "cpu"
    why_not: Callable[[], str | None] = _can

    @property
    def foreign(self) -> bool:
        """Whether more than torch's own operators and ours are at work."""
        return self.takes_blocks or self.convert in (by_torchao, by_sdnq)

    def absent(self, device: torch.device) -> str | None:
        """Why it cannot take part."""
        if self.backend is not None:
            return backend_named(self.backend).why_not(device)
        return self.why_not()

    def network(self, base: nn.Module, subject: Subject, blocks: int) -> nn.Module:
        own = nn.Module.to(
            copy.deepcopy(base), self.dtype
        )  # diffusers' own refuses a quantized one
        network = self.convert(own, subject.quantizable)
        return self.finish(subject.extended(network, blocks))

    def active(self) -> AbstractContextManager[None]:
        """While one of its modules is called: the first call binds it to the backend."""
        return nullcontext() if self.backend is None else forced(self.backend)


@contextmanager
def forced(backend: str) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _unpacked(network: nn.Module, names: Collection[str]) -> nn.Module:
    prepare(network, "fast")
    return network


def _bound(network: nn.Module) -> nn.Module:
    """Anew, for blocks were copied."""
    unbind(network)
    bind(network)
    return network


def _with_our_attention(network: nn.Module) -> nn.Module:
    bind_attention(network, describe(network))
    return network


def _compiled(network: nn.Module) -> nn.Module:
    compiling_for_our_threads()
    for name in describe(network).blocks:
        network.get_submodule(name).compile()
    return network


def _by_openvino(network: nn.Module) -> nn.Module:
    for name in describe(network).blocks:
        network.set_submodule(name, OpenVinoBlock(network.get_submodule(name)))
    return network


def _ours(name: str, backend: str, fast: bool = False, graph: bool = False) -> Arm:
    convert = _unpacked if fast else _as_it_is
    return Arm(name, BF16, convert, finish=_bound, backend=backend, graph=graph)


ARMS: dict[str, tuple[Arm, ...]] = {
    "cpu": (
        Arm("fp32", FP32),
        Arm("fp32 onednn", FP32, finish=onednn.by_onednn, why_not=onednn.why_not),
        Arm("bf16", BF16),
        Arm("bf16 attention", BF16, finish=_with_our_attention),
        Arm("bf16 compiled", BF16, finish=_compiled, takes_blocks=True),
        Arm("torchao int8", BF16, by_torchao, why_not=missing("torchao")),
        Arm(
            "torchao compiled",
            BF16,
            by_torchao,
            finish=_compiled,
            takes_blocks=True,
            why_not=missing("torchao"),
        ),
        Arm("sdnq int8", BF16, by_sdnq, why_not=missing("sdnq")),
        Arm(
            "openvino bf16",
            FP32,
            finish=_by_openvino,
            takes_blocks=True,
            why_not=missing("openvino"),
        ),
        _ours("ours torch", "torch"),
        _ours("ours torch fast", "torch", fast=True),
        _ours("ours native", "native"),
    ),
    "cuda": (
        Arm("bf16", BF16),
        Arm("bf16 graph", BF16, graph=True),
        Arm("bf16 compiled", BF16, finish=_compiled, takes_blocks=True, graph=True),
        _ours("ours cuda", "cuda", graph=True),
        _ours("ours cuda fast", "cuda", graph=True, fast=True),
    ),
}
DEFINITION = _ours(REFERENCE, "reference")  # what ours must be as near to full precision as
EXACT = Arm("exact", FP32)


def arms_named(names: Collection[str] | None, device: torch.device) -> tuple[Arm, ...]:
    known = {arm.name: arm for arm in ARMS[device.type]}
    for name in names or ():
        if name not in known:
            allowed = ", ".join(known)
            raise BadArgument(f"unknown arm {name!r} for {device.type}; allowed: {allowed}")
    return tuple(arm for name, arm in known.items() if names is None or name in names)
