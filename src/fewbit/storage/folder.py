"""Folders of quantized models: writing one that is not diffusers', and back to life."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import BadModel, BrokenFile
from fewbit.layers.bind import bind
from fewbit.layers.linear import quantized_layers
from fewbit.models import denoises
from fewbit.models.families.original_dit import DiTConfig, OriginalDiT
from fewbit.storage.blueprint import by_name, stored_as_is
from fewbit.storage.bounds import (
    LARGEST_NUMBER,
    MOST_PARAMETERS,
    bounded_parameters,
    refuse_large_numbers,
    refuse_other_types,
)
from fewbit.storage.manifest import as_json, check_values, manifest_of
from fewbit.storage.provenance import mark
from fewbit.storage.reader import CONFIG, WEIGHTS, Artefact, class_named_in
from fewbit.storage.spec_file import stored_spec
from fewbit.storage.strict_json import read_table
from fewbit.storage.tensors import write_tensors


def save_module(model: nn.Module, folder: Path) -> None:
    """A quantized module that is not diffusers': `config.json` and one file of tensors."""
    manifest, tensors = manifest_of(model, architecture_of(model))
    config = {
        "_class_name": manifest.class_name,
        **manifest.architecture,
        "quantization_config": {**manifest.quantization_config(), **stored_spec(model)},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1))
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt", **manifest.to_metadata()})


def load_module(folder: Path, model: nn.Module | None = None) -> nn.Module:
    """The model of a folder, in the dtypes it was saved in; `model` is its full-precision
    skeleton where fewbit cannot build one."""
    artefact = Artefact.open(folder)
    with artefact.tensors() as tensors:
        if model is None:
            model = skeleton(folder, artefact.config, artefact)
        else:
            _refuse_other_model(model, artefact)
        artefact.prepare(model)
        modules = by_name(model)
        for stored, names in artefact.manifest.names().items():
            for name in names:
                put(modules, name, tensors[stored])
    _finish(model, artefact)
    return model.eval()


def fill_again(model: nn.Module, artefact: Artefact, derived: Mapping[str, Tensor]) -> None:
    """Checked tensors for a model that somebody else has filled: those of quantized layers as they
    are stored, or as they were `derived`, others in the dtypes that the model has now."""
    as_is, modules = stored_as_is(model), by_name(model)
    for name, tensor in derived.items():
        put(modules, name, tensor.to(model.get_buffer(name).device))
    now = model.state_dict()
    with artefact.tensors() as tensors:
        for stored, names in artefact.manifest.names().items():
            for name in names:
                dtype = tensors[stored].dtype if name in as_is else now[name].dtype
                put(modules, name, tensors[stored].to(now[name].device, dtype))
    _finish(model, artefact)


def _finish(model: nn.Module, artefact: Artefact) -> None:
    _follow_dtype(model)
    check_values(model)
    mark(model, artefact.manifest.provenance)
    bind(model)


def component_folders(pipeline: Path) -> dict[str, Path]:
    """The networks in a folder of a pipeline that denoise, and those that are quantized."""
    return {
        place.name: place
        for place in sorted(pipeline.iterdir())
        if (place / CONFIG).is_file() and (denoises(place.name) or is_quantized(place))
    }


def is_quantized(folder: Path) -> bool:
    """By us: others say so too. That a part of a pipeline is broken tells whoever loads it."""
    try:
        said = read_table(folder / CONFIG).get("quantization_config")
    except BrokenFile:
        return False
    return isinstance(said, Mapping) and said.get("quant_method") == "fewbit"


def holds_quantized(folder: Path) -> bool:
    """Whether fewbit has quantized the network of this folder, or one of this pipeline."""
    folders = folder, *(one for one in folder.iterdir() if one.is_dir())
    return any((one / CONFIG).is_file() and is_quantized(one) for one in folders)


