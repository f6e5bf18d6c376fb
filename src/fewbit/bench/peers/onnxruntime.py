"""ONNX Runtime: MatMulNBits has weights of few bits in groups and rounds its inputs to int8."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.bench.peers.graph import Call, Graph
from fewbit.bench.peers.layers import Layers
from fewbit.calibration.flat import Flat
from fewbit.calibration.tree import tensors

GROUP = 32
INT8_INPUTS = 4  # its accuracy level


def rounded(network: nn.Module, layers: Layers, bits: int) -> nn.Module:
    """Every layer as ONNX Runtime stores it; `whole` makes what computes."""
    for name in layers.all:
        linear = network.get_submodule(name)
        if type(linear) is nn.Linear:  # shared ones come up once in each block
            network.set_submodule(name, NBits(linear, bits))
    return network


def whole(module: nn.Module, call: Call, layers: Collection[str]) -> nn.Module:
    return InOnnxRuntime(module, call)


class NBits(nn.Module):
    """A linear that becomes a MatMulNBits when it is exported."""

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bits, self.bias = bits, linear.bias
        packed, scales = _packed(linear.weight, bits)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        inputs = [x, self.get_buffer("packed"), self.get_buffer("scales")]
        found = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            inputs,
            {
                "K": self.in_features,
                "N": self.out_features,
                "bits": self.bits,
                "block_size": GROUP,
                "accuracy_level": INT8_INPUTS,
            },
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.out_features),
            version=1,
        )
        return found if self.bias is None else found + self.bias


def _packed(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and scales by ONNX Runtime's own rounding to nearest."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    config = DefaultWeightOnlyQuantConfig(block_size=GROUP, is_symmetric=True, bits=bits)
    columns = weight.t().contiguous().numpy()
    codes, scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(columns)
    return torch.from_numpy(codes), torch.from_numpy(scales)


class InOnnxRuntime(Graph):
    """A module as a session of ONNX Runtime."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        import onnxruntime

        first = tensors(call)
        super().__init__([*first])
        flat = Flat(module, call, self.names)
        for exporter in ("onnx_ir", "onnxscript"):
            logging.getLogger(exporter).setLevel(logging.WARNING)
        with redirect_stdout(sys.stderr):  # what exports says much
            program: Any = torch.onnx.export(flat, (*first.values(),), dynamo=True, verbose=False)
        weights = program.model.graph.initializers.values()
        self.hidden_bytes = sum(weight.const_value.nbytes for weight in weights)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        file = program.model_proto.SerializeToString()
        self.session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])

    def compute(self, inputs: list[Tensor]) -> Tensor:
        arrays = zip(self.session.get_inputs(), inputs, strict=True)
        (found,) = self.session.run(None, {given.name: x.numpy() for given, x in arrays})
        return torch.from_numpy(found)
