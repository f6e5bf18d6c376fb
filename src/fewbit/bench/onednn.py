"""Linears by oneDNN with prepacked weights: float32 at the full vector width of any x86 CPU, which
torch's own linears, by MKL, do not use on AMD."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS = 512  # for which the weight is laid out; other counts compute as well


class OneDnnLinear(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.packed, self.bias, "none", [], ""
        )
        return product

    @property
    def hidden_bytes(self) -> int:
        """Of the packed weight, whose memory no tensor of this module shows."""
        return 4 * self.in_features * self.out_features


def why_not() -> str | None:
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this torch does not offer oneDNN's linear"
    return None


def by_onednn(network: nn.Module) -> nn.Module:
    """In place, every linear."""
    for name, module in list(network.named_modules()):
        if type(module) is nn.Linear:
            network.set_submodule(name, OneDnnLinear(module))
    return network
