"""Other libraries' fast paths, where they are installed, on the layers that fewbit quantizes."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn


def missing(package: str) -> Callable[[], str | None]:
    def why_not() -> str | None:
        there = importlib.util.find_spec(package) is not None
        return None if there else f"{package} is not installed"

    return why_not


def compiling_for_our_threads() -> None:
    """What torch compiles has its number of threads inside and may come from a cache of another."""
    import torch._inductor.config

    torch._inductor.config.cpp.threads = torch.get_num_threads()


def by_torchao(network: nn.Module, names: Collection[str]) -> nn.Module:
    """int8 weights, and int8 inputs with a scale for each token."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    config = Int8DynamicActivationInt8WeightConfig()
    quantize_(network, config, filter_fn=lambda _, name: name in names)
    return network


def by_sdnq(network: nn.Module, names: Collection[str]) -> nn.Module:
    """int8 weights with int8 products; SDNQ compiles its kernels with torch at the first call."""
    from sdnq import sdnq_post_load_quant

    compiling_for_our_threads()
    kept = [n for n, m in network.named_modules() if type(m) is nn.Linear and n not in names]
    found = sdnq_post_load_quant(
        network,
        weights_dtype="int8",
        use_quantized_matmul=True,
        modules_to_not_convert=kept,
        add_skip_keys=False,
    )
    return found if isinstance(found, nn.Module) else network


class OpenVinoBlock(nn.Module):
    """A module as OpenVINO's graph in bfloat16, made of its first call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.signature = inspect.signature(module.forward)
        self.graph: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        given = self.signature.bind(*args, **kwargs).arguments
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        if self.graph is None:
            self.graph = _graph(self.module, tensors)
        arrays = [tensor.numpy() for tensor in tensors.values()]
        return torch.from_numpy(self.graph(arrays)[0])


def _graph(module: nn.Module, tensors: dict[str, Tensor]) -> Any:
    import openvino

    model = openvino.convert_model(module, example_input=tensors)
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16", **threads})
