"""What is measured: a network, what it is called with, and what its blocks and layers see."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewbit import demo
from fewbit.activations.clock import share_clock, tell_time
from fewbit.api import dequantize
from fewbit.bench.random_models import BLOCKS, CONFIGS, grown, inputs_for, one_block, told_apart
from fewbit.calibration import sample
from fewbit.calibration.tree import map_tensors
from fewbit.errors import BadModel, BrokenFile
from fewbit.layers.linear import quantized_layers
from fewbit.models import Layer, describe, transformer_of
from fewbit.pipelines.opening import open_model


@dataclass(frozen=True)
class Subject:
    """A network of random weights has one block, which `extended` repeats; others are whole."""

    name: str
    network: nn.Module  # full precision
    quantized: nn.Module | None  # where it was opened so
    inputs: dict[str, Any]
    repeats: int

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Those of the first block that are quantized."""
        return describe(self.network).quantizable(0)

    def extended(self, network: nn.Module, blocks: int) -> nn.Module:
        """With at least so many blocks, each of which can be called alone."""
        network = grown(network, blocks) if self.repeats > 1 else network
        share_clock(network)
        tell_time(network, self.inputs)
        return network

    def told_apart(self, network: nn.Module) -> nn.Module:
        """An extended network whose blocks are not equal, as those of trained ones."""
        return told_apart(network) if self.repeats > 1 else network

    def blocks(self, count: int) -> list[str]:
        """The first of an extended network, as far as they are of one kind."""
        names = describe(self.network).blocks
        if self.repeats > 1:
            stem = names[0].rpartition(".")[0]
            return [f"{stem}.{index}" for index in range(count)]
        kind = type(self.network.get_submodule(names[0]))
        alike = [n for n in names if type(self.network.get_submodule(n)) is kind]
        return alike[:count]


def open_subject(name: str, batch: int, device: torch.device) -> Subject:
    if name in CONFIGS:
        network = one_block(name).to(device)
        inputs = on(device, inputs_for(network, 2 * batch))
        return Subject(name, network, None, inputs, BLOCKS)
    model = _opened(name, device)
    network = transformer_of(model).eval()
    if isinstance(model, nn.Module):
        inputs = inputs_for(network, 2 * batch)
    else:
        inputs = next(sample(model, samples=2 * batch, seed=0).batches(2 * batch))
    quantized = None
    if quantized_layers(network):
        quantized, network = network, copy.deepcopy(network)
        dequantize(network)
    if not describe(network).quantizable(0):
        raise BadModel(f"the first block of {name} holds no layer that can be quantized")
    return Subject(name, nn.Module.float(network), quantized, on(device, inputs), repeats=1)


def _opened(name: str, device: torch.device) -> Any:
    try:
        return open_model(name, device=device)
    except BrokenFile as error:
        if "does not exist" not in str(error):
            raise
        known = ", ".join((*CONFIGS, *demo.names()))
        raise BrokenFile(
            f"{name} is no model to measure; allowed: {known}, a folder or file, a hub id"
        ) from None


def on(device: torch.device, inputs: dict[str, Any]) -> dict[str, Any]:
    moved: dict[str, Any] = map_tensors(inputs, lambda tensor: tensor.to(device))
    return moved


def in_dtype(arguments: Any, dtype: torch.dtype) -> Any:
    return map_tensors(arguments, lambda x: x.to(dtype) if x.is_floating_point() else x)


@dataclass(frozen=True)
class Call:
    """What a module was called with, every argument by its name."""

    arguments: dict[str, Any]

    def in_dtype(self, dtype: torch.dtype) -> dict[str, Any]:
        cast: dict[str, Any] = in_dtype(self.arguments, dtype)
        return cast


def calls(subject: Subject, paths: list[str]) -> dict[str, Call]:
    """The first call of each of the network's modules in one step."""
    seen: dict[str, Call] = {}
    with _listening({path: subject.network.get_submodule(path) for path in paths}, seen):
        subject.network(**subject.inputs)
    return seen


@contextmanager
def _listening(modules: Mapping[str, nn.Module], seen: dict[str, Call]) -> Iterator[None]:
    def listener(path: str, module: nn.Module) -> Any:
        signature = inspect.signature(module.forward)

        def listen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = signature.bind(*args, **kwargs).arguments
            own = {name: value for name, value in given.items() if value is not None}
            seen.setdefault(path, Call(map_tensors(own, Tensor.clone)))

        return module.register_forward_pre_hook(listen, with_kwargs=True)

    hooks = [listener(path, module) for path, module in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
