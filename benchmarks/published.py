"""What recipes make of published models, from their configurations alone: no weight is read.

python benchmarks/published.py

The models are built without memory and planned as `fewbit quantize CONFIG --dry-run` plans them. A
row tells how many parameters a transformer has, which share of them the recipes quantize, and how
large it is at each width. The result is benchmarks/results/published.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
from accelerate import init_empty_weights
from environment import write_result
from torch import nn

from fewbit.engine.allocate import budget_of
from fewbit.engine.plan import Plan, make_plan
from fewbit.engine.recipe import Recipe
from fewbit.models.hidden import shown

Config = Mapping[str, Any]

# Where a configuration is empty, the defaults of the class are those of the published model.
MODELS: dict[str, tuple[str, Config]] = {
    "DiT-XL/2": ("DiTTransformer2DModel", {"num_layers": 28}),
    "PixArt-Sigma 1024": (
        "PixArtTransformer2DModel",
        {"sample_size": 128, "caption_channels": 4096, "out_channels": 8},
    ),
    "HunyuanDiT 1.2": (
        "HunyuanDiT2DModel",
        {
            "num_attention_heads": 16, "attention_head_dim": 88, "num_layers": 40,
            "in_channels": 4, "patch_size": 2, "sample_size": 128, "hidden_size": 1408,
            "activation_fn": "gelu-approximate", "mlp_ratio": 4.3637, "cross_attention_dim": 1024,
            "cross_attention_dim_t5": 2048, "pooled_projection_dim": 1024, "text_len": 77,
            "text_len_t5": 256, "norm_type": "ada_norm_continous", "learn_sigma": True,
            "use_style_cond_and_image_meta_size": False,
        },
    ),
    "Stable Diffusion 3.5 medium": (
        "SD3Transformer2DModel",
        {
            "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
            "joint_attention_dim": 4096, "out_channels": 16, "pos_embed_max_size": 384,
            "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)),
        },
    ),
    "Stable Diffusion 3.5 large": (
        "SD3Transformer2DModel",
        {
            "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
            "joint_attention_dim": 4096, "out_channels": 16, "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
    ),
    "FLUX.1 dev": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "FLUX.2 dev": ("Flux2Transformer2DModel", {}),
    "Chroma": ("ChromaTransformer2DModel", {}),
    "AuraFlow 0.3": ("AuraFlowTransformer2DModel", {}),
    "Lumina Image 2.0": ("Lumina2Transformer2DModel", {}),
    "Sana 1.6B": ("SanaTransformer2DModel", {}),
    "Qwen-Image": ("QwenImageTransformer2DModel", {}),
    "Z-Image": ("ZImageTransformer2DModel", {}),
    "Krea 2": ("Krea2Transformer2DModel", {}),
    "CogVideoX 5B": (
        "CogVideoXTransformer3DModel",
        {"num_layers": 42, "num_attention_heads": 48, "use_rotary_positional_embeddings": True},
    ),
    "Wan 2.1 1.3B": (
        "WanTransformer3DModel",
        {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
    ),
    "Wan 2.2 A14B, each of two": ("WanTransformer3DModel", {}),
    "LTX-Video 2B": ("LTXVideoTransformer3DModel", {}),
    "LTX-2": ("LTX2VideoTransformer3DModel", {}),
    "HunyuanVideo": ("HunyuanVideoTransformer3DModel", {}),
    "HunyuanVideo 1.5": ("HunyuanVideo15Transformer3DModel", {}),
}  # fmt: skip

RECIPES = {
    "rtn w8a8": ("rtn", "w8a8", {}),
    "best exact": ("best", None, {"preset": "exact"}),
    "best balanced": ("best", None, {"preset": "balanced"}),
    "best small": ("best", None, {"preset": "small"}),
    "best tiny": ("best", None, {"preset": "tiny"}),
    "hq-dit w4a4": ("hq-dit", "w4a4", {}),
}


def main() -> None:
    rows = {name: row(*model) for name, model in MODELS.items()}
    print(write_result("published", {"models": rows}))


def row(class_name: str, config: Config) -> dict[str, Any]:
    with init_empty_weights():
        model = getattr(diffusers, class_name)(**config).bfloat16()
    with shown(model):
        plans = {name: _plan(model, *recipe) for name, recipe in RECIPES.items()}
    structure = next(iter(plans.values())).structure
    quantized = sum(layer.parameters for layer in next(iter(plans.values())).layers)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "class": class_name,
        "parameters": parameters,
        "blocks": len(structure.blocks),
        "quantized": round(quantized / parameters, 4),
        "unknown": round(structure.unknown_share, 4),
        "bytes": structure.bytes,
        "bytes_after": {name: round(_bytes(plan)) for name, plan in plans.items()},
    }


def _plan(model: nn.Module, recipe: str, bits: str | None, settings: Mapping[str, Any]) -> Plan:
    return make_plan(model, Recipe.resolve(recipe, bits, settings), None, allow_unknown=True)


def _bytes(plan: Plan) -> float:
    """With what a budget allows, where there is one."""
    budget = budget_of(plan)
    return (
        plan.size_after.bytes
        if budget is None
        else plan.size_after.bytes - plan.weight_bytes + budget
    )


if __name__ == "__main__":
    main()
