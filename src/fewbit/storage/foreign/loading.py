"""A foreign file brought into a model: every layer becomes a QLinear, packed as it is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from fewbit.errors import BadModel, BrokenFile, FewbitError
from fewbit.layers.bind import bind
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage
from fewbit.models import describe
from fewbit.storage.blueprint import by_name
from fewbit.storage.folder import put
from fewbit.storage.foreign import comfy, gguf
from fewbit.storage.foreign.contents import Contents, ForeignLayer
from fewbit.storage.foreign.names import WEIGHT, named_as
from fewbit.storage.header import read_header
from fewbit.storage.manifest import check_numbers
from fewbit.storage.provenance import Provenance, mark
from fewbit.version import __version__

DIALECTS = tuple(one.DIALECT for one in (comfy, gguf))  # in the place of a recipe's method
SHOWN = 3


def load_foreign(path: Path, model: nn.Module) -> nn.Module:
    """`model`, a full-precision instance or an empty one, with the contents of the file."""
    if hasattr(model, "fewbit"):
        raise BadModel("the model given is quantized already; give one in full precision")
    contents = named_as(model, dialect_of(path).read(path))
    layers, tensors = _sorted(model, contents)
    if not layers:
        raise BrokenFile(f"{path} holds no packed layer")
    _check(path, layers)
    stages = _stages(model, layers)
    modules = by_name(model)
    for name, tensor in tensors.items():
        put(modules, name, tensor)
    for name, layer in layers.items():
        linear: Any = modules[name]
        built = QLinear(layer.weight, linear.bias, stages[name])
        built.model_dtype = linear.weight.dtype
        parent, _, own = name.rpartition(".")
        setattr(modules[parent], own, built)
    mark(model, Provenance(_recipe(contents), 0, "unknown", __version__))
    bind(model)
    return model.eval()


def dialect_of(path: Path) -> ModuleType:
    """The module that reads the file."""
    if gguf.is_gguf(path):
        return gguf
    if comfy.is_comfy(read_header(path)):
        return comfy
    raise BrokenFile(
        f"{path} holds no quantized model: it is neither GGUF, nor safetensors with weights in FP8 "
        "or with the markers of ComfyUI"
    )


def _sorted(
    model: nn.Module, contents: Contents
) -> tuple[dict[str, ForeignLayer], dict[str, Tensor]]:
    """What becomes a layer, and what a parameter or a buffer; refused if one is missing or left
    over. A packed matrix that is no linear of the model is unpacked."""
    needed = model.state_dict()
    linears = {name for name, one in model.named_modules() if isinstance(one, nn.Linear)}
    layers = {name: one for name, one in contents.layers.items() if name in linears}
    unpacked = {
        f"{name}{WEIGHT}": one for name, one in contents.layers.items() if name not in linears
    }
    stored = {f"{name}{WEIGHT}" for name in layers} | unpacked.keys() | contents.tensors.keys()
    where, cls = contents.path, type(model).__name__
    _refuse(stored - needed.keys(), f"{where} holds {{}}, which {cls} has not")
    _refuse(needed.keys() - stored, f"{where} lacks {{}}, which {cls} has")
    layers = {
        name: _fitting(contents, name, one, needed[f"{name}{WEIGHT}"])
        for name, one in layers.items()
    }
    plain = {**contents.tensors, **{name: one.values() for name, one in unpacked.items()}}
    return layers, {n: _cast(contents, n, tensor, needed[n]) for n, tensor in plain.items()}


def _fitting(contents: Contents, name: str, layer: ForeignLayer, linear: Tensor) -> ForeignLayer:
    layer = layer.of_rows(len(linear))
    if layer.weight.shape != tuple(linear.shape):
        raise _other_shape(contents, name, layer.weight.shape, linear)
    return layer


def _cast(contents: Contents, name: str, tensor: Tensor, place: Tensor) -> Tensor:
    """In the dtype of the model, which may have no numbers yet."""
    if tensor.shape != place.shape:
        raise _other_shape(contents, name, tensor.shape, place)
    if tensor.dtype.is_floating_point != place.dtype.is_floating_point:
        raise BrokenFile(f"{contents.path}: {name} is {tensor.dtype}, expected {place.dtype}")
    device = "cpu" if place.is_meta else place.device
    return tensor.to(device, place.dtype)


def _other_shape(contents: Contents, name: str, found: Any, place: Tensor) -> BrokenFile:
    return BrokenFile(
        f"{contents.path}: {name} is {list(found)}, the model has {list(place.shape)}"
    )


def _refuse(names: set[str], sentence: str) -> None:
    if names:
        shown = ", ".join(sorted(names)[:SHOWN])
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise BrokenFile(sentence.format(f"{shown[:300]}{more}"))


def _check(path: Path, layers: Mapping[str, ForeignLayer]) -> None:
    """Numbers that no writer would write."""
    for name, layer in layers.items():
        try:
            check_numbers(name, layer.weight)
        except FewbitError as error:
            raise BrokenFile(f"{path}: {error}") from None


def _stages(model: nn.Module, layers: Mapping[str, ForeignLayer]) -> dict[str, InputStage | None]:
    """Layers that read one tensor and do the same to it share a stage."""
    stages: dict[str, InputStage | None] = {}
    for group in _groups(model):
        made: dict[Any, InputStage | None] = {}
        for name in filter(layers.__contains__, group):
            one = layers[name]
            if one.input not in made:
                made[one.input] = one.input.stage(one.weight.columns)
            stages[name] = made[one.input]
    alone = (name for name in layers if name not in stages)
    return stages | {name: layers[name].input.stage(layers[name].weight.columns) for name in alone}


def _groups(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """The layers that read one tensor, as far as the class is known."""
    try:
        structure = describe(model)
    except BadModel:
        return
    for block in range(len(structure.blocks)):
        yield from structure.shared_inputs(block)


def _recipe(contents: Contents) -> dict[str, Any]:
    """What stands for one: most layers are of this format."""
    specs = [str(layer.weight.spec) for layer in contents.layers.values()]
    return {"method": contents.dialect, "bits": max(specs, key=specs.count), "settings": {}}
