"""What makes a model, or all that a pipeline draws with, the same as another."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from itertools import chain
from typing import Any

from torch import nn

from fewbit.storage.fingerprint import fingerprint
from fewbit.storage.folder import architecture_of

_ADDRESS = re.compile(r"0x[0-9a-f]+")


def model_sha256(model: nn.Module, without: Collection[str] = ()) -> str:
    """Over all parameters and buffers but some, the configuration, and what modules say of
    themselves; not over where the model lay."""
    said = {
        "config": {k: v for k, v in architecture_of(model).items() if not k.startswith("_")},
        "modules": _ADDRESS.sub("", repr(model)),
    }
    parameters = model.named_parameters(remove_duplicate=False)
    tensors = chain(parameters, model.named_buffers(remove_duplicate=False))
    kept = {name: tensor for name, tensor in tensors if name not in without}
    return fingerprint(json.dumps(said, sort_keys=True, default=str), kept)


def pipeline_sha256(pipe: Any, without: nn.Module) -> str:
    """Over all components of a diffusers pipeline but one of its networks."""
    parts = {name: _of_part(part) for name, part in pipe.components.items() if part is not without}
    said = {"class": type(pipe).__name__, "config": _named(pipe.config), "parts": parts}
    return fingerprint(json.dumps(said, sort_keys=True, default=str), {})


def _of_part(part: Any) -> object:
    if isinstance(part, nn.Module):
        return model_sha256(part)
    if hasattr(part, "get_vocab"):
        return type(part).__name__, part.get_vocab()
    return type(part).__name__, _named(getattr(part, "config", {}))


def _named(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}
