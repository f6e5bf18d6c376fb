"""DiT as diffusers holds it: every block owns its timestep and class embedders."""

from typing import Any

from fewbit.models.families.parts import FEED_FORWARD, SELF_ATTENTION
from fewbit.models.spec import ModelSpec, Role

CLASSES = ("DiTTransformer2DModel",)


def spec(model: Any) -> ModelSpec:
    return ModelSpec(
        blocks="transformer_blocks",
        roles={"norm1.linear": Role.ADALN, **SELF_ATTENTION, **FEED_FORWARD},
        keep=("transformer_blocks.*.norm1.emb.*", "proj_out_1", "proj_out_2"),
        heads=model.config.num_attention_heads,
    )
