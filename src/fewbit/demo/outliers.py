"""Give a DiT the outlier channels of much larger models without changing what it computes.

A few channels of what enters qkv, fc1 and the attention's output projection grow by a factor, and
the weights that read them shrink by it: in full precision nothing happens, in few bits a lot does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from fewbit.errors import BadArgument, BadModel

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

# Which sixth of the adaLN linear's output is what.
SHIFT_ATTENTION, SCALE_ATTENTION, SHIFT_FEEDFORWARD, SCALE_FEEDFORWARD = 0, 1, 3, 4


@torch.no_grad()
def with_outliers(
    model: DiTTransformer2DModel, factor: float, channels: int, seed: int
) -> DiTTransformer2DModel:
    """Enlarge `channels` channels per place and block by `factor`, in place."""
    _refuse(model, factor, channels)
    width = model.inner_dim
    random = Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randperm(width, generator=random)[:channels]

    for block in model.transformer_blocks:
        modulation, attention = block.norm1.linear, block.attn1
        chosen = draw()
        _enlarge_shift(modulation, chosen + SHIFT_ATTENTION * width, factor)
        _enlarge_scale(modulation, chosen + SCALE_ATTENTION * width, factor)
        for reader in (attention.to_q, attention.to_k, attention.to_v):
            _shrink_reader(reader, chosen, factor)
        chosen = draw()
        _enlarge_shift(modulation, chosen + SHIFT_FEEDFORWARD * width, factor)
        _enlarge_scale(modulation, chosen + SCALE_FEEDFORWARD * width, factor)
        _shrink_reader(block.ff.net[0].proj, chosen, factor)
        chosen = draw()
        _enlarge_shift(attention.to_v, chosen, factor)
        _shrink_reader(attention.to_out[0], chosen, factor)
    return model


def _enlarge_shift(linear: nn.Linear, rows: Tensor, factor: float) -> None:
    linear.weight[rows] *= factor
    if linear.bias is not None:
        linear.bias[rows] *= factor


def _enlarge_scale(linear: nn.Linear, rows: Tensor, factor: float) -> None:
    """The block multiplies by 1 + scale, and it is that sum which must grow."""
    linear.weight[rows] *= factor
    linear.bias[rows] = (linear.bias[rows] + 1) * factor - 1


def _shrink_reader(linear: nn.Linear, columns: Tensor, factor: float) -> None:
    linear.weight[:, columns] /= factor


def _refuse(model: nn.Module, factor: float, channels: int) -> None:
    from diffusers import DiTTransformer2DModel

    if not isinstance(model, DiTTransformer2DModel):
        raise BadModel(f"outliers can be put into a DiTTransformer2DModel, not {type(model)}")
    if not (math.isfinite(factor) and factor > 0):
        raise BadArgument(f"the outlier factor must be positive and finite, got {factor}")
    if not 0 <= channels <= model.inner_dim:
        raise BadArgument(
            f"the number of outlier channels must be from 0 to the width {model.inner_dim}, "
            f"got {channels}"
        )
