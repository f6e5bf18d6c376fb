"""PixArt alpha and sigma: one adaLN linear for all blocks, and cross-attention to the caption."""

from typing import Any

from fewbit.models.spec import ModelSpec, Role

CLASSES = ("PixArtTransformer2DModel",)


def spec(model: Any) -> ModelSpec:
    return ModelSpec(
        blocks="transformer_blocks",
        roles={
            "attn1.to_q": Role.Q,
            "attn1.to_k": Role.K,
            "attn1.to_v": Role.V,
            "attn1.to_out.0": Role.ATTN_OUT,
            "attn2.to_q": Role.CROSS_Q,
            "attn2.to_k": Role.CROSS_K,
            "attn2.to_v": Role.CROSS_V,
            "attn2.to_out.0": Role.CROSS_OUT,
            "ff.net.0.proj": Role.FC1,
            "ff.net.2": Role.FC2,
        },
        keep=("adaln_single.*", "caption_projection.*", "proj_out"),
        heads=model.config.num_attention_heads,
    )
