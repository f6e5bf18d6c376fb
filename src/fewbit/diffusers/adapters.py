"""Adapters of diffusers' models beside packed layers: fused never, saved always."""

from __future__ import annotations

from functools import wraps
from typing import Any

from diffusers.loaders.peft import PeftAdapterMixin

from fewbit.layers.adapters import refuse_fusing
from fewbit.layers.linear import quantized_layers

_fuse: Any = PeftAdapterMixin.fuse_lora
_save: Any = PeftAdapterMixin.save_lora_adapter


@wraps(_fuse)
def _fuse_unless_packed(model: Any, *args: Any, **kwargs: Any) -> Any:
    """diffusers goes from layer to layer: those in full precision would be changed by the time a
    packed one refuses."""
    if quantized_layers(model):
        refuse_fusing()
    return _fuse(model, *args, **kwargs)


@wraps(_save)
def _save_of_packed(model: Any, *args: Any, **kwargs: Any) -> Any:
    """diffusers asks each model to cast itself first, be it to nothing, which it forbids those that
    it calls quantized."""
    if not quantized_layers(model):
        return _save(model, *args, **kwargs)
    model.is_quantized = False
    try:
        return _save(model, *args, **kwargs)
    finally:
        model.is_quantized = True


PeftAdapterMixin.fuse_lora = _fuse_unless_packed
PeftAdapterMixin.save_lora_adapter = _save_of_packed
