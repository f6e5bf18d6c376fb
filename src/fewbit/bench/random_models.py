"""Full-size architectures with random weights: speed needs no trained ones, and no network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fewbit.errors import BadModel
from fewbit.layers.bind import EMBEDDERS
from fewbit.models import Role, describe

CAPTION_TOKENS = 120  # as PixArt's pipeline pads them

DIT_XL_2 = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
}
PIXART_1024 = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "sample_size": 128,
    "patch_size": 2,
}
CONFIGS: dict[str, tuple[str, dict[str, int]]] = {
    "dit-xl-2": ("DiTTransformer2DModel", DIT_XL_2),
    "pixart-1024": ("PixArtTransformer2DModel", PIXART_1024),
}
BLOCKS = 28  # of either
APART = 2.0**-8  # seen by float16, and too little to be seen in an output's error


def one_block(name: str) -> nn.Module:
    """The network of that name with a single block, which `grown` repeats."""
    import diffusers
    from accelerate import init_empty_weights

    cls, config = CONFIGS[name]
    with init_empty_weights(include_buffers=False):
        network: nn.Module = getattr(diffusers, cls)(num_layers=1, **config)
    generator = torch.Generator().manual_seed(0)
    for path, empty in list(network.named_parameters()):
        spread = empty[0].numel() ** -0.5 if empty.dim() > 1 else 0.02  # keeps what passes in scale
        values = torch.empty(empty.shape).normal_(std=spread, generator=generator)
        parent, _, leaf = path.rpartition(".")
        owner = network.get_submodule(parent)
        setattr(owner, leaf, nn.Parameter(values, requires_grad=False))
    return network.eval()


def grown(network: nn.Module, blocks: int) -> nn.Module:
    """So many copies of its only block, each in memory of its own but for the embedders, which a
    converted checkpoint shares as well."""
    path = describe(network).blocks[0].rpartition(".")[0]
    row: Any = network.get_submodule(path)
    shared = {id(m): m for m in row.modules() if type(m).__name__ in EMBEDDERS}
    row.extend([copy.deepcopy(row[0], dict(shared)) for _ in range(blocks - 1)])
    return network


def told_apart(network: nn.Module) -> nn.Module:
    """With another scale on one channel of what each block computes of the timestep alone. What
    optimises a whole graph would compute the same product of equal weights once for all blocks."""
    structure = describe(network)
    for index in range(len(structure.blocks)):
        for layer in structure.quantizable(index):
            if layer.role is Role.ADALN:
                weight = network.get_submodule(layer.name).get_parameter("weight")
                weight[0].mul_(1 + index * APART)
    return network


def inputs_for(network: Any, rows: int) -> dict[str, Any]:
    """Random arguments of one step: half of the rows are the unconditional ones of guidance."""
    family = type(network).__name__
    if family not in _INPUTS:
        known = ", ".join(sorted(_INPUTS))
        raise BadModel(
            f"fewbit bench cannot make up inputs for a bare {family}, only for {known}; "
            "give the folder of the whole pipeline"
        )
    generator = torch.Generator().manual_seed(1)
    size, channels = network.config.sample_size, network.config.in_channels
    return {
        "hidden_states": torch.randn(rows, channels, size, size, generator=generator),
        "timestep": torch.full((rows,), 500),
        **_INPUTS[family](network.config, rows, generator),
    }


def _of_dit(config: Any, rows: int, generator: torch.Generator) -> dict[str, Any]:
    labels = torch.full((rows,), config.num_embeds_ada_norm)
    labels[: rows // 2] = torch.arange(rows // 2) % config.num_embeds_ada_norm
    return {"class_labels": labels}


def _of_pixart(config: Any, rows: int, generator: torch.Generator) -> dict[str, Any]:
    width = config.caption_channels
    captions = torch.randn(rows, CAPTION_TOKENS, width, generator=generator)
    pixels = torch.full((rows, 2), 8.0 * config.sample_size)
    return {
        "encoder_hidden_states": captions,
        "encoder_attention_mask": torch.ones(rows, CAPTION_TOKENS),
        "added_cond_kwargs": {"resolution": pixels, "aspect_ratio": torch.ones(rows, 1)},
    }


_INPUTS: dict[str, Callable[[Any, int, torch.Generator], dict[str, Any]]] = {
    "DiTTransformer2DModel": _of_dit,
    "PixArtTransformer2DModel": _of_pixart,
}
