"""Stable Diffusion 3: an image and a text stream that meet in a joint attention."""

from typing import Any

from fewbit.models.spec import ModelSpec, Role

CLASSES = ("SD3Transformer2DModel",)


def spec(model: Any) -> ModelSpec:
    return ModelSpec(
        blocks="transformer_blocks",
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
            "attn2.to_q": Role.Q,
            "attn2.to_k": Role.K,
            "attn2.to_v": Role.V,
            "attn2.to_out.0": Role.ATTN_OUT,
            "ff.net.0.proj": Role.FC1,
            "ff.net.2": Role.FC2,
            "ff_context.net.0.proj": Role.FC1,
            "ff_context.net.2": Role.FC2,
        },
        keep=("time_text_embed.*", "context_embedder", "norm_out.*", "proj_out"),
        heads=model.config.num_attention_heads,
        shared=(
            ("norm1.linear", "norm1_context.linear"),
            ("attn.to_[qkv]",),
            ("attn.add_[qkv]_proj",),
        ),
    )
