"""Attention on a CPU for the short sequences of image transformers, where torch's own is slow."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewbit.kernels.choose import backend_for
from fewbit.layers.swap import Forward, may_answer
from fewbit.models.fused_attention import AttentionCall, StandIn


def quick_attention(inherited: Forward, name: str) -> Forward:
    """The module's own forward, which asks the backend for the fused attention."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not may_answer():
            return inherited(self, *args, **kwargs)
        with StandIn(attention):
            return inherited(self, *args, **kwargs)

    return forward


def attention(call: AttentionCall) -> Tensor:
    """The backend's; torch's where more than plain attention is asked for."""
    query, odd = call.query, call.dropout_p > 0 or call.is_causal or call.enable_gqa
    if odd or query.dim() != 4 or query.device.type != "cpu":
        return call.plainly()
    return backend_for(query).attention(query, call.key, call.value, call.attn_mask, call.factor)
