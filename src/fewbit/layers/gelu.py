"""GELU by its tanh on a CPU: in the product before it, or by the backend's own function."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewbit.kernels.choose import backend_for
from fewbit.kernels.values import Epilogue
from fewbit.layers.intact import is_heard
from fewbit.layers.linear import QLinear
from fewbit.layers.swap import Forward, may_answer
from fewbit.models.own_forward import is_wrapped

GELU = Epilogue(gelu=True)


def gelu_in_product(inherited: Forward, name: str) -> Forward:
    """For a module whose forward is `gelu(self.proj(x))`, as diffusers' GELU."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        layer = self.proj
        quick = type(layer) is QLinear and _is_quick(self, hidden_states)
        if not quick or is_heard(layer) or is_wrapped(layer):
            return inherited(self, hidden_states)
        return layer.bound()(hidden_states, GELU)

    return forward


def quick_gelu(inherited: Forward, name: str) -> Forward:
    """For torch's GELU."""

    def forward(self: Any, input: Tensor) -> Tensor:
        if not _is_quick(self, input):
            return inherited(self, input)
        return backend_for(input).gelu(input)

    return forward


def _is_quick(module: Any, x: Tensor) -> bool:
    return module.approximate == "tanh" and may_answer() and x.device.type == "cpu"
