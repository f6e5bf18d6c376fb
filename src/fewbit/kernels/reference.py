"""The definition of every run-time operation in plain torch; a kernel is a faster copy of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from fewbit.formats import QTensor


def packed_linear(x: Tensor, weight: QTensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias with float32 products and sums, whatever autocast says."""
    with torch.autocast(x.device.type, enabled=False):
        return linear(x.float(), weight.dequantize(), None if bias is None else bias.float())
