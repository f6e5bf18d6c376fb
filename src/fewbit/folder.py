"""Folders of quantized models: what lies in one, its skeleton without weights, and back to life."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewbit.blueprint import quantized_layers
from fewbit.checkpoint import (
    Manifest,
    check_architecture,
    check_digest,
    check_values,
    manifest_of,
    prepare,
)
from fewbit.errors import BadModel, BrokenFile
from fewbit.header import Header, read_header
from fewbit.models.original_dit import DiTConfig, OriginalDiT

CONFIG, PIPELINE_INDEX, WEIGHTS = "config.json", "model_index.json", "model.safetensors"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"


def save_module(model: nn.Module, folder: Path) -> None:
    """A quantized module that is not diffusers': `config.json` and one file of tensors."""
    architecture = architecture_of(model)
    manifest, tensors = manifest_of(model, architecture)
    content = {"_class_name": type(model).__name__, **architecture}
    (folder / CONFIG).write_text(json.dumps(content, indent=1))
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / WEIGHTS, {"format": "pt", **manifest.to_metadata()})


def load_module(folder: Path, model: nn.Module | None) -> nn.Module:
    """The opposite; `model` is the full-precision skeleton where fewbit cannot build one."""
    headers = headers_of(folder)
    manifest = Manifest.from_headers(headers)
    model = model or skeleton(folder)
    check_architecture(manifest, architecture_of(model))
    prepare(model, manifest, headers)
    tensors = _read_tensors(headers, manifest)
    named = {**tensors, **{alias: tensors[name] for alias, name in manifest.aliases.items()}}
    for name, tensor in named.items():
        put(model, name, tensor)
    check_all_values(model)
    model.fewbit = manifest.provenance  # type: ignore[assignment]
    return model.eval()


def skeleton(folder: Path) -> nn.Module:
    """The full-precision model of a folder without its weights, on the meta device."""
    config = read_config(folder)
    name = config.get("_class_name")
    if name == OriginalDiT.__name__:
        public = {key: value for key, value in config.items() if not key.startswith("_")}
        with torch.device("meta"):
            return OriginalDiT(_original_config(folder, public))
    cls = diffusers_class(str(name))
    if cls is None:
        raise BadModel(
            f"{folder} holds a {name}, a class that fewbit cannot build; "
            "give one with its original weights or none: fewbit.load(path, model=...)"
        )
    from accelerate import init_empty_weights

    with init_empty_weights():
        model: nn.Module = cls.from_config(config)
    return model


def diffusers_class(name: str) -> Any:
    """The diffusers model class of that name, or None."""
    try:
        return getattr(importlib.import_module("diffusers"), name, None)
    except (ImportError, AttributeError, RuntimeError):
        return None


def headers_of(folder: Path) -> list[Header]:
    """The headers of all weight files of a model folder, its index followed."""
    for name in (WEIGHTS, DIFFUSERS_WEIGHTS):
        if (folder / name).exists():
            return [read_header(folder / name)]
    index = folder / f"{DIFFUSERS_WEIGHTS}.index.json"
    if not index.exists():
        raise BrokenFile(f"{folder} holds no weights: neither {WEIGHTS} nor {DIFFUSERS_WEIGHTS}")
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(v, str) for v in shards.values()):
        raise BrokenFile(f"{index} has no valid weight_map")
    return [read_header(shard_path(folder, name)) for name in sorted(set(shards.values()))]


def shard_path(folder: Path, name: str) -> Path:
    """A shard lies in the folder itself, whatever an index says."""
    if Path(name).name != name or name in (".", ".."):
        raise BrokenFile(f"the index of {folder} names the file {name!r} outside the folder")
    if not (folder / name).is_file():
        raise BrokenFile(f"{folder} lacks the file {name} that its index names")
    return folder / name


def read_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / CONFIG)


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise BrokenFile(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BrokenFile(f"{path} is not valid JSON: {str(error)[:100]}") from None
    if not isinstance(content, dict):
        raise BrokenFile(f"{path} is not a JSON table")
    return content


def architecture_of(model: nn.Module) -> dict[str, Any]:
    """What `config.json` says of the model, as far as the model itself can tell."""
    config = getattr(model, "config", None)
    if is_dataclass(config) and not isinstance(config, type):
        return asdict(config)
    return dict(config) if isinstance(config, Mapping) else {}


def check_all_values(model: nn.Module) -> None:
    for name, layer in quantized_layers(model).items():
        check_values(name, layer)


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Make `tensor` itself the parameter or buffer of that name."""
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def _original_config(folder: Path, public: dict[str, Any]) -> DiTConfig:
    try:
        return DiTConfig(**public)
    except TypeError as error:
        raise BrokenFile(f"{folder / CONFIG} does not describe an OriginalDiT: {error}") from None


def _read_tensors(headers: list[Header], manifest: Manifest) -> dict[str, Tensor]:
    tensors = {}
    for header in headers:
        with safe_open(header.path, framework="pt") as file:
            for name in header.tensors:
                tensors[name] = file.get_tensor(name)
                check_digest(name, tensors[name], manifest)
    return tensors
