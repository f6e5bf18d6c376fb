"""HunyuanDiT: later blocks join earlier outputs through skip linears; adaLN only shifts."""

from typing import Any

from fewbit.models.families.parts import CROSS_ATTENTION, FEED_FORWARD, SELF_ATTENTION
from fewbit.models.spec import ModelSpec, Role

CLASSES = ("HunyuanDiT2DModel",)


def spec(model: Any) -> ModelSpec:
    return ModelSpec(
        blocks="blocks",
        roles={
            "skip_linear": Role.SKIP,
            "norm1.linear": Role.ADALN,
            **SELF_ATTENTION,
            **CROSS_ATTENTION,
            **FEED_FORWARD,
        },
        keep=("text_embedder.*", "time_extra_emb.*", "norm_out.*", "proj_out"),
        heads=model.config.num_attention_heads,
    )
