"""Back to nn.Linear: the weights a quantized layer stands for, in full precision."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fewbit.activations.clock import remove_clock
from fewbit.errors import BadModel
from fewbit.layers.attention import quantized_attentions, restore_attention
from fewbit.layers.bind import unbind
from fewbit.layers.linear import QLinear, quantized_layers
from fewbit.layers.offload import refuse_empty
from fewbit.models.hidden import hide
from fewbit.models.own_forward import is_wrapped


def dequantize_layers(model: nn.Module) -> None:
    """Every quantized layer becomes a linear again; nothing is rounded at run time any more.

    Tensors that were stored once become separate again: whoever trains the model moves one of them
    and not the others.
    """
    refuse_empty(model, "dequantizing")
    attentions = {name: model.get_submodule(name) for name in quantized_attentions(model)}
    _refuse_wrapped(attentions)
    unbind(model)
    for name, layer in quantized_layers(model).items():
        model.set_submodule(name, to_linear(layer))
    hide(model)
    for attention in attentions.values():
        restore_attention(attention)
    remove_clock(model)
    met: set[int] = set()
    for parameter in model.parameters():
        if parameter.data_ptr() in met:
            parameter.data = parameter.data.clone()
        met.add(parameter.data_ptr())
    del model.fewbit


def _refuse_wrapped(attentions: Mapping[str, nn.Module]) -> None:
    """Whatever was put there calls the forward that asks for the quantized matmuls."""
    for name, module in attentions.items():
        if is_wrapped(module):
            raise BadModel(
                f"{name} has a forward of its own, put there by hooks or by hand; allowed: take it "
                "away before dequantizing and put it back afterwards"
            )


def to_linear(layer: QLinear) -> nn.Linear:
    weight = layer.effective_weight()
    linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    linear.register_parameter("bias", layer.bias)
    return linear
