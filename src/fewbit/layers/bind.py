"""The run time put in place as modules, so that a stock call has all the speed there is.

`bind` exchanges classes: known blocks become fused ones, attention, GELU and what reads only
timestep and label get quicker forwards. Each of them falls back to the forward it had, alone, when
it is derived, traced, listened to, adapted, offloaded or not on a CPU. A QLinear binds itself at
its first forward. `unbind` is the exact inverse.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from fewbit.errors import BadModel
from fewbit.layers.block import fused, is_known
from fewbit.layers.gelu import gelu_in_product, quick_gelu
from fewbit.layers.linear import QLinear, quantized_layers
from fewbit.layers.modulation import remember, remembering
from fewbit.layers.quick_attention import quick_attention
from fewbit.layers.swap import Answer, answer_of, swap, swap_back
from fewbit.models import Role, Structure, describe

EMBEDDERS = ("CombinedTimestepLabelEmbeddings",)  # of timestep and label, one in each block
ANSWERS: tuple[Answer, ...] = (fused, quick_attention, gelu_in_product, quick_gelu, remembering)


def bind(model: nn.Module, structure: Structure | None = None) -> None:
    """Give each known module of the model its quick forward; one that has it keeps it."""
    structure = _known_structure(model) if structure is None else structure
    bind_attention(model, structure)
    for module in list(model.modules()):
        answer = _answer_for(module)
        if answer is not None and answer_of(module) is None:
            swap(module, answer)
    conditioned = [m for m in _conditioned(model, structure) if answer_of(m) is None]
    remember(conditioned)


def bind_attention(model: nn.Module, structure: Structure | None) -> None:
    """Give attention modules the backend's attention; the model need not be quantized."""
    for name in () if structure is None else _attending(structure):
        if answer_of(model.get_submodule(name)) is None:
            swap(model.get_submodule(name), quick_attention)


def unbind(model: nn.Module) -> None:
    """Give all modules their own forwards back, and all layers their codes as they are stored."""
    for module in model.modules():
        if answer_of(module) in ANSWERS:
            swap_back(module)
    for layer in quantized_layers(model).values():
        layer.unbind()


def _answer_for(module: nn.Module) -> Answer | None:
    if type(module) is nn.GELU:
        return quick_gelu
    if type(module).__name__ == "GELU" and isinstance(getattr(module, "proj", None), QLinear):
        return gelu_in_product
    return fused if is_known(module) else None


def _attending(structure: Structure) -> Iterator[str]:
    """The modules that multiply queries with keys, without blocks that do so themselves."""
    for number, block in enumerate(structure.blocks):
        yield from (name for name in structure.attending(number) if name != block)


def _conditioned(model: nn.Module, structure: Structure | None) -> Iterator[nn.Module]:
    """The modules that read timestep and label only."""
    yield from (module for module in model.modules() if type(module).__name__ in EMBEDDERS)
    for layer in () if structure is None else structure.layers:
        if layer.role is Role.ADALN:
            yield model.get_submodule(layer.name)


def _known_structure(model: nn.Module) -> Structure | None:
    try:
        return describe(model)
    except BadModel:  # of a family without an adapter
        return None
