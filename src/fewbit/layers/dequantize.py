"""Back to nn.Linear: the weights a quantized layer stands for, in full precision."""

from __future__ import annotations

from torch import nn

from fewbit.activations.clock import remove_clock
from fewbit.layers.attention import quantized_attentions, restore_attention
from fewbit.layers.bind import unbind
from fewbit.layers.linear import QLinear, quantized_layers


def dequantize_layers(model: nn.Module) -> None:
    """Every quantized layer becomes a linear again; nothing is rounded at run time any more.

    Tensors that were stored once become separate again: whoever trains the model moves one of them
    and not the others.
    """
    unbind(model)
    for name, layer in quantized_layers(model).items():
        model.set_submodule(name, to_linear(layer))
    for name in quantized_attentions(model):
        restore_attention(model.get_submodule(name))
    remove_clock(model)
    met: set[int] = set()
    for parameter in model.parameters():
        if parameter.data_ptr() in met:
            parameter.data = parameter.data.clone()
        met.add(parameter.data_ptr())
    del model.fewbit


def to_linear(layer: QLinear) -> nn.Linear:
    weight = layer.effective_weight()
    linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    linear.register_parameter("bias", layer.bias)
    return linear
