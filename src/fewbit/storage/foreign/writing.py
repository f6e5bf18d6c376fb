"""A quantized model as a file of another runtime, each layer as it is stored or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from fewbit.errors import BadArgument, BadModel
from fewbit.layers.adapters import refuse_adapted
from fewbit.layers.attention import quantized_attentions
from fewbit.layers.linear import QLinear, quantized_layers
from fewbit.layers.offload import refuse_empty
from fewbit.models.hidden import is_shown
from fewbit.storage.foreign import comfy, gguf
from fewbit.storage.foreign.contents import ForeignLayer, Input
from fewbit.storage.foreign.target import Target
from fewbit.transforms.regular_hadamard import RegularHadamard

TARGETS: Mapping[str, Target] = {one.name: one for one in (*comfy.TARGETS, *gguf.TARGETS)}


def write_foreign(model: nn.Module, path: Path, name: str) -> None:
    """The file has the names and the other tensors of the model as they are."""
    target = TARGETS[name]
    if path.suffix != target.suffix:
        raise BadArgument(f"{path} must end in {target.suffix}, as files of {name} do")
    refuse_adapted(model, "exported")
    refuse_empty(model, "exporting")
    attentions = next(iter(quantized_attentions(model)), None)
    if attentions is not None:
        raise BadModel(f"{attentions} rounds the operands of its products, {_unfit(name)}")
    packed = quantized_layers(model)
    layers = {layer: _foreign(model, layer, one, target) for layer, one in packed.items()}
    inside = tuple(f"{layer}." for layer in packed)
    tensors = {n: t for n, t in model.state_dict().items() if not n.startswith(inside)}
    biases = {f"{layer}.bias": one.bias for layer, one in packed.items() if one.bias is not None}
    target.write(path, type(model).__name__, layers, {**tensors, **biases})


def _foreign(model: nn.Module, name: str, layer: QLinear, target: Target) -> ForeignLayer:
    made = None if is_shown(model, name) else as_foreign(layer)
    if made is None or not target.holds(made):
        stage = "" if layer.stage is None else f" with the input {layer.stage}"
        raise BadModel(f"{name} is stored as {layer.spec}{stage}, {_unfit(target.name)}")
    return made


def as_foreign(layer: QLinear) -> ForeignLayer | None:
    """The layer as its weight and what its input goes through; None if there is more to it."""
    if layer.stage is None:
        return ForeignLayer(layer.packed_weight)
    transform, activation = layer.stage.transform, layer.stage.activation
    rotation = transform if isinstance(transform, RegularHadamard) else None
    if layer.stage.principal is not None or rotation is not transform:
        return None
    spec = layer.activation
    if activation is not None and (spec is None or activation.config()["kind"] != "dynamic"):
        return None
    block = None if rotation is None else rotation.block
    return ForeignLayer(layer.packed_weight, Input(block, spec))


def _unfit(name: str) -> str:
    return (
        f"which {name} has no place for; the recipe that makes such layers: portable:{name}, as in "
        f"fewbit.quantize(pipe, 'portable', bits='{name}')"
    )
