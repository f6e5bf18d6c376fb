"""What a step costs at the width of published models, block by block: bf16 beside rtn w8a8.

python benchmarks/block_time.py [--models PATTERN] [--rounds N]

One block of each kind is built at the published width with random weights, and is called with what
the model gives it for a picture of 1,024 tokens (DiT-XL/2: its 256) and a text of 256, or as many
as the model pads texts to. Both arms take turns, and a figure is the median of the rounds in
milliseconds. The load before and after tells whether the machine was idle; figures of a busy one
say nothing. The result is benchmarks/results/block_time.json, where a model that is measured again
takes its old place, and `python benchmarks/reach.py` makes a page of it.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from cells import commit
from environment import write_result
from figures import results
from published import MODELS
from tiny_classes import Arguments, Numbers, ids, mask
from torch import Tensor, nn

import fewbit
from fewbit.bench.turns import Turn, take_turns
from fewbit.calibration.tree import map_tensors
from fewbit.models import describe
from fewbit.models.discover import discover

DEPTHS = ("num_layers", "num_single_layers", "num_mmdit_layers", "num_single_dit_layers",
          "num_refiner_layers", "n_layers", "n_refiner_layers", "num_layerwise_text_blocks",
          "num_refiner_text_blocks")  # fmt: skip
MORE_THAN_ONE = {"HunyuanDiT2DModel": 4, "SD3Transformer2DModel": 2}  # else a kind is missing
PLACES = ("img_ids", "txt_ids", "position_ids", "image_rotary_emb")
SIDE, TEXT = 32, 256
TOKENS = SIDE * SIDE
PIXELS = 2 * SIDE  # of a latent whose patches have two by two

Call = Callable[[Numbers], Arguments]


def latents(n: Numbers, channels: int, *size: int) -> Arguments:
    return {"hidden_states": n(1, channels, *size), "timestep": n.time}


def row(n: Numbers, channels: int) -> Arguments:
    return {"hidden_states": n(1, TOKENS, channels), "timestep": n.flow}


def text(n: Numbers, width: int, tokens: int = TEXT) -> Arguments:
    return {"encoder_hidden_states": n(1, tokens, width)}


def masked(n: Numbers, width: int, tokens: int = TEXT) -> Arguments:
    return {**text(n, width, tokens), "encoder_attention_mask": mask(tokens)}


def flux(n: Numbers) -> Arguments:
    return {**row(n, 64), **text(n, 4096), "img_ids": ids(TOKENS), "txt_ids": ids(TEXT)}


def stable_diffusion(n: Numbers) -> Arguments:
    words = text(n, 4096, 333)
    return {**latents(n, 16, PIXELS, PIXELS), **words, "pooled_projections": n(1, 2048)}


def wan(n: Numbers) -> Arguments:
    return {**latents(n, 16, 1, PIXELS, PIXELS), **text(n, 4096, 512)}


SIZED = {"num_frames": 1, "height": SIDE, "width": SIDE}
CALLS: dict[str, Call] = {
    "DiT-XL/2": lambda n: {**latents(n, 4, SIDE, SIDE), "class_labels": n.integers(1000, 1)},
    "PixArt-Sigma 1024": lambda n: {
        **latents(n, 4, PIXELS, PIXELS), **text(n, 4096, 300),
        "encoder_attention_mask": mask(300).long(),
        "added_cond_kwargs": {
            "resolution": torch.full((1, 2), 512.0), "aspect_ratio": torch.ones(1, 1)
        },
    },
    "HunyuanDiT 1.2": lambda n: {
        **latents(n, 4, PIXELS, PIXELS), **text(n, 1024, 77), "text_embedding_mask": mask(77),
        "encoder_hidden_states_t5": n(1, 256, 2048), "text_embedding_mask_t5": mask(256),
        "image_rotary_emb": (torch.ones(TOKENS, 88), torch.zeros(TOKENS, 88)),
    },
    "Stable Diffusion 3.5 medium": stable_diffusion,
    "Stable Diffusion 3.5 large": stable_diffusion,
    "FLUX.1 dev": lambda n: {
        **flux(n), "pooled_projections": n(1, 768), "guidance": torch.tensor([3.5])
    },
    "FLUX.2 dev": lambda n: {
        **row(n, 128), **text(n, 15360), "guidance": torch.tensor([3.5]),
        "img_ids": n.integers(SIDE, TOKENS, 4).float(),
        "txt_ids": n.integers(SIDE, TEXT, 4).float(),
    },
    "Chroma": lambda n: {**flux(n), "attention_mask": torch.ones(1, TEXT + TOKENS)},
    "AuraFlow 0.3": lambda n: {
        **latents(n, 4, PIXELS, PIXELS), **text(n, 2048), "timestep": n.flow
    },
    "Lumina Image 2.0": lambda n: {
        **latents(n, 16, PIXELS, PIXELS), **masked(n, 1024), "timestep": n.flow
    },
    "Sana 1.6B": lambda n: {
        **latents(n, 32, SIDE, SIDE), **text(n, 2304, 300),
        "encoder_attention_mask": mask(300).long(),
    },
    "Qwen-Image": lambda n: {
        **row(n, 64), **text(n, 3584), "encoder_hidden_states_mask": mask(TEXT).long(),
        "img_shapes": [[(1, SIDE, SIDE)]],
    },
    "Z-Image": lambda n: {
        "x": [n(16, 1, PIXELS, PIXELS)], "t": n.flow, "cap_feats": [n(TEXT, 2560)]
    },
    "Krea 2": lambda n: {
        **row(n, 64), "encoder_hidden_states": n(1, TEXT, 12, 2560),
        "position_ids": ids(TEXT + TOKENS),
    },
    "CogVideoX 5B": lambda n: {
        **text(n, 4096, 226), "hidden_states": n(1, 1, 16, PIXELS, PIXELS), "timestep": n.time,
        "image_rotary_emb": (torch.ones(TOKENS, 64), torch.zeros(TOKENS, 64)),
    },
    "Wan 2.1 1.3B": wan,
    "Wan 2.2 A14B, each of two": wan,
    "LTX-Video 2B": lambda n: {
        **row(n, 128), **text(n, 4096), "timestep": n.time,
        "encoder_attention_mask": mask(TEXT).long(), **SIZED,
    },
    "LTX-2": lambda n: {
        **row(n, 128), "audio_hidden_states": n(1, 32, 128), "timestep": n.time,
        "encoder_hidden_states": n(1, TEXT, 3840), "audio_encoder_hidden_states": n(1, TEXT, 3840),
        "audio_num_frames": 32, **SIZED,
    },
    "HunyuanVideo": lambda n: {
        **latents(n, 16, 1, PIXELS, PIXELS), **masked(n, 4096), "pooled_projections": n(1, 768),
        "guidance": torch.tensor([6000.0]),
    },
    "HunyuanVideo 1.5": lambda n: {
        **latents(n, 65, 1, SIDE, SIDE), **masked(n, 3584),
        "encoder_hidden_states_2": n(1, TEXT, 1472), "encoder_attention_mask_2": mask(TEXT),
        "image_embeds": torch.zeros(1, 729, 1152),
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a block of each kind of published models.")
    parser.add_argument("--models", default="*", help="a pattern of their names")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    known = results().get("block_time", {"figures": {"models": {}}})["figures"]["models"]
    for name in (name for name in CALLS if fnmatchcase(name, asked.models)):
        known[name] = measured(name, asked.rounds)
        print(name, known[name], flush=True)
        write_result(
            "block_time", {"models": {name: known[name] for name in CALLS if name in known}}
        )


@torch.no_grad()
def measured(name: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of a block of each list that a step runs through."""
    load = os.getloadavg()[0]
    model = built(*MODELS[name])
    call = in_bf16(CALLS[name](Numbers(0)))
    spec = discover(model, call)
    given = dict(first_calls(model, call, describe(model, spec).blocks))
    small = copy.deepcopy(model)
    fewbit.quantize(small, "rtn:w8a8", spec=spec, progress=False)
    kinds = {}
    for block, (args, kwargs) in given.items():
        arms = {"bf16": model, "rtn w8a8": small}
        turns = {
            arm: Turn([partial(one.get_submodule(block), *args, **kwargs)], nullcontext)
            for arm, one in arms.items()
        }
        take_turns(turns, 1, _nothing)  # the first call makes layouts
        times = take_turns(turns, rounds, _nothing)
        kinds[block.rpartition(".")[0]] = {arm: round(one.median, 1) for arm, one in times.items()}
    return {"kinds": kinds, "load": [load, os.getloadavg()[0]], "commit": commit()}


