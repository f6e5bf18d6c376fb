"""save, load, inspect, dequantize: what a user calls beside quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fewbit.card import write_card
from fewbit.dequantize import dequantize_layers
from fewbit.errors import BadModel, BrokenFile
from fewbit.files import new_folder
from fewbit.folder import (
    CONFIG,
    PIPELINE_INDEX,
    diffusers_class,
    headers_of,
    load_module,
    read_config,
    save_module,
)
from fewbit.inspection import inspect
from fewbit.models import transformer_of
from fewbit.report import Report

__all__ = ["dequantize", "inspect", "load", "save"]


def save(
    model: Any, path: str | Path, *, report: Report | None = None, overwrite: bool = False
) -> None:
    """Write a quantized pipeline or module as a folder that `load` and diffusers read.

    Everything is written aside and takes its name when it is whole.
    """
    if not hasattr(transformer_of(model), "fewbit"):
        raise BadModel("the model is not quantized; call fewbit.quantize(model, recipe) first")
    with new_folder(Path(path), overwrite) as folder:
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(folder)
        else:
            save_module(model, folder)
        write_card(model, folder, report)


def load(path: str | Path, *, model: nn.Module | None = None) -> Any:
    """The pipeline or module that `save` wrote. A class that neither fewbit nor diffusers knows
    is given as `model`, a full-precision instance; its linears are replaced."""
    folder = Path(path)
    if (folder / PIPELINE_INDEX).exists():
        from diffusers import DiffusionPipeline

        headers_of(folder / "transformer")
        return DiffusionPipeline.from_pretrained(folder)
    if not (folder / CONFIG).exists():
        raise BrokenFile(f"{folder} is no folder of a quantized model: it has no {CONFIG}")
    cls = diffusers_class(str(read_config(folder).get("_class_name")))
    if cls is None or model is not None:
        return load_module(folder, model)
    headers_of(folder)
    return cls.from_pretrained(folder)


def dequantize(model: Any) -> None:
    """Turn every quantized layer back into a full-precision linear, in place."""
    transformer = transformer_of(model)
    if not hasattr(transformer, "fewbit"):
        raise BadModel("the model is not quantized; there is nothing to undo")
    if hasattr(transformer, "hf_quantizer"):
        transformer.dequantize()
    else:
        dequantize_layers(transformer)
    del transformer.fewbit
