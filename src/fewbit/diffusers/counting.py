"""`num_parameters()` of a quantized model counts weights, as many as there were, and not codes."""

from __future__ import annotations

from functools import wraps
from typing import Any

from diffusers.models.modeling_utils import ModelMixin

from fewbit.layers.linear import quantized_layers

_count: Any = ModelMixin.num_parameters


@wraps(_count)
def _count_weights(
    model: Any, only_trainable: bool = False, exclude_embeddings: bool = False
) -> int:
    """diffusers counts the elements of parameters, which are bytes of packed codes, and scales."""
    counted: int = _count(model, only_trainable, exclude_embeddings)
    if only_trainable:  # nothing packed ever is
        return counted
    layers = quantized_layers(model).values()
    weights = sum(layer.out_features * layer.in_features for layer in layers)
    stored = {
        parameter
        for layer in layers
        for name, parameter in layer.named_parameters()
        if name != "bias"
    }
    return counted + weights - sum(parameter.numel() for parameter in stored)


ModelMixin.num_parameters = _count_weights
