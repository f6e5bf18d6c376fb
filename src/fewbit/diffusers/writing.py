"""The files of quantized models are written by us, whoever asks safetensors to write them.

`save_pretrained` asks a quantizer what to write and safetensors to write it, whose metadata come in
random order.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from types import ModuleType

import safetensors.torch
from torch import Tensor

from fewbit.diffusers.registration import when_imported
from fewbit.storage.manifest import KEY
from fewbit.storage.tensors import write_tensors

_save_file = safetensors.torch.save_file


def _save_sorted(
    tensors: dict[str, Tensor],
    filename: str | PathLike[str],
    metadata: dict[str, str] | None = None,
) -> None:
    if metadata is not None and KEY in metadata:
        write_tensors(Path(filename), tensors, metadata)
    else:
        _save_file(tensors, filename, metadata)


def _tell_transformers(models: ModuleType) -> None:
    """It has taken the function before, under a name of its own."""
    models.safe_save_file = _save_sorted  # type: ignore[attr-defined]


safetensors.torch.save_file = _save_sorted
when_imported("transformers.modeling_utils", _tell_transformers)
