"""Adapters of Flux beside packed layers.

Its loader widens adapters that read fewer channels than their layer, and looks into the state dict
for the layer's weight, which of a packed layer is not there; those adapters are taken as they are.
"""

from __future__ import annotations

from typing import Any

from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin
from torch import Tensor, nn

from fewbit.layers.linear import quantized_layers

_widen: Any = FluxLoraLoaderMixin._maybe_expand_lora_state_dict.__func__


def _widen_the_others(
    cls: Any, transformer: nn.Module, lora_state_dict: dict[str, Tensor]
) -> dict[str, Tensor]:
    packed = {name.removesuffix(".base_layer") for name in quantized_layers(transformer)}
    ours = {
        key: tensor
        for key, tensor in lora_state_dict.items()
        if key.removeprefix(f"{cls.transformer_name}.").partition(".lora_")[0] in packed
    }
    others = {key: tensor for key, tensor in lora_state_dict.items() if key not in ours}
    return {**_widen(cls, transformer, others), **ours}


FluxLoraLoaderMixin._maybe_expand_lora_state_dict = classmethod(_widen_the_others)
