"""OpenVINO, which fuses over a whole graph, and what NNCF rounds for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stdout
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.bench.peers.graph import Call, Graph, name_inside
from fewbit.calibration.flat import Flat
from fewbit.calibration.tree import tensors

Rounded = Callable[[Any, "Arrays"], Any]
Arrays = Sequence[list[Any]]  # the inputs of each call
READERS = ("MatMul", "Gather", "Convolution")  # of weights
GROUP = 64  # of int4 weights, and of the inputs that OpenVINO rounds to int8 for them


def bf16(module: nn.Module, call: Call, layers: Collection[str]) -> nn.Module:
    return InOpenVino(module, [call])


def int8(module: nn.Module, call: Call, layers: Collection[str]) -> nn.Module:
    """Weights, and inputs with scales that NNCF takes from the call."""
    return InOpenVino(module, [call], _int8)


def int4(module: nn.Module, call: Call, layers: Collection[str]) -> nn.Module:
    return InOpenVino(module, [call], lambda graph, _: in_int4(graph, layers))


class InOpenVino(Graph):
    """A module as OpenVINO's graph. Weights may be rounded, with the inputs of the calls for
    data."""

    def __init__(
        self,
        module: nn.Module,
        calls: Sequence[Call],
        rounded: Rounded = lambda graph, _: graph,
        precision: str = "bf16",
    ) -> None:
        import openvino

        first = tensors(calls[0])
        super().__init__([*first])
        flat = Flat(module, calls[0], self.names)
        with redirect_stdout(sys.stderr):  # NNCF says much
            graph = openvino.convert_model(flat, example_input=(*first.values(),))
            self.graph = rounded(graph, [_arrays(self.inputs(call)) for call in calls])
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP,
        }
        self.run = openvino.compile_model(self.graph, "CPU", settings)

    def compute(self, inputs: list[Tensor]) -> Tensor:
        return torch.from_numpy(self.run(_arrays(inputs))[0])

    @property
    def hidden_bytes(self) -> int:
        return sum(map(_bytes, self._constants()))

    def weight_bytes(self, layers: Collection[str]) -> int:
        ours = tuple(f"self.{name_inside(layer)}.weight" for layer in layers)
        return sum(
            _bytes(op) for op in self._constants() if op.get_friendly_name().startswith(ours)
        )

    def _constants(self) -> list[Any]:
        return [op for op in self.graph.get_ops() if op.get_type_name() == "Constant"]


def in_int4(graph: Any, layers: Collection[str], **settings: Any) -> Any:
    """NNCF's int4 in groups; OpenVINO rounds the inputs to int8 when it runs them."""
    import nncf

    readers = [op.get_friendly_name() for op in graph.get_ops() if op.get_type_name() in READERS]
    ours = tuple(f"__module.{name_inside(layer)}/" for layer in layers)
    others = [name for name in readers if not name.startswith(ours)]
    return nncf.compress_weights(
        graph,
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=GROUP,
        all_layers=True,
        ignored_scope=nncf.IgnoredScope(names=others),
        **settings,
    )


def _int8(graph: Any, data: Arrays) -> Any:
    import nncf

    return nncf.quantize(
        graph, nncf.Dataset(data), subset_size=len(data), model_type=nncf.ModelType.TRANSFORMER
    )


def _arrays(inputs: list[Tensor]) -> list[Any]:
    return [tensor.numpy() for tensor in inputs]


def _bytes(constant: Any) -> int:
    bits: int = constant.get_element_type().bitwidth * prod(constant.get_output_shape(0))
    return bits // 8
