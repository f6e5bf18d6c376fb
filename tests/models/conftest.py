"""Tiny random transformers of each family that diffusers holds, of the fewest blocks."""

import pytest
import torch
from small_models import SIZES
from torch import nn

CHANGED = {
    "DiTTransformer2DModel": {"num_layers": 2, "norm_eps": 1e-6},
    "PixArtTransformer2DModel": {"num_layers": 2},
    "HunyuanDiT2DModel": {"num_layers": 4, "text_len": 77, "text_len_t5": 256},
    "SD3Transformer2DModel": {"num_layers": 2},
    "FluxTransformer2DModel": {"num_layers": 1, "num_single_layers": 1, "in_channels": 64},
}


@pytest.fixture
def tiny():
    """A function from class name to a freshly made model with random weights."""
    diffusers = pytest.importorskip("diffusers")

    def make(name: str) -> nn.Module:
        torch.manual_seed(0)
        return getattr(diffusers, name)(**SIZES[name] | CHANGED[name]).eval()

    return make
