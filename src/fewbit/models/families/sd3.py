"""Stable Diffusion 3: an image and a text stream that meet in a joint attention."""

from typing import Any

from fewbit.models.families.parts import JOINT
from fewbit.models.spec import ModelSpec, Role

CLASSES = ("SD3Transformer2DModel",)


def spec(model: Any) -> ModelSpec:
    return ModelSpec(
        blocks="transformer_blocks",
        roles={
            **JOINT,
            "attn2.to_q": Role.Q,
            "attn2.to_k": Role.K,
            "attn2.to_v": Role.V,
            "attn2.to_out.0": Role.ATTN_OUT,
        },
        keep=("time_text_embed.*", "context_embedder", "norm_out.*", "proj_out"),
        heads=model.config.num_attention_heads,
        shared=(
            ("norm1.linear", "norm1_context.linear"),
            ("attn.to_[qkv]",),
            ("attn.add_[qkv]_proj",),
        ),
    )