def built(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    """With one block of each kind and random weights."""
    cls = getattr(diffusers, class_name)
    depth = MORE_THAN_ONE.get(class_name, 1)
    shallow = {key: depth for key in DEPTHS if key in cls.__init__.__wrapped__.__annotations__}
    with init_empty_weights(include_buffers=False):
        model: nn.Module = cls(**{**config, **shallow})
    random = torch.Generator().manual_seed(0)
    for path, empty in list(model.named_parameters()):
        spread = empty[0].numel() ** -0.5 if empty.dim() > 1 else 0.02
        values = torch.empty(empty.shape, dtype=torch.bfloat16).normal_(
            std=spread, generator=random
        )
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Parameter(values, requires_grad=False))
    return model.eval()


def first_calls(
    model: nn.Module, call: Arguments, blocks: tuple[str, ...]
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """What the first block of each list receives."""
    firsts = {name.rpartition(".")[0]: name for name in reversed(blocks)}
    with _listening(model, list(firsts.values())) as heard:
        model(**call)
    yield from heard.items()


@contextmanager
def _listening(model: nn.Module, names: list[str]) -> Iterator[dict[str, tuple[Any, Any]]]:
    heard: dict[str, tuple[Any, Any]] = {}

    def note(name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        heard[name] = args, kwargs

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name in names
    ]
    yield heard
    for hook in hooks:
        hook.remove()


def in_bf16(call: Arguments) -> Arguments:
    """Places stay as they are, as pipelines give them."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.bfloat16() if tensor.is_floating_point() else tensor

    return {key: one if key in PLACES else map_tensors(one, cast) for key, one in call.items()}


def _nothing() -> None:
    """A processor has finished when it returns."""


if __name__ == "__main__":
    main()
