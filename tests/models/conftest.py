"""Tiny random transformers, one of each family that diffusers holds."""

import pytest
import torch
from torch import nn

SIZES = {
    "DiTTransformer2DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "sample_size": 8,
        "num_embeds_ada_norm": 10,
        "norm_eps": 1e-6,
    },
    "PixArtTransformer2DModel": {
        "num_attention_heads": 3,
        "attention_head_dim": 8,
        "num_layers": 2,
        "sample_size": 8,
        "cross_attention_dim": 24,
        "caption_channels": 12,
        "use_additional_conditions": True,
    },
    "HunyuanDiT2DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "patch_size": 2,
        "sample_size": 8,
        "hidden_size": 16,
        "num_layers": 4,
        "cross_attention_dim": 12,
        "cross_attention_dim_t5": 16,
        "pooled_projection_dim": 8,
    },
    "SD3Transformer2DModel": {
        "sample_size": 8,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 10,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    },
    "FluxTransformer2DModel": {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 10,
        "axes_dims_rope": (2, 2, 4),
        "guidance_embeds": True,
    },
}


@pytest.fixture
def tiny():
    """A function from class name to a freshly made model with random weights."""
    diffusers = pytest.importorskip("diffusers")

    def make(name: str) -> nn.Module:
        torch.manual_seed(0)
        return getattr(diffusers, name)(**SIZES[name]).eval()

    return make
