"""CLIP's weights under open_clip's names, as HPSv2 is published, brought under transformers' names.

Widths, depths and resolution are read off the tensors. What no tensor tells is open_clip's own for
its ViT-H-14: the exact GELU, and the width of a head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from fewbit.errors import BrokenFile
from fewbit.judge.weights import NO_WEIGHTS, read_state

WIDE_HEADS = {1280: 80, 1408: 88, 1664: 104}  # of the vision towers ViT-H, ViT-g and ViT-bigG
HEAD = 64  # of all others, and of every text tower
VOCABULARIES = ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "openai/clip-vit-large-patch14")
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)")
IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OUTSIDE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
TRANSPOSED = {
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
}


def load_open_clip(file: Path, advice: str) -> tuple[Any, Any]:
    """A CLIPModel and its tokenizer."""
    model = _model(file, advice)
    return model, _tokenizer(file.parent, model.config.text_config.vocab_size)


def _model(file: Path, advice: str) -> Any:
    from transformers import CLIPModel

    state = read_state(file, advice)
    try:
        renamed = {new: one for name in state for new, one in _renamed(name, state[name])}
        model, found = CLIPModel.from_pretrained(
            None, config=_config(state), state_dict=renamed, output_loading_info=True
        )
    except NO_WEIGHTS as error:
        raise BrokenFile(f"{file} is no CLIP as open_clip names it ({error}); {advice}") from error
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:3])
        raise BrokenFile(f"{file} is no whole CLIP (it has no {missing}); {advice}")
    return model.float()


def _renamed(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    block = BLOCK.fullmatch(name)
    if block:
        yield from _of_block(block, tensor)
    elif name in TRANSPOSED:
        yield TRANSPOSED[name], tensor.T.contiguous()
    else:
        yield OUTSIDE[name], tensor


def _of_block(block: re.Match[str], tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Queries, keys and values are one tensor here and three there."""
    visual, number, part, kind = block.groups()
    home = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"
    if part == "attn.in_proj":
        for letter, third in zip("qkv", tensor.chunk(3), strict=True):
            yield f"{home}.self_attn.{letter}_proj.{kind}", third.contiguous()
    else:
        yield f"{home}.{IN_BLOCK[part]}.{kind}", tensor


def _config(state: Mapping[str, Tensor]) -> Any:
    from transformers import CLIPConfig

    width, _, patch, _ = state["visual.conv1.weight"].shape
    patches = len(state["visual.positional_embedding"]) - 1
    words, text_width = state["token_embedding.weight"].shape
    joint = state["visual.proj"].shape[1]
    return CLIPConfig(
        vision_config={
            **_tower(state, "visual.", width, WIDE_HEADS.get(width, HEAD)),
            "patch_size": patch,
            "image_size": patch * isqrt(patches),
            "projection_dim": joint,
        },
        text_config={
            **_tower(state, "", text_width, HEAD),
            "vocab_size": words,
            "max_position_embeddings": len(state["positional_embedding"]),
            "eos_token_id": words - 1,
            "projection_dim": joint,
        },
        projection_dim=joint,
    )


def _tower(state: Mapping[str, Tensor], side: str, width: int, head: int) -> dict[str, Any]:
    start = f"{side}transformer.resblocks."
    numbers = {name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)}
    return {
        "hidden_size": width,
        "intermediate_size": len(state[f"{start}0.mlp.c_fc.weight"]),
        "num_hidden_layers": len(numbers),
        "num_attention_heads": width // head,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }


def _tokenizer(folder: Path, words: int) -> Any:
    """Where there is no vocabulary, transformers gives one of two words: so they are counted."""
    from transformers import CLIPTokenizer

    for place in (str(folder), *VOCABULARIES):
        try:
            tokenizer = CLIPTokenizer.from_pretrained(place, local_files_only=True)
        except NO_WEIGHTS:
            continue
        if len(tokenizer) == words:
            return tokenizer
    raise BrokenFile(
        f"there is no vocabulary of {words} words for the weights in {folder}; put CLIP's "
        f"vocab.json and merges.txt there, or have {VOCABULARIES[0]} in the hub cache"
    )