def skeleton(
    folder: Path, config: Mapping[str, Any], artefact: Artefact | None = None
) -> nn.Module:
    """The full-precision model that a configuration describes, without weights; no larger than
    the artefact, if there is one, can fill."""
    where = str(folder / CONFIG)
    name = class_named_in(config)
    encoder = transformers_class(name) if "_class_name" not in config else None
    refuse_large_numbers(where, config if encoder is None else _without_rope(config))
    count, widest = (MOST_PARAMETERS, LARGEST_NUMBER) if artefact is None else artefact.extent()
    cls = OriginalDiT if name == OriginalDiT.__name__ else encoder or diffusers_class(name)
    if cls is None:
        raise BadModel(
            f"{folder} holds a {name!r:.80}, a class that fewbit cannot build; "
            "give one with its original weights or none: fewbit.load(path, like=...)"
        )
    if encoder is None:
        refuse_other_types(where, DiTConfig if cls is OriginalDiT else cls, config)
    try:
        with bounded_parameters(where, count, widest):
            if encoder is not None:
                return _of_transformers(cls, config)
            return _original(config) if cls is OriginalDiT else _of_diffusers(cls, config)
    except BrokenFile:
        raise
    except Exception as error:  # a forged configuration makes a constructor fail in any way
        raise BrokenFile(f"{where} describes no {name}: {error!r:.200}") from None


def diffusers_class(name: str) -> Any:
    """The diffusers model class of that name, or None."""
    return _class_of("diffusers", name)


def transformers_class(name: str) -> Any:
    """The transformers model class of that name, or None."""
    return _class_of("transformers", name)


def _class_of(library: str, name: str) -> Any:
    try:
        found = getattr(importlib.import_module(library), name, None)
    except (ImportError, RuntimeError):
        return None
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


def architecture_of(model: nn.Module) -> dict[str, Any]:
    """What `config.json` says of the model, as far as the model itself can tell."""
    config = getattr(model, "config", None)
    if is_dataclass(config) and not isinstance(config, type):
        return asdict(config)
    return dict(config) if isinstance(config, Mapping) else {}


def put(modules: Mapping[str, nn.Module], name: str, tensor: Tensor) -> None:
    """Make `tensor` itself the parameter or buffer of that name."""
    parent, _, leaf = name.rpartition(".")
    module = modules[parent]
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def _follow_dtype(model: nn.Module) -> None:
    """Layers without a bias have the dtype of most that was not quantized."""
    as_is = stored_as_is(model)
    kept = Counter(
        tensor.dtype
        for name, tensor in model.state_dict().items()
        if name not in as_is and tensor.is_floating_point()
    )
    for layer in quantized_layers(model).values():
        layer.model_dtype = max(kept, key=kept.__getitem__, default=torch.float32)


def _original(config: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return OriginalDiT(DiTConfig(**as_json(config)))


def _of_diffusers(cls: Any, config: Mapping[str, Any]) -> nn.Module:
    from accelerate import init_empty_weights

    with init_empty_weights():
        model: nn.Module = cls.from_config(config)
    return model


def _without_rope(value: Any) -> Any:
    """Periods of rotary embeddings are large and cost nothing."""
    if isinstance(value, Mapping):
        return {key: _without_rope(part) for key, part in value.items() if "rope" not in key}
    return value


def _of_transformers(cls: Any, config: Mapping[str, Any]) -> nn.Module:
    """Its tables of positions are no weights, and are computed."""
    from accelerate import init_empty_weights

    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    with init_empty_weights():
        model: nn.Module = cls(cls.config_class.from_dict(plain))
    return model


def _refuse_other_model(model: nn.Module, artefact: Artefact) -> None:
    expected = artefact.manifest
    if type(model).__name__ != expected.class_name:
        raise BadModel(
            f"{artefact.folder} holds a {expected.class_name}, not a {type(model).__name__}"
        )
    if as_json(architecture_of(model)) != expected.architecture:
        raise BadModel(f"the model given has another configuration than {artefact.folder}")
