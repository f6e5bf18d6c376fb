"""Are the shapes demo's pictures good? The classifier names what each shows."""

from __future__ import annotations

import torch
from torch import Tensor

from fewbit.demo import assets


@torch.no_grad()
def recognised(images: Tensor, label: Tensor) -> Tensor:
    """Which pictures the classifier takes for what they should be."""  # (N,) bool
    judge = assets.classifier()
    return torch.cat([judge(part).argmax(1) for part in images.split(256)]) == label
