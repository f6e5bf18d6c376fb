"""comfy-kitchen's formats, as ComfyUI's files hold them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fewbit.bench.peers.layers import Layers

INT8, NVFP4 = "TensorWiseINT8Layout", "TensorCoreNVFP4Layout"
CONVROT, W4A8 = "TensorCoreConvRotW4A4Layout", "AsymW4A8Int8Layout"
ROTATED_INT8: dict[str, Any] = {"per_channel": True, "convrot": True}
ORDERS = (256, 64, 16, 4)  # of its Hadamard matrices


def int8(network: nn.Module, layers: Layers) -> nn.Module:
    return comfy(network, layers, INT8, **ROTATED_INT8)


def w4a8(network: nn.Module, layers: Layers) -> nn.Module:
    return comfy(network, layers, W4A8)


def comfy(network: nn.Module, layers: Layers, layout: str, **settings: Any) -> nn.Module:
    """The modulation at rotated int8."""
    for name in layers.plain:
        _hold(linear := network.get_submodule(name), layout, settings)
        if layout == NVFP4:
            network.set_submodule(name, InputInNVFP4(linear))
    for name in layers.modulation:
        _hold(network.get_submodule(name), INT8, ROTATED_INT8)
    return network


def _hold(linear: nn.Module, layout: str, settings: dict[str, Any]) -> None:
    from comfy_kitchen.tensor import QuantizedTensor

    weight = linear.get_parameter("weight").data
    order = next(order for order in ORDERS if weight.shape[1] % order == 0)
    packed = QuantizedTensor.from_float(weight, layout, convrot_groupsize=order, **settings)
    linear.register_parameter("weight", nn.Parameter(packed, requires_grad=False))


class InputInNVFP4(nn.Module):
    """A linear whose layout leaves the rounding of its input to the caller."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        from comfy_kitchen.tensor import QuantizedTensor

        rows = x.reshape(-1, x.shape[-1])
        found: Tensor = self.linear(QuantizedTensor.from_float(rows, NVFP4))[: len(rows)]
        return found.to(x.dtype).reshape(*x.shape[:-1], -1)
