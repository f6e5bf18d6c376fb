"""ONNX: static inputs as QuantizeLinear and DequantizeLinear, weights of few bits as the
MatMulNBits of ONNX Runtime."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.engine.graphs.layer import GraphLayer
from fewbit.errors import BadModel

NAME, SUFFIX, PACKAGES = "onnx", ".onnx", ("onnx", "onnxscript")
FLOAT_INPUTS, INT8_INPUTS = 1, 4  # accuracy levels
INT8 = (-128, 127)  # what QuantizeLinear clips at by itself
LARGEST = 1 << 62  # of tensors that are compared
LEAST_BLOCK, MOST_BLOCK = 16, 128  # columns


def module(name: str, layer: GraphLayer) -> nn.Module:
    """What becomes the layer when it is exported."""
    whole_rows = layer.bits == 8 and layer.scales.shape[1] == 1
    return Static(layer) if whole_rows and layer.step is not None else NBits(name, layer)


def write(flat: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    """Weights of more than 2 GB go into a file beside it. Equal ones are stored once, and where our
    sources lie on this disk, which the exporter notes at each operation, is nobody's business."""
    from onnx_ir.passes import common

    for exporter in ("onnx_ir", "onnxscript"):
        logging.getLogger(exporter).setLevel(logging.WARNING)
    with redirect_stdout(sys.stderr):  # what exports says much
        program: Any = torch.onnx.export(
            flat,
            (*inputs.values(),),
            input_names=[*inputs],
            output_names=["output"],
            dynamo=True,
            verbose=False,
        )
    _drop_idle_squeezes(program.model.graph)
    common.ClearMetadataAndDocStringPass()(program.model)
    common.DeduplicateInitializersPass(size_limit=LARGEST)(program.model)
    program.save(path)


def _drop_idle_squeezes(graph: Any) -> None:
    """torch leaves an axis that is longer than one as it is (PixArt), and ONNX refuses it."""
    for node in list(graph):
        if node.op_type == "Squeeze" and node.inputs[0].shape == node.outputs[0].shape:
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            graph.remove(node, safe=True)


class Idiom(nn.Module):
    """A linear layer whose input is divided and rounded as the layer says."""

    def __init__(self, layer: GraphLayer) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.columns, layer.rows
        self.range = None if layer.levels == INT8 else layer.range
        self._hold("smooth", layer.smooth)
        self._hold("bias", layer.bias)
        self._hold("step", None if layer.step is None else torch.tensor(layer.step))
        self._hold("zero", torch.tensor(0, dtype=torch.int8))

    def _hold(self, name: str, tensor: Tensor | None) -> None:
        self.register_buffer(name, tensor)

    def rounded(self, x: Tensor) -> Tensor:
        x = x if self.smooth is None else x / self.get_buffer("smooth")
        if self.step is None:
            return x
        steps = [self.get_buffer("step"), self.get_buffer("zero")]
        within = x if self.range is None else x.clamp(*self.range)
        codes = _operation("QuantizeLinear", [within, *steps], torch.int8, x.shape)
        return _operation("DequantizeLinear", [codes, *steps], x.dtype, x.shape)

    def finished(self, product: Tensor) -> Tensor:
        return product if self.bias is None else product + self.get_buffer("bias")


class Static(Idiom):
    """Integers on both sides, which the runtime multiplies as such."""

    def __init__(self, layer: GraphLayer) -> None:
        super().__init__(layer)
        self._hold("codes", layer.codes.flatten(1).t().contiguous())
        self._hold("scales", layer.scales.flatten().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        codes, shape = self.get_buffer("codes"), (self.in_features, self.out_features)
        parts = [codes, self.get_buffer("scales")]
        weight = _operation("DequantizeLinear", parts, x.dtype, shape, axis=1)
        return self.finished(self.rounded(x) @ weight)


class NBits(Idiom):
    """Weights in blocks of columns, each with its scale."""

    def __init__(self, name: str, layer: GraphLayer) -> None:
        super().__init__(layer)
        block = _block(layer, name)
        unsigned = (layer.codes.int() + 2 ** (layer.bits - 1)).view(layer.rows, -1, block)
        packed = unsigned.to(torch.uint8) if layer.bits == 8 else packed_halves(unsigned)
        self._hold("packed", packed.contiguous())
        self._hold("scales", layer.scales[..., 0].repeat_interleave(layer.group // block, 1))
        self.attributes = {
            "K": layer.columns,
            "N": layer.rows,
            "bits": layer.bits,
            "block_size": block,
            "accuracy_level": INT8_INPUTS if layer.dynamic else FLOAT_INPUTS,
        }

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.rounded(x), self.get_buffer("packed"), self.get_buffer("scales")]
        shape = (*x.shape[:-1], self.out_features)
        name = "com.microsoft::MatMulNBits"
        return self.finished(_operation(name, parts, x.dtype, shape, **self.attributes))


def _operation(
    name: str, inputs: list[Tensor], dtype: torch.dtype, shape: Any, **attributes: int
) -> Tensor:
    version = 1 if "::" in name else None
    found: Tensor = torch.onnx.ops.symbolic(
        name, inputs, {**attributes}, dtype=dtype, shape=tuple(shape), version=version
    )
    return found


def _block(layer: GraphLayer, name: str) -> int:
    """Columns of a block that is a power of two and lies within a group."""
    block = min(layer.group & -layer.group, MOST_BLOCK)
    if block < LEAST_BLOCK:
        raise BadModel(
            f"{name} has groups of {layer.group} columns; a graph of onnx has blocks of "
            f"{LEAST_BLOCK}, {2 * LEAST_BLOCK} and so on, up to {MOST_BLOCK}"
        )
    return block


def packed_halves(codes: Tensor) -> Tensor:
    """Unsigned codes of 4 bits, two in a byte, the first one low."""
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).to(torch.uint8)
