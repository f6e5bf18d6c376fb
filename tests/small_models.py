"""Tiny random transformers of several families, and rows of arguments for their forwards."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

SIZES: dict[str, dict[str, Any]] = {
    "DiTTransformer2DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 4,
        "sample_size": 8,
        "num_embeds_ada_norm": 10,
    },
    "PixArtTransformer2DModel": {
        "num_attention_heads": 3,
        "attention_head_dim": 8,
        "num_layers": 3,
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
        "num_layers": 6,
        "cross_attention_dim": 12,
        "cross_attention_dim_t5": 16,
        "pooled_projection_dim": 8,
        "text_len": 3,
        "text_len_t5": 5,
    },
    "SD3Transformer2DModel": {
        "sample_size": 8,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 10,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    },
    "FluxTransformer2DModel": {
        "num_layers": 2,
        "num_single_layers": 2,
        "in_channels": 8,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 10,
        "axes_dims_rope": (2, 2, 4),
        "guidance_embeds": True,
    },
}
FAMILIES = tuple(SIZES)
BLOCK_LISTS = ("blocks", "transformer_blocks", "single_transformer_blocks")


def make(family: str) -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(diffusers, family)(**SIZES[family]).eval()


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return [block for name in BLOCK_LISTS for block in getattr(model, name, ())]


def arguments(family: str, rows: int, seed: int = 0) -> dict[str, Any]:
    random = Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    def mask(tokens: int) -> Tensor:
        lengths = torch.randint(1, tokens + 1, (rows, 1), generator=random)
        return (torch.arange(tokens) < lengths).long()

    latent = normal(rows, 4, 8, 8)
    time = torch.randint(1000, (rows,), generator=random)
    hidden = {"hidden_states": latent, "timestep": time}
    if family == "DiTTransformer2DModel":
        return hidden | {"class_labels": torch.randint(11, (rows,), generator=random)}
    if family == "PixArtTransformer2DModel":
        return hidden | {
            "encoder_hidden_states": normal(rows, 5, 12),
            "encoder_attention_mask": mask(5),
            "added_cond_kwargs": {
                "resolution": torch.full((rows, 2), 64.0),
                "aspect_ratio": torch.ones(rows, 1),
            },
            "return_dict": False,
        }
    if family == "HunyuanDiT2DModel":
        return {
            "hidden_states": latent,
            "timestep": time.float(),
            "encoder_hidden_states": normal(rows, 3, 12),
            "text_embedding_mask": mask(3),
            "encoder_hidden_states_t5": normal(rows, 5, 16),
            "text_embedding_mask_t5": mask(5),
            "image_meta_size": torch.full((rows, 6), 64.0),
            "style": torch.zeros(rows, dtype=torch.int64),
            "image_rotary_emb": tuple(
                torch.randn(16, 8, generator=Generator().manual_seed(part)) for part in (1, 2)
            ),
            "return_dict": False,
        }
    if family == "SD3Transformer2DModel":
        return {
            "hidden_states": normal(rows, 16, 8, 8),
            "timestep": time.float(),
            "encoder_hidden_states": normal(rows, 5, 12),
            "pooled_projections": normal(rows, 10),
            "return_dict": False,
        }
    return {
        "hidden_states": normal(rows, 6, 8),
        "encoder_hidden_states": normal(rows, 5, 12),
        "pooled_projections": normal(rows, 10),
        "timestep": time / 1000,
        "guidance": torch.full((rows,), 3.5),
        "img_ids": torch.arange(18.0).reshape(6, 3),
        "txt_ids": torch.zeros(5, 3),
        "return_dict": False,
    }
