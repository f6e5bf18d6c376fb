"""GGUF's blocks of 32 weights, computed by diffusers: unpacked to the dtype of the inputs."""

from __future__ import annotations

import torch
from torch import nn

from fewbit.bench.peers.layers import Layers


def gguf(network: nn.Module, layers: Layers, kind: str) -> nn.Module:
    """`kind` is Q8_0 or Q4_0."""
    for name in layers.all:
        linear = network.get_submodule(name)
        if type(linear) is nn.Linear:  # shared ones come up once in each block
            network.set_submodule(name, _linear(linear, kind))
    return network


def _linear(linear: nn.Linear, kind: str) -> nn.Module:
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter
    from gguf import GGMLQuantizationType, quants

    kind_of = GGMLQuantizationType[kind]
    blocks = torch.from_numpy(quants.quantize(linear.weight.float().numpy(), kind_of))
    with torch.device("meta"):
        found: nn.Module = GGUFLinear(
            linear.in_features, linear.out_features, compute_dtype=linear.weight.dtype
        )
    found.register_parameter("weight", GGUFParameter(blocks, quant_type=kind_of))
    found.register_parameter("bias", linear.bias)
    return found
