"""The networks of a pipeline that can be quantized, by the names that the pipeline gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fewbit.errors import BadArgument, BadModel
from fewbit.models.guess import blocks_of

DENOISERS = ("transformer", "transformer_2")  # the second takes over where little noise is left


@dataclass(frozen=True)
class Component:
    """One network. A module that is no part of a pipeline has no name."""

    name: str
    network: nn.Module

    @property
    def denoises(self) -> bool:
        return denoises(self.name)

    def inside(self, layer: str) -> str:
        """The name of one of its layers, said of the whole pipeline."""
        return f"{self.name}.{layer}" if self.name else layer


def denoises(name: str) -> bool:
    """Whether the network of that name runs at each step, and does not encode what is asked."""
    return name in ("", *DENOISERS)


def components_of(model: object, asked: Sequence[str] | None = None) -> tuple[Component, ...]:
    """The networks called `asked`, else those that denoise, in the order in which they run."""
    if isinstance(model, nn.Module):
        if asked is not None:
            raise BadArgument(
                f"{type(model).__name__} is a network alone; components are parts of a pipeline, "
                "leave components out"
            )
        return (Component("", model),)
    names = _denoisers(model) if asked is None else _checked(model, asked)
    return tuple(Component(name, getattr(model, name)) for name in names)


def transformer_of(model: object) -> nn.Module:
    """The first network that denoises inside a pipeline, or the module itself."""
    return components_of(model)[0].network


def quantized_components(model: object) -> tuple[Component, ...]:
    """Those networks of a pipeline, or the module itself, that fewbit has quantized."""
    if isinstance(model, nn.Module):
        found = [Component("", model)]
    else:
        found = [Component(name, part) for name, part in networks_of(model).items()]
    return tuple(one for one in found if hasattr(one.network, "fewbit"))


def networks_of(pipe: object) -> dict[str, nn.Module]:
    """Every part of a pipeline that has weights, in the order in which they run."""
    networks = {name: part for name, part in _parts(pipe).items() if isinstance(part, nn.Module)}
    order = (getattr(pipe, "model_cpu_offload_seq", None) or "").split("->")
    ordered = [name for name in order if name in networks]
    return {name: networks[name] for name in dict.fromkeys([*ordered, *networks])}


def _denoisers(pipe: object) -> list[str]:
    there = [name for name in DENOISERS if isinstance(getattr(pipe, name, None), nn.Module)]
    if not there:
        raise BadModel(
            f"{type(pipe).__name__} is not a model fewbit can read; give a diffusers pipeline "
            "with a transformer, a diffusers transformer, or a torch module with a ModelSpec"
        )
    return there


def _checked(pipe: object, asked: Sequence[str]) -> list[str]:
    if isinstance(asked, str) or not isinstance(asked, Sequence) or not asked:
        raise BadArgument(
            f'components must be names in a list, such as ("transformer",), got {asked!r:.80}'
        )
    networks = networks_of(pipe)
    for name in asked:
        _refuse_no_network(pipe, name, networks)
    return [name for name in networks if name in asked]


def _refuse_no_network(pipe: object, name: str, networks: Mapping[str, nn.Module]) -> None:
    kind, allowed = type(pipe).__name__, ", ".join(networks)
    if name not in _parts(pipe):
        raise BadArgument(f"{kind} has no component {name!r:.80}; its networks: {allowed}")
    if name not in networks:
        raise BadArgument(
            f"the component {name} of {kind} is no network but {_parts(pipe)[name]!r:.80}; its "
            f"networks: {allowed}"
        )
    if not blocks_of(networks[name]):
        raise BadModel(
            f"the component {name} of {kind}, {type(networks[name]).__name__}, has no list of "
            "blocks that attend; leave it out of components"
        )


def _parts(pipe: object) -> Mapping[str, Any]:
    return getattr(pipe, "components", None) or vars(pipe)
