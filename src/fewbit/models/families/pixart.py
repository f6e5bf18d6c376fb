"""PixArt alpha and sigma: one adaLN linear for all blocks, and cross-attention to the caption."""

from typing import Any

from fewbit.models.families.parts import CROSS_ATTENTION, FEED_FORWARD, SELF_ATTENTION
from fewbit.models.spec import ModelSpec

CLASSES = ("PixArtTransformer2DModel",)


def spec(model: Any) -> ModelSpec:
    return ModelSpec(
        blocks="transformer_blocks",
        roles={**SELF_ATTENTION, **CROSS_ATTENTION, **FEED_FORWARD},
        keep=("adaln_single.*", "caption_projection.*", "proj_out"),
        heads=model.config.num_attention_heads,
    )
