"""Every transformer class of diffusers at a tiny width, and one call of its forward.

`CLASSES` has a configuration and a call for each class: the layers of the real ones, two blocks of
each kind, a few tokens. Calls are of one image or clip at one timestep, unless the class has more.
`LEFT_OUT` says why a class is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

Arguments = dict[str, Any]


class Numbers:
    """Random numbers for the call number `number`."""

    def __init__(self, number: int) -> None:
        self.random = Generator().manual_seed(number)
        self.share = (number % 7 + 1) / 8  # of the schedule

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random)

    def integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self.random)

    @property
    def time(self) -> Tensor:
        """Of schedules from 0 to 1000."""
        return torch.tensor([1000.0 * self.share])

    @property
    def flow(self) -> Tensor:
        """Of schedules from 0 to 1."""
        return torch.tensor([self.share])


@dataclass(frozen=True)
class Tiny:
    config: Mapping[str, Any]
    call: Callable[[Numbers], Arguments]

    def build(self, name: str) -> nn.Module:
        import diffusers

        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: nn.Module = getattr(diffusers, name)(**self.config)
            for parameter in model.parameters():
                if parameter.ndim > 1:  # some classes leave matrices empty, or zero
                    nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
                elif not parameter.any():  # gates that training begins at zero
                    nn.init.normal_(parameter, std=0.02)
        return model.eval()

    def calls(self, count: int) -> list[Arguments]:
        return [self.call(Numbers(number)) for number in range(count)]


HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
WIDE = {"num_attention_heads": 4, "attention_head_dim": 8}
LAYERS = {"num_layers": 2}
BOTH = {"num_layers": 2, "num_single_layers": 2}
ROPE = {"axes_dims_rope": (4, 6, 6)}
SINES = (torch.ones(16, 16), torch.zeros(16, 16))


def mask(tokens: int, rows: int = 1) -> Tensor:
    return torch.ones(rows, tokens, dtype=torch.bool)


def ids(tokens: int, rows: tuple[int, ...] = ()) -> Tensor:
    places = torch.stack([torch.zeros(tokens), torch.arange(tokens) // 4, torch.arange(tokens) % 4])
    return places.T.expand(*rows, tokens, 3).contiguous()


def text(n: Numbers, width: int = 32, tokens: int = 6) -> Arguments:
    return {"encoder_hidden_states": n(1, tokens, width)}


def image(n: Numbers, channels: int = 4, size: int = 8) -> Arguments:
    return {"hidden_states": n(1, channels, size, size), "timestep": n.time}


def clip(n: Numbers, channels: int = 4, frames: int = 2, size: int = 8) -> Arguments:
    return {"hidden_states": n(1, channels, frames, size, size), "timestep": n.time}


def packed(n: Numbers, channels: int = 8, tokens: int = 16) -> Arguments:
    """Patches in a row, times from 0 to 1."""
    return {"hidden_states": n(1, tokens, channels), "timestep": n.flow}


def placed(n: Numbers, channels: int = 8, width: int = 32) -> Arguments:
    return {**packed(n, channels), **text(n, width), "img_ids": ids(16), "txt_ids": ids(6)}


def joint(n: Numbers) -> Arguments:
    return {"pooled_projections": n(1, 32)}


WAN = {**HEADS, **LAYERS, "in_channels": 4, "out_channels": 4, "text_dim": 32, "freq_dim": 32,
       "ffn_dim": 64}  # fmt: skip
HUNYUAN = {**HEADS, **LAYERS, "in_channels": 4, "out_channels": 4, "num_refiner_layers": 2,
           "text_embed_dim": 32, "rope_axes_dim": (4, 6, 6)}  # fmt: skip
LTX2 = {
    **HEADS, **LAYERS, "in_channels": 8, "out_channels": 8, "cross_attention_dim": 32,
    "audio_in_channels": 8, "audio_out_channels": 8, "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16, "caption_channels": 32,
}  # fmt: skip
COG = {**HEADS, **LAYERS, "in_channels": 4, "out_channels": 4, "text_embed_dim": 32,
       "time_embed_dim": 16, "condition_dim": 8}  # fmt: skip
COG_VIDEO = {**HEADS, **LAYERS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 16,
             "text_embed_dim": 32, "sample_width": 8, "sample_height": 8, "sample_frames": 5,
             "max_text_seq_length": 6}  # fmt: skip


def wan(n: Numbers) -> Arguments:
    return {**clip(n), **text(n)}


def sized(n: Numbers) -> Arguments:
    size = torch.tensor([[64.0, 64.0]])
    return {"target_size": size, "crop_coords": torch.zeros(1, 2)}


def hunyuan(n: Numbers) -> Arguments:
    return {**clip(n), **text(n), "encoder_attention_mask": mask(6), **joint(n),
            "guidance": torch.tensor([6000.0])}  # fmt: skip


def ltx2(n: Numbers) -> Arguments:
    return {
        **packed(n, 8, 8), "audio_hidden_states": n(1, 4, 8), "timestep": n.time,
        "encoder_hidden_states": n(1, 6, 32), "audio_encoder_hidden_states": n(1, 6, 32),
        "num_frames": 2, "height": 2, "width": 2, "audio_num_frames": 4,
    }  # fmt: skip


class Cached(NamedTuple):
    """Keys and values of one layer as a call can hold them: plain tensors, which are replayed. Into
    the model's own cache a forward would write, and what it wrote is in no call."""

    key: Tensor
    value: Tensor

    def get(self) -> tuple[Tensor, Tensor]:
        return self.key, self.value

    def store(self, key: Tensor, value: Tensor) -> None:
        """What the pass over the reference does."""


