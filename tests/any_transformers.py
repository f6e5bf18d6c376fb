"""Tiny random transformers of the classes that no family file names, and a call of each."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor

TEXT = 6  # tokens of the prompt
IMAGES = 2
Call = dict[str, Any]
TWO_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def image(channels: int = 4, side: int = 8) -> Call:
    return {"hidden_states": noise(IMAGES, channels, side, side)}


def video(channels: int = 4, frames: int = 2, side: int = 8) -> Call:
    return {"hidden_states": noise(IMAGES, channels, frames, side, side)}


def tokens(channels: int = 4, count: int = 16) -> Call:
    return {"hidden_states": noise(IMAGES, count, channels)}


def text(width: int = 24) -> Call:
    return {"encoder_hidden_states": noise(IMAGES, TEXT, width)}


def mask(name: str = "encoder_attention_mask", dtype: torch.dtype = torch.bool) -> Call:
    return {name: torch.ones(IMAGES, TEXT, dtype=dtype)}


def time(name: str = "timestep") -> Call:
    return {name: torch.tensor([100.0, 700.0])}


def places(axes: int, count: int = 16, batch: tuple[int, ...] = ()) -> Call:
    return {
        "img_ids": torch.arange(count).float()[:, None].expand(*batch, count, axes),
        "txt_ids": torch.zeros(*batch, TEXT, axes),
    }


FLUX_LIKE = {
    **TWO_HEADS,
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "joint_attention_dim": 24,
}
HUNYUAN_LIKE = {
    **TWO_HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "text_embed_dim": 24,
}

Made = tuple[dict[str, Any], Callable[[], Call]]
MODELS: dict[str, Made] = {
    "Flux2Transformer2DModel": (
        {**FLUX_LIKE, "timestep_guidance_channels": 16, "axes_dims_rope": (4, 4, 4, 4)},
        lambda: {**tokens(), **text(), **time(), **places(4), "guidance": torch.ones(2)},
    ),
    "ChromaTransformer2DModel": (
        {
            **FLUX_LIKE,
            "axes_dims_rope": (4, 4, 8),
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        lambda: {**tokens(), **text(), **time(), **places(3)},
    ),
    "BriaTransformer2DModel": (
        {**FLUX_LIKE, "axes_dims_rope": (0, 8, 8)},
        lambda: {**tokens(), **text(), **time(), **places(3)},
    ),
    "QwenImageTransformer2DModel": (
        {
            **TWO_HEADS,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "joint_attention_dim": 24,
            "axes_dims_rope": (4, 4, 8),
        },
        lambda: {
            **tokens(16),
            **text(),
            **time(),
            **mask("encoder_hidden_states_mask"),
            "img_shapes": [[(1, 4, 4)]] * IMAGES,
        },
    ),
    "ZImageTransformer2DModel": (
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 24,
            "axes_dims": [4, 4, 8],
            "axes_lens": [64, 32, 32],
        },
        lambda: {
            "x": [noise(4, 1, 8, 8) for _ in range(IMAGES)],
            "t": torch.tensor([0.1, 0.7]),
            "cap_feats": [noise(TEXT, 24), noise(TEXT - 2, 24)],
        },
    ),
    "WanTransformer3DModel": (
        {
            **TWO_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 24,
            "freq_dim": 16,
            "ffn_dim": 64,
            "num_layers": 2,
            "rope_max_seq_len": 32,
        },
        lambda: {**video(), **text(), **time()},
    ),
    "LTXVideoTransformer3DModel": (
        {
            **TWO_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "cross_attention_dim": 32,
            "caption_channels": 24,
        },
        lambda: {
            **tokens(count=32),
            **text(),
            **time(),
            **mask(),
            "num_frames": 2,
            "height": 4,
            "width": 4,
        },
    ),
    "SanaTransformer2DModel": (
        {
            **TWO_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 24,
            "sample_size": 8,
        },
        lambda: {**image(), **text(), **time()},
    ),
    "Lumina2Transformer2DModel": (
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "axes_dim_rope": (4, 4, 8),
            "axes_lens": (32, 16, 16),
            "cap_feat_dim": 24,
        },
        lambda: {**image(), **text(), **time(), **mask()},
    ),
    "CogVideoXTransformer3DModel": (
        {
            **TWO_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 24,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": TEXT,
        },
        lambda: {"hidden_states": noise(IMAGES, 2, 4, 8, 8), **text(), **time()},
    ),
    "CogView4Transformer2DModel": (
        {
            **TWO_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_embed_dim": 24,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "rope_axes_dim": (16, 16),
        },
        lambda: {
            **image(),
            **text(),
            **time(),
            "original_size": torch.tensor([[8.0, 8.0]] * IMAGES),
            "target_size": torch.tensor([[8.0, 8.0]] * IMAGES),
            "crop_coords": torch.zeros(IMAGES, 2),
        },
    ),
    "AuraFlowTransformer2DModel": (
        {
            **TWO_HEADS,
            "sample_size": 8,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 2,
            "joint_attention_dim": 24,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 64,
        },
        lambda: {**image(), **text(), **time()},
    ),
    "HunyuanVideoTransformer3DModel": (
        {
            **HUNYUAN_LIKE,
            "num_single_layers": 2,
            "pooled_projection_dim": 8,
            "rope_axes_dim": (4, 4, 8),
        },
        lambda: {
            **video(),
            **text(),
            **time(),
            **mask(),
            "pooled_projections": noise(IMAGES, 8),
            "guidance": torch.ones(IMAGES),
        },
    ),
    "HunyuanVideo15Transformer3DModel": (
        {
            **HUNYUAN_LIKE,
            "text_embed_2_dim": 20,
            "image_embed_dim": 12,
            "rope_axes_dim": (4, 4, 8),
        },
        lambda: {
            **video(),
            **text(),
            **time(),
            **mask(),
            "encoder_hidden_states_2": noise(IMAGES, TEXT, 20),
            **mask("encoder_attention_mask_2"),
            "image_embeds": noise(IMAGES, 3, 12),
        },
    ),
    "HunyuanImageTransformer2DModel": (
        {**HUNYUAN_LIKE, "num_single_layers": 2, "rope_axes_dim": (8, 8)},
        lambda: {**image(), **text(), **time(), **mask()},
    ),
    "MochiTransformer3DModel": (
        {
            **TWO_HEADS,
            "num_layers": 2,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 24,
            "time_embed_dim": 8,
            "max_sequence_length": TEXT,
        },
        lambda: {**video(), **text(), **time(), **mask()},
    ),
    "LatteTransformer3DModel": (
        {
            **TWO_HEADS,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "cross_attention_dim": 32,
            "sample_size": 8,
            "patch_size": 2,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "caption_channels": 24,
            "video_length": 2,
        },
        lambda: {**video(), **text(), **time()},
    ),
    "Krea2Transformer2DModel": (
        {
            "in_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 64,
            "timestep_embed_dim": 16,
            "text_hidden_dim": 32,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 64,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 4, 8),
        },
        lambda: {
            **tokens(16),
            "encoder_hidden_states": noise(IMAGES, TEXT, 3, 32),
            "timestep": torch.tensor([0.1, 0.7]),
            "position_ids": torch.zeros(TEXT + 16, 3),
        },
    ),
    "NucleusMoEImageTransformer2DModel": (
        {
            **TWO_HEADS,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "joint_attention_dim": 24,
            "axes_dims_rope": (4, 4, 8),
            "mlp_ratio": 8.0,
            "dense_moe_strategy": "leave_first_block_dense",
            "num_experts": 4,
            "moe_intermediate_dim": 24,
            "capacity_factors": [2.0, 2.0],
        },
        lambda: {
            **tokens(16),
            **text(),
            **time(),
            **mask("encoder_hidden_states_mask"),
            "img_shapes": [(1, 4, 4)] * IMAGES,
        },
    ),
    "HiDreamImageTransformer2DModel": (
        {
            **TWO_HEADS,
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 2,
            "num_single_layers": 2,
            "caption_channels": [24, 20],
            "text_emb_dim": 16,
            "axes_dims_rope": (4, 4, 8),
            "max_resolution": (8, 8),
            "llama_layers": [0, 1, 0, 1],
            "force_inference_output": True,
        },
        lambda: {
            **image(),
            **time("timesteps"),
            "encoder_hidden_states_t5": noise(IMAGES, TEXT, 24),
            "encoder_hidden_states_llama3": noise(2, IMAGES, TEXT, 20),
            "pooled_embeds": noise(IMAGES, 16),
        },
    ),
    "AllegroTransformer3DModel": (
        {
            **TWO_HEADS,
            "num_layers": 2,
            "cross_attention_dim": 32,
            "sample_height": 8,
            "sample_width": 8,
            "sample_frames": 2,
            "caption_channels": 24,
        },
        lambda: {**video(), **text(), **time(), "attention_mask": torch.ones(IMAGES, 2, 8, 8)},
    ),
    "PRXTransformer2DModel": (
        {
            "in_channels": 4,
            "context_in_dim": 24,
            "hidden_size": 32,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 2,
            "axes_dim": [8, 8],
        },
        lambda: {**image(), **text(), **time()},
    ),
    "StableAudioDiTModel": (
        {
            **TWO_HEADS,
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_key_value_attention_heads": 1,
            "cross_attention_dim": 32,
            "time_proj_dim": 8,
            "global_states_input_dim": 16,
            "cross_attention_input_dim": 24,
        },
        lambda: {
            "hidden_states": noise(IMAGES, 4, 8),
            **text(),
            **time(),
            "global_hidden_states": noise(IMAGES, 1, 16),
            "rotary_embedding": (torch.ones(9, 8), torch.zeros(9, 8)),
        },
    ),
}
NAMES = tuple(MODELS)


def make(name: str) -> Any:
    """All matrices random: some classes leave them empty, or zero, so that blocks do nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(diffusers, name)(**MODELS[name][0]).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


def call(name: str) -> Call:
    return MODELS[name][1]()
