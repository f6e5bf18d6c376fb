"""Which layer breaks the pictures although all its numbers are finite.

The model draws one picture again, but every network is handed what the reference's was handed at
that moment. So an error cannot come from the step before, and the first layer whose output has
nothing to do with full precision's is the one that breaks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.calibration.tree import map_tensors, tensors
from fewbit.engine.decibel import energies, ratio_db
from fewbit.judge.finite import every_layer, outermost
from fewbit.judge.folder import Series
from fewbit.judge.layers import turned_layers
from fewbit.models import quantized_components

BROKEN_DB = 3.0  # the error has half the energy of the output
VALUES = 4096  # of an output that are compared, evenly chosen


class _Found(Exception):
    pass


def first_strange_layer(model: Series, reference: Series, number: int) -> str | None:
    """None where no single layer is that far off and the error builds up."""
    record = _Record()
    with _listening(reference.pipe, record.enter, record.leave, record.note):
        reference.draw_alone(number)
    turned = {
        one.inside(name)
        for one in quantized_components(model.pipe)
        for name in turned_layers(one.network)
    }
    replay = _Replay(record, turned)
    try:
        with _listening(model.pipe, replay.enter, record.leave, replay.check):
            model.draw_alone(number)
    except _Found as found:
        return str(found)
    return None


class _Record:
    """What went into the outermost modules and came out of all, in order of the calls."""

    def __init__(self) -> None:
        self.depth = 0
        self.inputs: dict[str, list[tuple[Any, Any]]] = {}
        self.outputs: dict[str, list[Tensor]] = {}

    def enter(self, name: str, args: Any, kwargs: Any) -> None:
        self.depth += 1
        if self.depth == 1:
            self.inputs.setdefault(name, []).append(map_tensors((args, kwargs), Tensor.clone))

    def leave(self) -> None:
        self.depth -= 1

    def note(self, name: str, output: Any) -> None:
        self.outputs.setdefault(name, []).append(_sample(output))


class _Replay:
    """Hands out the recorded inputs and holds the outputs against the recorded ones."""

    def __init__(self, record: _Record, turned: set[str]) -> None:
        self.record, self.turned = record, turned
        self.calls: dict[str, int] = {}

    def enter(self, name: str, args: Any, kwargs: Any) -> Any:
        self.record.depth += 1
        if self.record.depth > 1:
            return None
        return self._next(self.record.inputs, f"into {name}", name)

    def check(self, name: str, output: Any) -> None:
        exact, actual = self._next(self.record.outputs, name, name), _sample(output)
        if exact is None or exact.shape != actual.shape or name in self.turned:
            return
        signal, noise = energies(exact, actual)
        if signal and ratio_db(signal, noise) <= BROKEN_DB:
            raise _Found(name)

    def _next(self, recorded: dict[str, list[Any]], place: str, name: str) -> Any:
        at = self.calls[place] = self.calls.get(place, -1) + 1
        known = recorded.get(name, [])
        return known[at] if at < len(known) else None


@contextmanager
def _listening(pipe: Any, enter: Any, leave: Any, hear: Any) -> Iterator[None]:
    hooks = []
    for name, module in outermost(pipe).items():
        hooks.append(module.register_forward_pre_hook(_entering(enter, name), with_kwargs=True))
        hooks.append(module.register_forward_hook(lambda *_: leave(), always_call=True))
    for name, module in every_layer(pipe).items():
        hooks.append(module.register_forward_hook(_hearing(hear, name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _entering(enter: Any, name: str) -> Any:
    def before(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        return enter(name, args, kwargs)

    return before


def _hearing(hear: Any, name: str) -> Any:
    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        hear(name, output)

    return after


def _sample(output: Any) -> Tensor:
    found = [one for one in tensors({"output": output}).values() if one.is_floating_point()]
    if not found:
        return torch.empty(0)
    values = found[0].detach().flatten()
    return values[:: -(-len(values) // VALUES) or 1].float().cpu()
