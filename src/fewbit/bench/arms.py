"""The arms: ways to compute the same network, each made from the same weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from fewbit.api import prepare
from fewbit.bench import onednn
from fewbit.bench.peers import comfy, onnxruntime, openvino, torchao
from fewbit.bench.peers.gguf import gguf
from fewbit.bench.peers.here import compiling_for_our_threads
from fewbit.bench.peers.layers import Layers
from fewbit.bench.peers.orbitquant import w4a4
from fewbit.bench.peers.sdnq import SVD, sdnq, with_openvinos_product, with_torchs_product
from fewbit.bench.subject import Call, Subject
from fewbit.errors import BadArgument
from fewbit.kernels.choose import VARIABLE, backend_named
from fewbit.layers.bind import bind, bind_attention, unbind
from fewbit.models import describe
from fewbit.registry import missing

REFERENCE = "reference"
FP32, BF16 = torch.float32, torch.bfloat16
Layered = Callable[[nn.Module, Layers], nn.Module]
Whole = Callable[[nn.Module, Mapping[str, Any], Collection[str]], nn.Module]  # of call and layers


def _as_it_is(network: nn.Module, layers: Layers) -> nn.Module:
    return network


def _can() -> str | None:
    return None


@dataclass(frozen=True)
class Arm:
    """convert: its layers; finish: then, on every block; whole: then, of each module that is
    called, be it a block or the network."""

    name: str
    dtype: torch.dtype
    convert: Layered = _as_it_is
    finish: Callable[[nn.Module], nn.Module] = lambda network: network
    whole: Whole | None = None
    copied: bool = True  # a converted block can be; if not, all are converted
    backend: str | None = None  # ours, by this backend
    packages: tuple[str, ...] = ()  # it needs of others
    around: Callable[[], AbstractContextManager[None]] = nullcontext  # each call
    compiled: bool = False
    graph: bool = False  # recorded as a CUDA graph
    why_not: Callable[[], str | None] = _can

    @property
    def takes_blocks(self) -> bool:
        """It optimises whole blocks and has no single layers."""
        return self.compiled or self.whole is not None

    @property
    def foreign(self) -> bool:
        """Whether more than torch's own operators and ours are at work."""
        return self.compiled or bool(self.packages)

    def absent(self, device: torch.device) -> str | None:
        """Why it cannot take part."""
        if self.backend is not None:
            return backend_named(self.backend).why_not(device)
        return missing(self.packages) or self.why_not()

    def network(
        self, base: nn.Module, subject: Subject, blocks: int, called: Mapping[str, Call]
    ) -> nn.Module:
        """`called` has the calls that will be, by the paths of the modules."""
        own = nn.Module.to(
            copy.deepcopy(base), self.dtype
        )  # diffusers' own refuses a quantized one
        if self.copied:
            network = subject.extended(self.convert(own, Layers.of(own)), blocks)
        else:
            network = subject.told_apart(subject.extended(own, blocks))
            network = self.convert(network, Layers.of(network))
        if self.compiled:
            _compile_blocks(network)
        network = self.finish(network)
        return network if self.whole is None else self._replaced(network, called, self.whole)

    def _replaced(self, network: nn.Module, called: Mapping[str, Call], whole: Whole) -> nn.Module:
        layers = Layers.of(network)
        for path, call in called.items():
            arguments = call.in_dtype(self.dtype)
            module = whole(network.get_submodule(path), arguments, layers.inside(path))
            if not path:
                return module
            network.set_submodule(path, module)
        return network

    def active(self) -> AbstractContextManager[None]:
        """While one of its modules is called: the first call binds it to the backend."""
        return self.around() if self.backend is None else forced(self.backend)


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


def _unpacked(network: nn.Module, layers: Layers) -> nn.Module:
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


def _compile_blocks(network: nn.Module) -> None:
    compiling_for_our_threads()
    for name in describe(network).blocks:
        network.get_submodule(name).compile()


def _ours(name: str, backend: str, fast: bool = False, graph: bool = False) -> Arm:
    convert = _unpacked if fast else _as_it_is
    return Arm(name, BF16, convert, finish=_bound, backend=backend, graph=graph)


def _by_onnxruntime(bits: int) -> Arm:
    return Arm(
        f"onnxruntime int{bits}",
        FP32,
        partial(onnxruntime.rounded, bits=bits),
        whole=onnxruntime.whole,
        copied=False,
        packages=("onnxruntime", "onnx", "onnxscript"),
    )


PEERS: tuple[Arm, ...] = (
    Arm("torchao int8", BF16, torchao.int8, packages=("torchao",)),
    Arm("torchao compiled", BF16, torchao.int8, packages=("torchao",), compiled=True),
    Arm("torchao int4", BF16, torchao.int4, packages=("torchao",)),
    Arm(
        "sdnq int8",
        BF16,
        partial(sdnq, weights="int8"),
        packages=("sdnq",),
        around=with_torchs_product,
    ),
    Arm(
        "sdnq openvino",
        BF16,
        partial(sdnq, weights="int8"),
        packages=("sdnq", "openvino"),
        around=with_openvinos_product,
    ),
    Arm(
        "sdnq uint4 svd",
        BF16,
        partial(sdnq, weights="uint4", **SVD),
        packages=("sdnq",),
        around=with_torchs_product,
    ),
    Arm("openvino bf16", FP32, whole=openvino.bf16, copied=False, packages=("openvino",)),
    Arm("openvino int8", FP32, whole=openvino.int8, copied=False, packages=("openvino", "nncf")),
    Arm("openvino int4", FP32, whole=openvino.int4, copied=False, packages=("openvino", "nncf")),
    *map(_by_onnxruntime, (8, 4, 2)),
    Arm("orbitquant w4a4", BF16, w4a4, packages=("orbitquant",)),
    Arm("comfy int8", BF16, comfy.int8, copied=False, packages=("comfy_kitchen",)),
    Arm("comfy w4a8", BF16, comfy.w4a8, copied=False, packages=("comfy_kitchen",)),
    Arm("gguf q8_0", BF16, partial(gguf, kind="Q8_0"), copied=False, packages=("gguf",)),
    Arm("gguf q4_0", BF16, partial(gguf, kind="Q4_0"), copied=False, packages=("gguf",)),
)
ARMS: dict[str, tuple[Arm, ...]] = {
    "cpu": (
        Arm("fp32", FP32),
        Arm("fp32 onednn", FP32, finish=onednn.by_onednn, why_not=onednn.why_not),
        Arm("bf16", BF16),
        Arm("bf16 attention", BF16, finish=_with_our_attention),
        Arm("bf16 compiled", BF16, compiled=True),
        *PEERS,
        _ours("ours torch", "torch"),
        _ours("ours torch fast", "torch", fast=True),
        _ours("ours native", "native"),
    ),
    "cuda": (
        Arm("bf16", BF16),
        Arm("bf16 graph", BF16, graph=True),
        Arm("bf16 compiled", BF16, compiled=True, graph=True),
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
