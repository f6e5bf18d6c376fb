"""Original DiT checkpoints: everything about the model but its heads is told by its tensors."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fewbit.errors import BadArgument, BadModel, BrokenFile
from fewbit.models.families.original_dit import DiTConfig, OriginalDiT

_HEADS_OF_WIDTH = {384: 6, 768: 12, 1024: 16, 1152: 16}
_SHOWN = 3


def load_original(path: str | Path, *, heads: int | None = None) -> OriginalDiT:
    """The model in a `.pt`, `.pth` or `.safetensors` file, in the file's own precision.

    A training checkpoint gives its averaged weights. `heads` is needed for unpublished widths only.
    """
    path = Path(path)
    tensors = _read(path)
    config = _infer(path, tensors, heads)
    with torch.device("meta"):
        model = OriginalDiT(config)
    _refuse_misfits(path, tensors, model.state_dict())
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _read(path: Path) -> dict[str, Tensor]:
    readers = {".pt": _read_pickle, ".pth": _read_pickle, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise BrokenFile(
            f"{path} has the ending {path.suffix or '(none)'!r}; a checkpoint ends in one of: "
            f"{', '.join(readers)}"
        )
    if not path.is_file():
        raise BrokenFile(f"{path} is not a file; give an existing checkpoint")
    return readers[path.suffix](path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BrokenFile(
            f"{path} is unreadable, truncated or not a safetensors file ({error})"
        ) from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        # Training checkpoints carry their command line; a Namespace only holds attributes.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        wanted = re.search(r"GLOBAL:? ([\w.]+)", str(error))
        if wanted is None:
            raise BrokenFile(f"{path} is truncated or not a torch checkpoint") from None
        raise BrokenFile(
            f"{path} wants to run code when read ({wanted[1]}); only plain tensors are accepted"
        ) from None
    except Exception as error:  # garbage can make the unpickler fail in any way
        raise BrokenFile(
            f"{path} is truncated or not a torch checkpoint ({type(error).__name__})"
        ) from None
    return _unwrap(path, content)


def _unwrap(path: Path, content: object) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for key in ("ema", "model"):
            if isinstance(content.get(key), Mapping):
                return _unwrap(path, content[key])
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return dict(content)
    raise BrokenFile(
        f"{path} holds no table of tensors, got {type(content).__name__}; allowed: "
        "name -> tensor, alone or under 'ema' or 'model'"
    )


def _infer(path: Path, tensors: Mapping[str, Tensor], heads: int | None) -> DiTConfig:
    telling = {
        "x_embedder.proj.weight": 4,
        "pos_embed": 3,
        "y_embedder.embedding_table.weight": 2,
        "blocks.0.mlp.fc1.weight": 2,
        "final_layer.linear.weight": 2,
    }
    _refuse_missing(path, telling.keys() - tensors.keys())
    for name, dimensions in telling.items():
        tensor = tensors[name]
        if tensor.ndim != dimensions or tensor.numel() == 0:
            raise _wrong_shape(path, name, tensor, f"{dimensions} dimensions, none empty")
    patch, positions, labels, fc1, final = (tensors[name] for name in telling)
    width, in_channels, patch_size, _ = patch.shape
    side = math.isqrt(positions.shape[1])
    if side**2 != positions.shape[1] or width % 4:
        raise _wrong_shape(path, "pos_embed", positions, "[1, side*side, a multiple of 4]")
    sigma = final.shape[0] / (patch_size**2 * in_channels)
    if sigma not in (1, 2):
        rows = patch_size**2 * in_channels
        raise _wrong_shape(path, "final_layer.linear.weight", final, f"{rows} or {2 * rows} rows")
    return DiTConfig(
        input_size=side * patch_size,
        patch_size=patch_size,
        in_channels=in_channels,
        width=width,
        mlp_width=fc1.shape[0],
        depth=len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        heads=_heads(path, width, heads),
        classes=labels.shape[0],
        learn_sigma=sigma == 2,
    )


def _heads(path: Path, width: int, heads: int | None) -> int:
    heads = _HEADS_OF_WIDTH.get(width) if heads is None else heads
    if heads is None:
        known = ", ".join(str(known) for known in _HEADS_OF_WIDTH)
        raise BadArgument(
            f"{path} has width {width}, whose number of heads is not known; give heads= "
            f"(known for widths {known})"
        )
    if heads < 1 or width % heads:
        raise BadArgument(f"heads must divide the width {width} of {path}, got {heads}")
    return heads


def _refuse_misfits(
    path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    _refuse_missing(path, expected.keys() - tensors.keys())
    extra = tensors.keys() - expected.keys()
    if extra:
        raise BadModel(f"{path} holds tensors no original DiT has: {_some(extra)}")
    for name, wanted in expected.items():
        if tensors[name].shape != wanted.shape:
            raise _wrong_shape(path, name, tensors[name], list(wanted.shape))
        if not tensors[name].is_floating_point():
            raise BadModel(f"{path}: {name} is {tensors[name].dtype}; allowed: floating point")


def _refuse_missing(path: Path, missing: Collection[str]) -> None:
    if missing:
        raise BadModel(f"{path} is no original DiT, it lacks: {_some(missing)}")


def _wrong_shape(path: Path, name: str, got: Tensor, allowed: object) -> BadModel:
    return BadModel(f"{path}: {name} has shape {list(got.shape)}; allowed: {allowed}")


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
