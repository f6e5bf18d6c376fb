"""What quantized weights are trained on: inputs, and what was given for them in full precision.

Of a block, inputs come from the stream that has gone through the quantized blocks, targets from the
one that has not. Minibatches are shuffled, the two halves of the guidance kept together, and an
error counts as a share of what is given at its timestep.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from fewbit.calibration.set import CalibrationSet
from fewbit.calibration.stream import Step
from fewbit.calibration.tree import map_tensors, tensors

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Minibatch:
    """Arguments for a forward, and what it should give; floating tensors are float32."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: dict[str, Tensor]  # every tensor that is given, by its path
    weights: dict[str, Tensor]  # [rows] for each of them

    def loss(self, output: Any) -> Tensor:
        """The energy of the error as a share of the energy there is, a mean over rows."""
        given = tensors(output)
        parts = [
            ((given[path] - target).square().flatten(1).mean(1) * self.weights[path]).mean()
            for path, target in self.targets.items()
        ]
        return torch.stack(parts).sum()


class Reconstruction:
    """Rows of inputs and their targets, all of them in memory."""

    def __init__(
        self,
        inputs: CalibrationSet,
        outputs: Iterable[Any],
        times: Tensor | None,
        pair: Tensor | None,
        device: torch.device,
    ) -> None:
        """`outputs` come minibatch by minibatch, in the order of the inputs."""
        self.inputs, self.device = inputs, device
        parts = [tensors(_floating(output)) for output in outputs]
        self.targets = {path: torch.cat([p.pop(path).cpu() for p in parts]) for path in [*parts[0]]}
        self.weights = {path: _weights(target, times) for path, target in self.targets.items()}
        self.together = _together(pair, len(inputs))

    @classmethod
    def of_block(cls, step: Step, exact: Step) -> Reconstruction:
        """`exact` is the block's step, already advanced, in the full-precision stream."""
        items = (
            {**{str(place): value for place, value in enumerate(call.args)}, **call.kwargs}
            for call in step.inputs()
        )
        stream = step.stream
        inputs = CalibrationSet.from_items(map(_floating, items))
        return cls(inputs, exact.given(), stream.times, stream.data.pair, step.device)

    @classmethod
    def of_model(
        cls, data: CalibrationSet, outputs: Iterable[Any], device: torch.device
    ) -> Reconstruction:
        return cls(data, outputs, data.timesteps(), data.pair, device)

    def minibatches(self, steps: int, size: int, seed: int) -> Iterator[Minibatch]:
        """`steps` of about `size` rows each; no row comes twice before all have come."""
        generator = Generator("cpu").manual_seed(seed)
        groups = len(self.together)
        each = min(max(size * groups // len(self.inputs), 1), groups)
        waiting: list[int] = []
        for _ in range(steps):
            if len(waiting) < each:
                waiting += torch.randperm(groups, generator=generator).tolist()
            chosen, waiting = waiting[:each], waiting[each:]
            yield self._take([row for group in chosen for row in self.together[group]])

    def _take(self, rows: list[int]) -> Minibatch:
        index = torch.tensor(rows)
        given = map_tensors(_floating(self.inputs.take(rows)), lambda one: one.to(self.device))
        positions = sorted(filter(str.isdigit, given), key=int)
        args = tuple(given.pop(place) for place in positions)
        targets, weights = (
            {path: tensor[index].to(self.device) for path, tensor in named.items()}
            for named in (self.targets, self.weights)
        )
        return Minibatch(args, given, targets, weights)


def _floating(tree: Any) -> Any:
    return map_tensors(tree, lambda one: one.float() if one.is_floating_point() else one)


def _weights(target: Tensor, times: Tensor | None) -> Tensor:
    """One over the mean square of all rows at the same timestep."""
    energy = target.square().flatten(1).mean(1)
    times = torch.zeros(len(energy)) if times is None else times
    _, which = times.unique(return_inverse=True)
    mean = torch.bincount(which, energy) / torch.bincount(which)
    return mean.clamp(min=TINY).reciprocal()[which]


def _together(pair: Tensor | None, rows: int) -> list[list[int]]:
    """Rows that are always in one minibatch."""
    if pair is None:
        return [[row] for row in range(rows)]
    return [(pair == one).nonzero()[:, 0].tolist() for one in pair.unique()]
