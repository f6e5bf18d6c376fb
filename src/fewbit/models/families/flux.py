"""Flux: joint blocks, then single blocks whose attention and MLP run side by side."""

from typing import Any

from fewbit.models.families.parts import JOINT
from fewbit.models.spec import ModelSpec, Role

CLASSES = ("FluxTransformer2DModel",)


def spec(model: Any) -> ModelSpec:
    return ModelSpec(
        blocks=("transformer_blocks", "single_transformer_blocks"),
        roles={
            **JOINT,
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
