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
        if func is scaled_dot_product_attention and _plain(*args, **kwargs):
            return attend(*args[:3], *_mask(*args[3:], **kwargs))
        return func(*args, **kwargs)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """[batch, heads, tokens, channels] each."""
    return backend_for(q).attention(q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale)


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> bool:
    odd = dropout_p > 0 or is_causal or enable_gqa or query.dim() != 4
    traced = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return not odd and not traced and query.device.type == "cpu"


def _mask(
    attn_mask: Tensor | None = None, *_: Any, scale: float | None = None, **__: Any
) -> tuple[Tensor | None, float | None]:
    return attn_mask, scale
