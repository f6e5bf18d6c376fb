"""Flux: joint blocks, then single blocks whose attention and MLP run side by side."""

from typing import Any

from fewbit.models.spec import ModelSpec, Role

CLASSES = ("FluxTransformer2DModel",)


def spec(model: Any) -> ModelSpec:
    return ModelSpec(
        blocks=("transformer_blocks", "single_transformer_blocks"),
        roles={
            "norm1.linear": Role.ADALN,
            "norm1_context.linear": Role.ADALN,
            "attn.to_q": Role.Q,
            "attn.to_k": Role.K,
            "attn.to_v": Role.V,
            "attn.to_out.0": Role.ATTN_OUT,
            "attn.add_q_proj": Role.Q,
            "attn.add_k_proj": Role.K,
            "attn.add_v_proj": Role.V,
            "attn.to_add_out": Role.ATTN_OUT,
            "ff.net.0.proj": Role.FC1,
            "ff.net.2": Role.FC2,
            "ff_context.net.0.proj": Role.FC1,
            "ff_context.net.2": Role.FC2,
            "norm.linear": Role.ADALN,
            "proj_mlp": Role.FC1,
            "proj_out": Role.FUSED_OUT,
        },
        keep=("x_embedder", "context_embedder", "time_text_embed.*", "norm_out.*", "proj_out"),
        heads=model.config.num_attention_heads,
        shared=(
            ("norm1.linear", "norm1_context.linear"),
            ("attn.to_[qkv]", "proj_mlp"),
            ("attn.add_[qkv]_proj",),
        ),
    )
