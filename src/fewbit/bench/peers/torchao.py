"""torchao."""

from __future__ import annotations

from typing import Any

from torch import nn

from fewbit.bench.peers.layers import Layers


def int8(network: nn.Module, layers: Layers) -> nn.Module:
    """int8 weights, and int8 inputs with a scale for each token."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return _quantized(network, layers, Int8DynamicActivationInt8WeightConfig())


def int4(network: nn.Module, layers: Layers) -> nn.Module:
    """int4 weights in groups of 32, and int8 inputs; its kernel is not in every wheel."""
    from torchao.prototype.quantization.int4 import Int8DynamicActivationInt4WeightConfig

    config = Int8DynamicActivationInt4WeightConfig(set_inductor_config=False)
    return _quantized(network, layers, config)


def _quantized(network: nn.Module, layers: Layers, config: Any) -> nn.Module:
    from torchao.quantization import quantize_

    ours = frozenset(layers.all)
    quantize_(network, config, filter_fn=lambda _, name: name in ours)
    return network
