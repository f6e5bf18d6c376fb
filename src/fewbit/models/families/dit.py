"""DiT as diffusers holds it: every block owns its timestep and class embedders."""

from typing import Any

from fewbit.models.spec import ModelSpec, Role

CLASSES = ("DiTTransformer2DModel",)


def spec(model: Any) -> ModelSpec:
    return ModelSpec(
        blocks="transformer_blocks",
        roles={
            "norm1.linear": Role.ADALN,
            "attn1.to_q": Role.Q,
            "attn1.to_k": Role.K,
            "attn1.to_v": Role.V,
            "attn1.to_out.0": Role.ATTN_OUT,
            "ff.net.0.proj": Role.FC1,
            "ff.net.2": Role.FC2,
        },
        keep=("transformer_blocks.*.norm1.emb.*", "proj_out_1", "proj_out_2"),
        heads=model.config.num_attention_heads,
    )
