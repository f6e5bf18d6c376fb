"""Which tokens are real: padding of a text has no say in what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def text_mask(inputs: Mapping[str, Any]) -> Tensor | None:
    """bool [rows, tokens] of the text that the transformer is given, where it says so."""
    mask = inputs.get("encoder_attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def real_tokens(x: Tensor, block: Mapping[str, Any], mask: Tensor | None) -> Tensor | None:
    """The mask, if x, which a layer reads, is the text that its block was given by name."""
    reads_text = x is block.get("encoder_hidden_states")
    if mask is None or not reads_text or mask.shape != x.shape[:-1]:
        return None
    return mask.to(x.device)
