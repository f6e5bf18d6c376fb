"""Attention on a CPU for the short sequences of image transformers, where torch's own is slow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from fewbit.kernels.choose import backend_for


class QuickAttention(TorchFunctionMode):
    """While this is active `scaled_dot_product_attention` takes the fastest way there is.

    What a call asks beyond plain attention with a mask is left to torch, as is whatever is trained
    or compiled.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    odd = dropout_p > 0 or is_causal or enable_gqa or query.dim() != 4
    traced = torch.is_grad_enabled() or torch.compiler.is_compiling()
    if odd or traced or query.device.type != "cpu":
        return scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return backend_for(query).attention(query, key, value, attn_mask, scale)
