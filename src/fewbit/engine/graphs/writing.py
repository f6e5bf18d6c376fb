"""A quantized network written as a graph of one call: its layers stand aside for a while."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fewbit.calibration.flat import Flat
from fewbit.calibration.tree import tensors
from fewbit.engine.graphs import onnx, openvino
from fewbit.engine.graphs.layer import graph_layer, unfit
from fewbit.errors import BadArgument, BadModel
from fewbit.files import replacing
from fewbit.layers.adapters import refuse_adapted
from fewbit.layers.attention import quantized_attentions
from fewbit.layers.bind import bind, unbind
from fewbit.layers.linear import quantized_layers
from fewbit.layers.offload import refuse_empty
from fewbit.models.hidden import is_shown
from fewbit.models.timestep import TIMES
from fewbit.registry import missing

GRAPHS: Mapping[str, ModuleType] = {one.NAME: one for one in (onnx, openvino)}


def write_graph(
    network: nn.Module, call: Mapping[str, Any] | None, path: Path, name: str
) -> list[Path]:
    """The graph takes the tensors of the call, by their paths in it, in the same shapes. Returned
    are the files, for weights may lie beside the graph."""
    graph = GRAPHS[name]
    if path.suffix != graph.SUFFIX:
        raise BadArgument(f"{path} must end in {graph.SUFFIX}, as files of {name} do")
    absent = missing(graph.PACKAGES)
    if absent is not None:
        raise BadArgument(f"{name} cannot be written: {absent}")
    call = _checked(call, name)
    modules = _modules(network, graph)
    inputs = tensors(call)
    with _standing_in(network, modules), _quietly(), replacing(path) as aside:
        graph.write(Flat(network, call, [*inputs]).eval(), inputs, aside)
        files = [path.parent / made.name for made in aside.parent.iterdir()]
        for beside in set(files) - {path}:  # the graph takes its name when its weights are there
            os.replace(aside.parent / beside.name, beside)
    return files


def _checked(call: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    if call is None:
        raise BadArgument(
            f"{name} is a graph of one call, and a network alone does not say how it is called; "
            "give its pipeline, or call=, the keyword arguments of one forward"
        )
    fixed = next((time for time in TIMES if time in call and not tensors(call[time])), None)
    if fixed is not None:
        raise BadArgument(f"{fixed} must be a tensor in call, for a number would never change")
    return call


def _modules(network: nn.Module, graph: ModuleType) -> dict[str, nn.Module]:
    """What stands in for each quantized layer."""
    refuse_adapted(network, "exported")
    refuse_empty(network, "exporting")
    attention = next(iter(quantized_attentions(network)), None)
    if attention is not None:
        raise BadModel(f"{attention} rounds the operands of its products, {unfit(graph.NAME)}")
    made = {}
    for name, layer in quantized_layers(network).items():
        if is_shown(network, name):
            raise BadModel(f"{name} is no linear layer of the model, {unfit(graph.NAME)}")
        if layer.weight.dtype != torch.float32:
            raise BadModel(f"{name} is of {layer.weight.dtype}; allowed: model.to(torch.float32)")
        made[name] = graph.module(name, graph_layer(name, layer, graph.NAME))
    return made


@contextmanager
def _quietly() -> Iterator[None]:
    """What traces warns of each shape that becomes a constant, which is what a graph is."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _standing_in(network: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    unbind(network)
    layers = {name: network.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            network.set_submodule(name, module)
        yield
    finally:
        for name, layer in layers.items():
            network.set_submodule(name, layer)
        bind(network)
