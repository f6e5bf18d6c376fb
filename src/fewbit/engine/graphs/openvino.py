"""OpenVINO: static inputs as FakeQuantize, weights as integer constants times their scales."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewbit.engine.graphs.layer import GraphLayer

NAME, SUFFIX, PACKAGES = "openvino", ".xml", ("openvino",)
OPERATION = "fewbit.linear"
GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"  # of inputs; OpenVINO would round them unasked
COLUMNS = 32


class Packed(nn.Module):
    """What becomes the layer when it is converted; by itself it computes nothing."""

    def __init__(self, layer: GraphLayer) -> None:
        super().__init__()
        self.layer = layer
        self.in_features, self.out_features = layer.columns, layer.rows

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.out_features)


def module(name: str, layer: GraphLayer) -> nn.Module:
    return Packed(layer)


def write(flat: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    """The weights go into a file beside it."""
    import openvino

    layers = [one for one in flat.modules() if isinstance(one, Packed)]
    with redirect_stdout(sys.stderr):
        graph = openvino.convert_model(
            flat,
            example_input=(*inputs.values(),),
            input=[list(x.shape) for x in inputs.values()],
            extension=_extensions(layers),
        )
    for port, name in zip(graph.inputs, inputs, strict=True):
        port.get_tensor().set_names({name})
    graph.output(0).get_tensor().set_names({"output"})
    columns = COLUMNS if any(one.layer.dynamic for one in layers) else 0
    graph.set_rt_info(str(columns), ["runtime_options", GROUP])
    openvino.save_model(graph, path, compress_to_fp16=False)


def _extensions(layers: list[Packed]) -> list[Any]:
    """A module says its number, and the operation of that number becomes a part of the graph."""
    from openvino.frontend.pytorch import ConversionExtension, ModuleExtension

    def numbered(number: int, layer: Packed) -> Any:
        return ModuleExtension(
            layer,
            OPERATION,
            evaluate=lambda module, x, _: module.__class__.forward(module, x),
            convert=lambda module, operation, x: operation(x, torch.tensor(number)),
        )

    def converted(context: Any) -> Any:
        layer = layers[int(context.get_values_from_const_input(1))].layer
        return _product(context.get_input(0), layer).outputs()

    modules = [numbered(number, layer) for number, layer in enumerate(layers)]
    return [*modules, ConversionExtension(OPERATION, converted)]


def _product(x: Any, layer: GraphLayer) -> Any:
    from openvino import opset13 as ops

    if layer.smooth is not None:
        x = ops.divide(x, ops.constant(layer.smooth.numpy()))
    if layer.range is not None:
        begin, end = (ops.constant(np.float32(edge)) for edge in layer.range)
        lowest, highest = layer.levels
        x = ops.fake_quantize(x, begin, end, begin, end, highest - lowest + 1)
    product = ops.matmul(x, _weight(layer), False, True)
    bias = layer.bias
    return product if bias is None else ops.add(product, ops.constant(bias.detach().numpy()))


def _weight(layer: GraphLayer) -> Any:
    from openvino import Type
    from openvino import opset13 as ops

    codes = ops.constant(layer.codes.numpy(), dtype=Type.i4 if layer.bits == 4 else Type.i8)
    scaled = ops.multiply(ops.convert(codes, Type.f32), ops.constant(layer.scales.numpy()))
    return ops.reshape(scaled, np.array([layer.rows, layer.columns]), False)
