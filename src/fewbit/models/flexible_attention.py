"""Gradients of torch's flexible attention where it has none of its own, as on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

MORE = ("return_lse", "return_aux")  # results beside that of the attention


@contextmanager
def differentiable() -> Iterator[None]:
    """For a while, calls that need a gradient become calls of the fused attention.

    On a CPU flexible attention computes all scores and asks its mask about each of them, so the
    mask written out gives the same. Those callers are reached that ask the module of torch for the
    function, as diffusers does. A call with a function of the scores is left as it is.
    """
    module: Any = import_module("torch.nn.attention.flex_attention")
    own = module.flex_attention

    def answer(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        score_mod: Any = None,
        block_mask: Any = None,
        scale: float | None = None,
        enable_gqa: bool = False,
        **others: Any,
    ) -> Any:
        plain = score_mod is None and not any(map(others.get, MORE))
        if plain and _lacks_gradient(query, key, value):
            mask = None if block_mask is None else _written_out(block_mask, query.device)
            return scaled_dot_product_attention(
                query, key, value, mask, scale=scale, enable_gqa=enable_gqa
            )
        return own(query, key, value, score_mod, block_mask, scale, enable_gqa, **others)

    module.flex_attention = answer
    try:
        yield
    finally:
        module.flex_attention = own


def _lacks_gradient(*operands: Tensor) -> bool:
    needed = torch.is_grad_enabled() and any(one.requires_grad for one in operands)
    return needed and operands[0].device.type in ("cpu", "mps")


def _written_out(block_mask: Any, device: torch.device) -> Tensor:
    module: Any = import_module("torch.nn.attention.flex_attention")
    mask: Tensor = module.create_mask(block_mask.mask_mod, *block_mask.shape, device=device)
    return mask
