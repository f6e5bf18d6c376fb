"""Where the error arises: each quantized layer's output beside full precision's, by timestep.

Both networks run on the same latents, so an error grows from layer to layer: the drop from one to
the next is what a layer adds. Where a method folds a rotation of the values into the layer that
gives them, that layer's output stands in another basis and is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.engine.decibel import ratio_db
from fewbit.judge.spread import Spread, SpreadOfTokens
from fewbit.layers.linear import QLinear, quantized_layers
from fewbit.layers.stage import InputStage
from fewbit.models import Structure, describe
from fewbit.models.hidden import shown

TOKENS = 64  # of each row that are looked at, evenly chosen: bounds the memory of large models


@dataclass(frozen=True)
class LayerError:
    """sqnr and by_timestep: of the output in dB, the cleanest timestep first.
    inputs:               what full precision gives the layer.
    transformed:          what is quantized instead, where a transform comes first.
    """

    name: str
    role: str
    sqnr: float
    by_timestep: dict[float, float]
    inputs: Spread
    transformed: Spread | None


class LayerErrors:
    """Listens to the layers of both networks; `compare` after both have run on the same rows."""

    def __init__(self, reference: nn.Module, quantized: nn.Module) -> None:
        self.reference = reference
        self.pairs = {
            name: _Pair(role, layer, layer.stage)
            for name, role, layer in _comparable(describe(quantized), quantized)
        }

    @contextmanager
    def listening(self) -> Iterator[None]:
        with shown(self.reference), ExitStack() as until:
            for name, pair in self.pairs.items():
                for module, listen in pair.listeners(self.reference.get_submodule(name)):
                    until.callback(module.register_forward_hook(listen).remove)
            yield

    def compare(self, when: Tensor) -> None:
        """`when` is the timestep of each row."""
        for pair in self.pairs.values():
            pair.compare(when)

    def found(self) -> list[LayerError]:
        """In order of execution."""
        return [pair.found(name) for name, pair in self.pairs.items() if pair.signal]


def turned_layers(quantized: nn.Module) -> set[str]:
    """Those whose output stands in another basis."""
    layers = quantized_layers(quantized)
    return _turned(describe(quantized), layers) if layers else set()


def _turned(structure: Structure, layers: Mapping[str, QLinear]) -> set[str]:
    return {
        value
        for block in range(len(structure.blocks))
        for attention in structure.attentions(block)
        if any(_is_folded(layers.get(out)) for out in attention.outs)
        for value in attention.values
    }


def _comparable(structure: Structure, quantized: nn.Module) -> list[tuple[str, str, QLinear]]:
    layers = quantized_layers(quantized)
    turned = _turned(structure, layers)
    return [
        (layer.name, str(layer.role), layers[layer.name])
        for layer in structure.layers
        if layer.name in layers and layer.name not in turned
    ]


def _is_folded(layer: QLinear | None) -> bool:
    return layer is not None and layer.stage is not None and layer.stage.folded is not None


class _Pair:
    """A linear and what stands in its place."""

    def __init__(self, role: str, layer: nn.Module, stage: InputStage | None) -> None:
        self.role, self.layer = role, layer
        self.transform = None if stage is None else stage.transform
        self.heard: dict[str, Tensor] = {}
        self.signal: defaultdict[float, float] = defaultdict(float)
        self.noise: defaultdict[float, float] = defaultdict(float)
        self.inputs, self.transformed = SpreadOfTokens(), SpreadOfTokens()

    def listeners(self, linear: nn.Module) -> list[tuple[nn.Module, Any]]:
        def exact(_module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> None:
            self.heard["exact"] = _some(output)
            self.inputs.add(_some(inputs[0]))

        def actual(_module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> None:
            self.heard["actual"] = _some(output)
            if self.transform is not None:
                self.transformed.add(self.transform(_some(inputs[0])))

        return [(linear, exact), (self.layer, actual)]

    def compare(self, when: Tensor) -> None:
        exact, actual = (self.heard.pop(name).cpu() for name in ("exact", "actual"))
        if len(exact) != len(when):
            return  # it runs once for all rows
        signal, noise = (
            one.flatten(1).double().square().sum(1) for one in (exact, actual.double() - exact)
        )
        for time, more, error in zip(when.tolist(), signal.tolist(), noise.tolist(), strict=True):
            self.signal[time] += more
            self.noise[time] += error

    def found(self, name: str) -> LayerError:
        return LayerError(
            name,
            self.role,
            ratio_db(sum(self.signal.values()), sum(self.noise.values())),
            {time: ratio_db(self.signal[time], self.noise[time]) for time in sorted(self.signal)},
            self.inputs.spread(),
            None if self.transform is None else self.transformed.spread(),
        )


@torch.no_grad()
def _some(values: Tensor) -> Tensor:
    """[rows, ..., channels] -> [rows, at most TOKENS, channels]"""
    rows = values.detach().flatten(1, -2) if values.ndim > 2 else values.detach()[:, None]
    step = -(-rows.shape[1] // TOKENS)
    return rows[:, ::step].float()