def wan_animate_2(n: Numbers) -> Arguments:
    """The pass over the reference; that over the clip compiles its mask."""
    return {
        "hidden_states": [n(4, 2, 8, 8)], "condition_latents": [n(8, 2, 8, 8)],
        "timestep": n.time, "encoder_hidden_states": [n(6, 32)],
        "encoder_hidden_states_image": n(1, 3, 1280),
        "kv_cache": {layer: Cached(*n(2, 1, 32, 2, 16)) for layer in range(2)},
        "kv_cache_mode": "extract", "seq_len": 32,
        "offset_grid_sizes": torch.tensor([[2, 4, 4]]),
    }  # fmt: skip


CLASSES: dict[str, Tiny] = {
    "AceStepTransformer1DModel": Tiny(
        {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "in_channels": 12,
            "audio_acoustic_hidden_dim": 4, "sliding_window": 4,
        },
        lambda n: {
            "hidden_states": n(1, 16, 4), "timestep": n.flow, "timestep_r": n.flow,
            "encoder_hidden_states": n(1, 6, 32), "context_latents": n(1, 16, 8),
        },
    ),
    "AuraFlowTransformer2DModel": Tiny(
        {
            **HEADS, "sample_size": 8, "num_mmdit_layers": 2, "num_single_dit_layers": 2,
            "joint_attention_dim": 32, "caption_projection_dim": 32, "pos_embed_max_size": 64,
        },
        lambda n: {**image(n), **text(n), "timestep": n.flow},
    ),
    "CogVideoXTransformer3DModel": Tiny(
        COG_VIDEO, lambda n: {**text(n), "hidden_states": n(1, 2, 4, 8, 8), "timestep": n.time}
    ),
    "ConsisIDTransformer3DModel": Tiny(
        {
            **COG_VIDEO, "is_train_face": True, "cross_attn_interval": 1, "cross_attn_dim_head": 8,
            "cross_attn_num_heads": 2, "LFE_id_dim": 8, "LFE_vit_dim": 8, "LFE_depth": 5,
            "LFE_dim_head": 8, "LFE_num_heads": 2, "LFE_num_id_token": 1, "LFE_num_querie": 4,
            "LFE_output_dim": 21, "LFE_ff_mult": 1, "LFE_num_scale": 5,
        },
        lambda n: {
            **text(n), "hidden_states": n(1, 2, 4, 8, 8), "timestep": n.time,
            "id_cond": n(1, 8), "id_vit_hidden": [n(1, 3, 8) for _ in range(5)],
        },
    ),
    "DiTTransformer2DModel": Tiny(
        {**HEADS, **LAYERS, "sample_size": 8, "num_embeds_ada_norm": 10},
        lambda n: {**image(n), "class_labels": n.integers(10, 1)},
    ),
    "HunyuanDiT2DModel": Tiny(
        {
            **HEADS, "num_layers": 4, "in_channels": 4, "patch_size": 2, "sample_size": 8,
            "hidden_size": 32, "cross_attention_dim": 32, "cross_attention_dim_t5": 32,
            "pooled_projection_dim": 8, "text_len": 4, "text_len_t5": 4,
        },
        lambda n: {
            **image(n), "encoder_hidden_states": n(1, 4, 32), "text_embedding_mask": mask(4),
            "encoder_hidden_states_t5": n(1, 4, 32), "text_embedding_mask_t5": mask(4),
            "image_meta_size": torch.full((1, 6), 64.0),
            "style": torch.zeros(1, dtype=torch.long), "image_rotary_emb": SINES,
        },
    ),
    "LatteTransformer3DModel": Tiny(
        {
            **HEADS, **LAYERS, "in_channels": 4, "out_channels": 8, "sample_size": 8,
            "patch_size": 2, "cross_attention_dim": 32, "attention_bias": True,
            "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single", "norm_elementwise_affine": False,
            "caption_channels": 16, "video_length": 2,
        },
        lambda n: {**clip(n), **text(n, 16)},
    ),
    "LuminaNextDiT2DModel": Tiny(
        {
            "sample_size": 8, "hidden_size": 32, "num_layers": 2, "num_attention_heads": 4,
            "num_kv_heads": 2, "multiple_of": 16, "cross_attention_dim": 32,
        },
        lambda n: {
            **image(n), **text(n), "timestep": n.flow, "encoder_mask": mask(6),
            "image_rotary_emb": torch.polar(torch.ones(8, 8, 4), n(8, 8, 4)),
            "cross_attention_kwargs": {},
        },
    ),
    "MiniMaxMusic3RVQDepthDecoder": Tiny(
        {
            "hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
            "audio_vocab_size": 16, "num_codebooks": 4,
        },
        lambda n: {"inputs_embeds": n(1, 4, 32)},
    ),
    "PixArtTransformer2DModel": Tiny(
        {**HEADS, **LAYERS, "sample_size": 8, "cross_attention_dim": 32, "caption_channels": 16},
        lambda n: {
            **image(n), **text(n, 16), "encoder_attention_mask": mask(6).long(),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    "PriorTransformer": Tiny(
        {**HEADS, **LAYERS, "embedding_dim": 32, "num_embeddings": 6, "additional_embeddings": 4},
        lambda n: {
            "hidden_states": n(1, 32), "timestep": n.time, "proj_embedding": n(1, 32), **text(n)
        },
    ),
    "SanaTransformer2DModel": Tiny(
        {
            **HEADS, **LAYERS, "in_channels": 4, "out_channels": 4, "sample_size": 8,
            "num_cross_attention_heads": 2, "cross_attention_head_dim": 16,
            "cross_attention_dim": 32, "caption_channels": 16,
        },
        lambda n: {**image(n), **text(n, 16), "encoder_attention_mask": mask(6).long()},
    ),
    "StableAudioDiTModel": Tiny(
        {
            **HEADS, **LAYERS, "sample_size": 16, "in_channels": 4, "out_channels": 4,
            "num_key_value_attention_heads": 1, "cross_attention_dim": 32, "time_proj_dim": 16,
            "global_states_input_dim": 16, "cross_attention_input_dim": 32,
        },
        lambda n: {
            "hidden_states": n(1, 4, 16), "timestep": n.flow, **text(n),
            "global_hidden_states": n(1, 1, 16),
            "rotary_embedding": (torch.ones(17, 8), torch.zeros(17, 8)),
        },
    ),
    "T5FilmDecoder": Tiny(
        {
            "input_dims": 8, "targets_length": 8, "d_model": 32, "num_layers": 2, "num_heads": 2,
            "d_kv": 16, "d_ff": 64,
        },
        lambda n: {
            "encodings_and_masks": [(n(1, 6, 32), mask(6).long())],
            "decoder_input_tokens": n(1, 8, 8), "decoder_noise_time": n.flow,
        },
    ),
    "Transformer2DModel": Tiny(
        {**HEADS, **LAYERS, "in_channels": 4, "norm_num_groups": 2, "cross_attention_dim": 32},
        lambda n: {"hidden_states": n(1, 4, 4, 4), **text(n)},
    ),
    "DreamLiteTransformer2DModel": Tiny(
        {**HEADS, **LAYERS, "in_channels": 4, "norm_num_groups": 2, "cross_attention_dim": 32,
         "use_linear_projection": True},
        lambda n: {"hidden_states": n(1, 4, 4, 4), **text(n)},
    ),
    "AllegroTransformer3DModel": Tiny(
        {
            "num_attention_heads": 2, "attention_head_dim": 24, **LAYERS,
            "cross_attention_dim": 48, "sample_height": 8, "sample_width": 8, "sample_frames": 2,
            "caption_channels": 16,
        },
        lambda n: {
            **clip(n), **text(n, 16), "timestep": n.time.long(),
            "attention_mask": torch.ones(1, 2, 8, 8),
            "encoder_attention_mask": mask(6).long(),
            "image_rotary_emb": (
                [(torch.ones(32, 8), torch.zeros(32, 8)) for _ in range(3)],
                [torch.zeros(1, 32, dtype=torch.long) for _ in range(3)],
            ),
        },
    ),
    "AnyFlowTransformer3DModel": Tiny(
        WAN,
        lambda n: {
            **text(n), "hidden_states": n(1, 2, 4, 8, 8), "timestep": n.time.expand(1, 2),
            "r_timestep": n.time.expand(1, 2),
        },
    ),
    "AnyFlowFARTransformer3DModel": Tiny(
        {**WAN, "chunk_partition": (1, 1), "full_chunk_limit": 2},
        lambda n: {
            **text(n), "hidden_states": n(1, 2, 4, 8, 8), "timestep": n.time.expand(1, 2),
            "r_timestep": n.time.expand(1, 2), "chunk_partition": [1, 1],
        },
    ),
    "BriaTransformer2DModel": Tiny(
        {**HEADS, **BOTH, **ROPE, "in_channels": 8, "joint_attention_dim": 32},
        lambda n: placed(n),
    ),
    "BriaFiboTransformer2DModel": Tiny(
        {**HEADS, **BOTH, **ROPE, "in_channels": 8, "joint_attention_dim": 32,
         "text_encoder_dim": 16},
        lambda n: {**placed(n), "text_encoder_layers": [n(1, 6, 16) for _ in range(4)]},
    ),
    "BriaFibo2Transformer2DModel": Tiny(
        {
            "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 2, "n_heads": 2,
            "cap_feat_dim": 32, "injection_layer_ids": (1,), "perceiver_num_layers": 2,
            "min_num_gist_tokens": 4, "max_num_gist_tokens": 8, "gist_step": 2,
            "gist_min_text_len": 4, "gist_max_text_len": 16, "axes_dims": (4, 6, 6),
            "axes_lens": (64, 32, 32),
        },
        lambda n: {**image(n), "timestep": n.flow, "encoder_hidden_states": n(1, 2, 6, 32)},
    ),
    "ChromaTransformer2DModel": Tiny(
        {
            **HEADS, **BOTH, **ROPE, "in_channels": 8, "joint_attention_dim": 32,
            "approximator_num_channels": 16, "approximator_hidden_dim": 32,
            "approximator_layers": 2,
        },
        lambda n: {**placed(n), "attention_mask": torch.ones(1, 22)},
    ),
    "ChronoEditTransformer3DModel": Tiny({**WAN, "rope_temporal_skip_len": 2}, wan),
    "CogView3PlusTransformer2DModel": Tiny(
        {**COG, "pos_embed_max_size": 8, "sample_size": 8},
        lambda n: {**image(n), **text(n), **sized(n), "original_size": torch.full((1, 2), 64.0)},
    ),
    "CogView4Transformer2DModel": Tiny(
        {**COG, "pos_embed_max_size": 8, "sample_size": 8, "rope_axes_dim": (8, 8)},
        lambda n: {**image(n), **text(n), **sized(n), "original_size": torch.full((1, 2), 64.0)},
    ),
    "Cosmos3OmniTransformer": Tiny(
        {
            "head_dim": 16, "hidden_size": 32, "intermediate_size": 64, "latent_channel": 4,
            "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1,
            "patch_latent_dim": 16, "vocab_size": 64, "rope_axes_dim": (4, 2, 2),
        },
        lambda n: {
            "input_ids": n.integers(64, 6), "text_indexes": torch.arange(6), "und_len": 6,
            "position_ids": torch.arange(22).expand(3, 22), "sequence_length": 22,
            "vision_tokens": [n(1, 4, 1, 8, 8)], "vision_token_shapes": [(1, 4, 4)],
            "vision_sequence_indexes": torch.arange(6, 22),
            "vision_mse_loss_indexes": torch.arange(6, 22),
            "vision_timesteps": n.time.expand(16), "vision_noisy_frame_indexes": [torch.arange(1)],
        },
    ),
    "CosmosTransformer3DModel": Tiny(
        {
            **HEADS, **LAYERS, "in_channels": 4, "out_channels": 4, "text_embed_dim": 32,
            "adaln_lora_dim": 8, "max_size": (4, 16, 16), "concat_padding_mask": False,
        },
        lambda n: {
            **clip(n), **text(n), "timestep": n.flow, "fps": 30,
        },
    ),
    "EasyAnimateTransformer3DModel": Tiny(
        {
            **HEADS, **LAYERS, "mmdit_layers": 2, "in_channels": 4, "out_channels": 4,
            "patch_size": 2, "sample_width": 8, "sample_height": 8, "time_embed_dim": 16,
            "text_embed_dim": 32,
        },
        lambda n: {**clip(n), **text(n)},
    ),
    "ErnieImageTransformer2DModel": Tiny(
        {
            "hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 64,
            "in_channels": 4, "out_channels": 4, "text_in_dim": 32, "rope_axes_dim": (4, 6, 6),
        },
        lambda n: {
            "hidden_states": n(1, 4, 4, 4), "timestep": n.time, "text_bth": n(1, 6, 32),
            "text_lens": torch.tensor([6]),
        },
    ),
    "FluxTransformer2DModel": Tiny(
        {**HEADS, **BOTH, **ROPE, "in_channels": 8, "joint_attention_dim": 32,
         "pooled_projection_dim": 32, "guidance_embeds": True},
        lambda n: {**placed(n), **joint(n), "guidance": torch.tensor([3.5])},
    ),
    "Flux2Transformer2DModel": Tiny(
        {**HEADS, **BOTH, "in_channels": 8, "joint_attention_dim": 32,
         "timestep_guidance_channels": 16, "axes_dims_rope": (4, 4, 4, 4)},
        lambda n: {
            **placed(n), "guidance": torch.tensor([3.5]), "img_ids": n.integers(4, 16, 4).float(),
            "txt_ids": n.integers(4, 6, 4).float(),
        },
    ),
    "Flux3Transformer2DModel": Tiny(
        {**HEADS, **BOTH, "in_channels": 8, "cond_in_channels": 8, "joint_attention_dim": 32,
         "timestep_channels": 16, "axes_dims_rope": (4, 4, 4, 4)},
        lambda n: {
            **placed(n), "img_ids": n.integers(4, 16, 4).float(),
            "txt_ids": n.integers(4, 6, 4).float(),
        },
    ),
    "GlmImageTransformer2DModel": Tiny(
        {**COG, "prior_vq_quantizer_codebook_size": 16},
        lambda n: {
            **image(n), **text(n), **sized(n), "prior_token_id": n.integers(16, 1, 16),
            "prior_token_drop": torch.zeros(1, 16, dtype=torch.bool),
        },
    ),
    "HeliosTransformer3DModel": Tiny(
        {**WAN, "rope_dim": (4, 6, 6), "guidance_cross_attn": False, "zero_history_timestep": False,
         "has_multi_term_memory_patch": False},
        lambda n: {**wan(n), "indices_hidden_states": torch.arange(2)[None]},
    ),
    "HiDreamImageTransformer2DModel": Tiny(
        {
            **HEADS, **BOTH, "patch_size": 2, "in_channels": 4, "out_channels": 4,
            "caption_channels": [32, 16], "text_emb_dim": 16, "num_routed_experts": 2,
            "num_activated_experts": 1, "axes_dims_rope": (8, 4, 4), "max_resolution": (8, 8),
            "llama_layers": (0, 1, 2, 3), "force_inference_output": True,
        },
        lambda n: {
            "hidden_states": n(1, 4, 8, 8), "timesteps": n.time, "pooled_embeds": n(1, 16),
            "encoder_hidden_states_t5": n(1, 6, 32),
            "encoder_hidden_states_llama3": n(4, 1, 6, 16),
        },
    ),
    "HunyuanVideoTransformer3DModel": Tiny(
        {**HUNYUAN, "num_single_layers": 2, "pooled_projection_dim": 32}, hunyuan
    ),
    "HunyuanVideo15Transformer3DModel": Tiny(
        {**HUNYUAN, "in_channels": 9, "text_embed_2_dim": 16, "image_embed_dim": 16},
        lambda n: {
            **clip(n, 9), **text(n), "encoder_attention_mask": mask(6),
            "encoder_hidden_states_2": n(1, 4, 16), "encoder_attention_mask_2": mask(4),
            "image_embeds": torch.zeros(1, 3, 16),
        },
    ),
    "HunyuanVideoFramepackTransformer3DModel": Tiny(
        {**HUNYUAN, "num_single_layers": 2, "pooled_projection_dim": 32, "has_image_proj": True,
         "image_proj_dim": 16, "has_clean_x_embedder": True},
        lambda n: {
            **hunyuan(n), "image_embeds": n(1, 3, 16), "indices_latents": torch.arange(2),
            "latents_clean": n(1, 4, 2, 8, 8), "indices_latents_clean": torch.arange(2),
            "latents_history_2x": n(1, 4, 2, 8, 8), "indices_latents_history_2x": torch.arange(2),
            "latents_history_4x": n(1, 4, 4, 8, 8), "indices_latents_history_4x": torch.arange(4),
        },
    ),
    "HunyuanImageTransformer2DModel": Tiny(
        {**HUNYUAN, "num_single_layers": 2, "text_embed_2_dim": 16, "rope_axes_dim": (8, 8)},
        lambda n: {
            "hidden_states": n(1, 4, 4, 4), "timestep": n.time, **text(n),
            "encoder_attention_mask": mask(6).long(), "encoder_hidden_states_2": n(1, 4, 16),
            "encoder_attention_mask_2": mask(4).long(),
        },
    ),
    "Ideogram4Transformer2DModel": Tiny(
        {
            "in_channels": 8, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
            "intermediate_size": 64, "adaln_dim": 16, "llm_features_dim": 32,
            "mrope_section": (4, 2, 2),
        },
        lambda n: {
            "hidden_states": n(1, 22, 8), "timestep": n.flow, "encoder_hidden_states": n(1, 22, 32),
            "position_ids": ids(22, (1,)).long(),
            "segment_ids": torch.ones(1, 22, dtype=torch.long),
            "indicator": torch.tensor([[3] * 6 + [2] * 16]),
        },
    ),
    "JoyImageEditTransformer3DModel": Tiny(
        {
            "in_channels": 4, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 32,
            "num_layers": 2, "rope_dim_list": [4, 6, 6],
        },
        lambda n: {**text(n), "hidden_states": n(1, 2, 4, 1, 8, 8), "timestep": n.time},
    ),
    "JoyImageEditPlusTransformer3DModel": Tiny(
        {
            "in_channels": 4, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 32,
            "num_layers": 2, "rope_dim_list": [4, 6, 6],
        },
        lambda n: {
            **text(n), "hidden_states": n(1, 32, 4, 1, 2, 2), "timestep": n.time,
            "encoder_hidden_states_mask": mask(6), "shape_list": [[(1, 4, 4), (1, 4, 4)]],
        },
    ),
    "Kandinsky5Transformer3DModel": Tiny(
        {
            "in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 32, "in_text_dim2": 16,
            "time_dim": 16, "model_dim": 32, "ff_dim": 64, "num_text_blocks": 2,
            "num_visual_blocks": 2, "axes_dims": (4, 6, 6),
        },
        lambda n: {
            **text(n), "hidden_states": n(1, 2, 8, 8, 4), "timestep": n.time,
            "pooled_projections": n(1, 16),
            "visual_rope_pos": (torch.arange(2), torch.arange(4), torch.arange(4)),
            "text_rope_pos": torch.arange(6),
        },
    ),
    "Kandinsky6Transformer3DModel": Tiny(
        {
            "in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 32, "in_text_dim2": 16,
            "time_dim": 16, "model_dim": 32, "ff_dim": 64, "num_text_blocks": 2,
            "num_visual_blocks": 2, "axes_dims": (4, 6, 6), "visual_cond": False,
            "in_audio_dim": 4, "out_audio_dim": 4, "model_dim_a": 32, "time_dim_a": 16,
            "ff_dim_a": 64, "axes_dims_a": (4, 6, 6),
        },
        lambda n: {
            **text(n), "hidden_states": n(1, 2, 8, 8, 4), "timestep": n.time,
            "pooled_projections": n(1, 16), "audio_hidden_states": n(1, 5, 4),
        },
    ),
    "Kandinsky6SRTransformer3DModel": Tiny(
        {
            "in_visual_dim": 4, "out_visual_dim": 4, "time_dim": 16, "model_dim": 32, "ff_dim": 64,
            "num_visual_blocks": 2, "axes_dims": (4, 6, 6),
        },
        lambda n: {"hidden_states": n(1, 2, 8, 8, 9), "timestep": n.time},
    ),
    "Krea2Transformer2DModel": Tiny(
        {
            **LAYERS, "in_channels": 8, "attention_head_dim": 16, "num_attention_heads": 2,
            "num_key_value_heads": 1, "intermediate_size": 64, "timestep_embed_dim": 16,
            "text_hidden_dim": 32, "num_text_layers": 3, "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2, "text_intermediate_size": 64,
            "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 6, 6),
        },
        lambda n: {**packed(n), "encoder_hidden_states": n(1, 6, 3, 32), "position_ids": ids(22)},
    ),
    "LongCatAudioDiTTransformer": Tiny(
        {"dit_dim": 32, "dit_depth": 2, "dit_heads": 2, "dit_text_dim": 16, "latent_dim": 8},
        lambda n: {
            **packed(n), **text(n, 16), "encoder_attention_mask": mask(6),
            "attention_mask": mask(16), "latent_cond": n(1, 16, 8),
        },
    ),
    "LongCatImageTransformer2DModel": Tiny(
        {**HEADS, **BOTH, **ROPE, "in_channels": 8, "joint_attention_dim": 32,
         "pooled_projection_dim": 32},
        lambda n: placed(n),
    ),
    "LTXVideoTransformer3DModel": Tiny(
        {**HEADS, **LAYERS, "in_channels": 8, "out_channels": 8, "cross_attention_dim": 32,
         "caption_channels": 16},
        lambda n: {
            **packed(n), **text(n, 16), "timestep": n.time,
            "encoder_attention_mask": mask(6).long(),
            "num_frames": 1, "height": 4, "width": 4,
        },
    ),
    "LTX2VideoTransformer3DModel": Tiny(LTX2, ltx2),
    "Lumina2Transformer2DModel": Tiny(
        {
            "sample_size": 8, "in_channels": 4, "hidden_size": 32, "num_layers": 2,
            "num_refiner_layers": 2, "num_attention_heads": 2, "num_kv_heads": 1,
            "multiple_of": 16, "axes_dim_rope": (4, 6, 6), "axes_lens": (16, 16, 16),
            "cap_feat_dim": 32,
        },
        lambda n: {**image(n), **text(n), "timestep": n.flow, "encoder_attention_mask": mask(6)},
    ),
    "MiniMaxH3Transformer3DModel": Tiny(
        {
            **HEADS, **LAYERS, "hidden_size": 32, "num_refiner_layers": 2, "ffn_dim": 64,
            "in_channels": 4, "audio_in_channels": 8, "text_dim": 32, "freq_dim": 16,
            "time_embed_hidden_dim": 32, "time_embed_dim": 16, "rope_freq_dim": 2,
        },
        lambda n: {
            "hidden_states": n(1, 16, 16), "audio_hidden_states": n(1, 4, 8),
            "encoder_hidden_states": n(1, 6, 32), "timestep": n.flow,
            "timestep_indices": torch.zeros(26, dtype=torch.long),
            "token_tags": torch.tensor([2] * 6 + [0] * 16 + [1] * 4),
            "position_ids": ids(26), "text_indices": torch.arange(6),
            "video_indices": torch.arange(6, 22), "audio_indices": torch.arange(22, 26),
        },
    ),
    "MiniMaxMusic3Transformer1DModel": Tiny(
        {
            **HEADS, **LAYERS, "in_channels": 8, "condition_dim": 32, "ff_inner_dim": 64,
            "rotary_dim": 8, "fourier_embedding_dim": 16,
        },
        lambda n: {
            "hidden_states": n(1, 8, 16), "timestep": n.flow,
            "encoder_hidden_states": n(1, 16, 32),
        },
    ),
    "MochiTransformer3DModel": Tiny(
        {**HEADS, **LAYERS, "in_channels": 4, "pooled_projection_dim": 32, "text_embed_dim": 32,
         "time_embed_dim": 16, "max_sequence_length": 6},
        lambda n: {**clip(n), **text(n), "encoder_attention_mask": mask(6)},
    ),
    "MotifVideoTransformer3DModel": Tiny(
        {**HEADS, **BOTH, "in_channels": 9, "out_channels": 4, "num_decoder_layers": 1,
         "text_embed_dim": 32, "rope_axes_dim": (4, 6, 6)},
        lambda n: {**clip(n, 9), **text(n), "encoder_attention_mask": mask(6)},
    ),
    "NucleusMoEImageTransformer2DModel": Tiny(
        {
            **HEADS, **ROPE, "num_layers": 5, "in_channels": 16, "out_channels": 4,
            "joint_attention_dim": 32, "num_experts": 4, "moe_intermediate_dim": 32,
            "capacity_factors": [2.0] * 5, "mlp_ratio": 8.0,
        },
        lambda n: {**packed(n, 16), **text(n), "img_shapes": [(1, 4, 4)],
                   "encoder_hidden_states_mask": mask(6)},
    ),
    "OmniGenTransformer2DModel": Tiny(
        {
            "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2,
            "intermediate_size": 64, "num_layers": 2, "pad_token_id": 0, "vocab_size": 32,
            "time_step_dim": 16,
            "rope_scaling": {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
        },
        lambda n: {
            "hidden_states": n(1, 4, 8, 8), "timestep": n.flow, "input_ids": n.integers(32, 1, 6),
            "input_img_latents": [], "input_image_sizes": {},
            "attention_mask": torch.ones(1, 23, 23), "position_ids": torch.arange(23)[None],
        },
    ),
    "OvisImageTransformer2DModel": Tiny(
        {**HEADS, **BOTH, **ROPE, "in_channels": 8, "out_channels": 8, "joint_attention_dim": 32},
        lambda n: placed(n),
    ),
    "PRXTransformer2DModel": Tiny(
        {"in_channels": 4, "context_in_dim": 32, "hidden_size": 32, "num_heads": 2, "depth": 2,
         "axes_dim": [8, 8]},
        lambda n: {**image(n), **text(n), "timestep": n.flow, "attention_mask": mask(6)},
    ),
    "QwenImageTransformer2DModel": Tiny(
        {**HEADS, **LAYERS, **ROPE, "in_channels": 16, "out_channels": 4,
         "joint_attention_dim": 32},
        lambda n: {
            **packed(n, 16), **text(n), "encoder_hidden_states_mask": mask(6).long(),
            "img_shapes": [[(1, 4, 4)]],
        },
    ),
    "QwenImage21Transformer2DModel": Tiny(
        {**HEADS, **LAYERS, **ROPE, "in_channels": 8, "out_channels": 8, "context_in_dim": 32},
        lambda n: {
            **packed(n), **text(n), "img_shapes": [[(1, 4, 4)]],
            "img_mask": torch.tensor([[False] * 6 + [True] * 4]),
            "encoder_hidden_states_mask": mask(6),
        },
    ),
    "SanaVideoTransformer3DModel": Tiny(
        {
            **HEADS, **LAYERS, "in_channels": 4, "out_channels": 4, "sample_size": 8,
            "num_cross_attention_heads": 2, "cross_attention_head_dim": 16,
            "cross_attention_dim": 32, "caption_channels": 16,
        },
        lambda n: {**clip(n), **text(n, 16), "encoder_attention_mask": mask(6).long()},
    ),
    "SanaWMTransformer3DModel": Tiny(
        {
            "in_channels": 8, "num_layers": 4, "hidden_size": 32, "num_attention_heads": 2,
            "linear_head_dim": 16, "chunk_plucker_channels": 8, "chunk_plucker_post_attn_blocks": 2,
            "image_size": 64, "caption_channels": 16,
        },
        lambda n: {
            **clip(n, 8, 2, 4), "timestep": n.time.expand(1, 1, 2),
            "encoder_hidden_states": n(1, 1, 6, 16), "encoder_attention_mask": mask(6).long(),
        },
    ),
    "SanaWMLTX2RefinerTransformer3DModel": Tiny(
        LTX2,
        lambda n: {
            **packed(n, 8, 8), **text(n), "timestep": n.time,
            "video_rotary_emb": (torch.ones(1, 8, 32), torch.zeros(1, 8, 32)),
        },
    ),
    "RFD4ProteinaTransformer": Tiny(
        {
            "nlayers": 2, "token_dim": 32, "nheads": 2, "dim_cond": 16, "pair_repr_dim": 16,
            "latent_dim": 8, "token_type_emb_dim": 8, "cath_emb_dim": 8, "t_emb_dim": 16,
            "seq_sep_dim": 9, "xt_pair_dist_dim": 8, "tri_mult_c": 16,
            "feats_seq": ("xt_bb_ca", "xt_local_latents"),
            "feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents"),
            "feats_pair_repr": ("xt_bb_ca_pair_dists",),
        },
        lambda n: {
            "bb_ca": n(1, 12, 3), "local_latents": n(1, 12, 8), "bb_ca_time": n.flow,
            "local_latents_time": n.flow, "padding_mask": mask(12),
            "conditioning": {
                "is_in_context_conditioning": torch.zeros(1, 12),
                "supports_local_latent": torch.ones(1, 12),
            },
        },
    ),
    "SD3Transformer2DModel": Tiny(
        {
            **HEADS, "num_layers": 3, "sample_size": 8, "in_channels": 4, "out_channels": 4,
            "joint_attention_dim": 32, "caption_projection_dim": 32, "pooled_projection_dim": 32,
            "dual_attention_layers": (0,), "qk_norm": "rms_norm",
        },
        lambda n: {**image(n), **text(n), **joint(n)},
    ),
    "SkyReelsV2Transformer3DModel": Tiny(WAN, wan),
    "StableAudio3DiTModel": Tiny(
        {
            "io_channels": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "cond_token_dim": 32,
            "global_cond_dim": 16, "local_add_cond_dim": 9, "timestep_features_dim": 16,
            "num_memory_tokens": 2,
        },
        lambda n: {
            "hidden_states": n(1, 8, 16), "timestep": n.flow, **text(n),
            "global_hidden_states": n(1, 16), "local_add_cond": n(1, 9, 16),
        },
    ),
    "TransformerTemporalModel": Tiny(
        {**HEADS, **LAYERS, "in_channels": 4, "norm_num_groups": 2},
        lambda n: {"hidden_states": n(4, 4, 4, 4), "num_frames": 4},
    ),
    "WanTransformer3DModel": Tiny(WAN, wan),
    "WanAnimateTransformer3DModel": Tiny(
        {
            **WAN, "in_channels": 12, "latent_channels": 4, "image_dim": 16,
            "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8}, "motion_encoder_size": 16,
            "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 32,
            "face_encoder_hidden_dim": 32, "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 1,
        },
        lambda n: {
            **text(n), "hidden_states": n(1, 12, 3, 8, 8), "timestep": n.time,
            "encoder_hidden_states_image": n(1, 3, 16), "pose_hidden_states": n(1, 4, 2, 8, 8),
            "face_pixel_values": n(1, 3, 5, 16, 16).clamp(-1, 1),
        },
    ),
    "WanAnimate2Transformer3DModel": Tiny(
        {
            "text_len": 6, "in_dim": 12, "dim": 32, "ffn_dim": 64, "freq_dim": 32, "text_dim": 32,
            "out_dim": 4, "num_heads": 2, "num_layers": 2,
        },
        wan_animate_2,
    ),
    "WanVACETransformer3DModel": Tiny(
        {**WAN, "vace_layers": [0, 1], "vace_in_channels": 8},
        lambda n: {**wan(n), "control_hidden_states": n(1, 8, 2, 8, 8)},
    ),
    "ZImageTransformer2DModel": Tiny(
        {
            "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 2, "n_heads": 2,
            "n_kv_heads": 2, "cap_feat_dim": 32, "axes_dims": [4, 6, 6],
            "axes_lens": [64, 16, 16],
        },
        lambda n: {"x": [n(4, 1, 8, 8)], "t": n.flow, "cap_feats": [n(6, 32)]},
    ),
}  # fmt: skip

LEFT_OUT = {
    "DualTransformer2DModel": "two of `Transformer2DModel` inside of a UNet, a module that nobody "
    "loads or saves by itself",
}
