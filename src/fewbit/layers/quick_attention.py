"""Attention on a CPU for the short sequences of image transformers, where torch's own is slow."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fewbit.kernels.choose import backend_for
from fewbit.layers.swap import Forward, may_answer
from fewbit.models.fused_attention import StandIn


def quick_attention(inherited: Forward, name: str) -> Forward:
    """The module's own forward, which asks the backend for the fused attention."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not may_answer():
            return inherited(self, *args, **kwargs)
        with StandIn(attention):
            return inherited(self, *args, **kwargs)

    return forward


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention`, which is still asked for more than plain attention."""
    odd = dropout_p > 0 or is_causal or enable_gqa or query.dim() != 4
    if odd or query.device.type != "cpu":
        return scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return backend_for(query).attention(query, key, value, attn_mask, scale)
