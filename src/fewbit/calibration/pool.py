"""Examples to train on, in memory: rows that mix in any way, or calls that stay as they came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewbit.calibration.along import Along
from fewbit.calibration.replay import Arguments
from fewbit.calibration.set import Slot
from fewbit.calibration.tree import map_tensors, rebuild, tensors

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Target:
    """What a forward should give for one of its tensors."""

    value: Tensor  # float32
    along: Along | None  # None: its rows are not told apart
    weights: Tensor  # [rows] or [1]

    def loss(self, given: Tensor) -> Tensor:
        return (_by_row(given - self.value, self.along).square().mean(1) * self.weights).mean()


@dataclass(frozen=True)
class Example:
    """Arguments for a forward, and what it should give; floating tensors are float32."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: dict[str, Target]  # by path

    def loss(self, output: Any) -> Tensor:
        """The energy of the error as a share of the energy there is, a mean over rows."""
        given = tensors(output)
        losses = [target.loss(given[path]) for path, target in self.targets.items()]
        return torch.stack(losses).sum()


class RowPool:
    """All rows as one example, and where they are in its tensors."""

    def __init__(
        self,
        arguments: Iterable[Arguments],
        outputs: Iterable[Any],
        rows: tuple[Mapping[str, Along], Mapping[str, Along]],
        times: Tensor | None,
    ) -> None:
        """rows: of the arguments and of the outputs."""
        self.along = rows
        self.arguments = _joined(arguments, rows[0])
        self.outputs = tensors(_joined(outputs, rows[1]))
        self.weights = {}
        for path, output in self.outputs.items():
            energies = _by_row(output, rows[1].get(path)).square().mean(1)
            self.weights[path] = _shares(energies, times if path in rows[1] else None)

        self.rows = max(map(len, self.weights.values()))

    def __len__(self) -> int:
        return self.rows

    def take(self, rows: Sequence[int], device: torch.device) -> list[Example]:
        index = torch.tensor(rows)

        def some(path: str, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            along = self.along[0].get(path)
            return (leaf if along is None else along.take(leaf, index)).to(device)

        args, kwargs = rebuild(self.arguments, some)
        targets = {}
        for path, output in self.outputs.items():
            along, weights = self.along[1].get(path), self.weights[path]
            if along is not None:
                output, weights = along.take(output, index), weights[index]
            targets[path] = Target(output.to(device), along, weights.to(device))
        return [Example(args, kwargs, targets)]


class CallPool:
    """Each call an example, with its number for a row's."""

    def __init__(
        self, arguments: Iterable[Arguments], outputs: Iterable[Any], times: Tensor | None
    ) -> None:
        self.arguments = [_copied(_floating(one)) for one in arguments]
        self.outputs = [_copied(tensors(_floating(output))) for output in outputs]
        self.weights = [dict[str, Tensor]() for _ in self.outputs]
        for path in sorted(set().union(*self.outputs)):
            having = [number for number, output in enumerate(self.outputs) if path in output]
            energies = torch.stack([self.outputs[one][path].square().mean() for one in having])
            shares = _shares(energies, None if times is None else times[having])
            for number, share in zip(having, shares, strict=True):
                self.weights[number][path] = share[None]

        first = next(iter(self.outputs[0].values()))
        self.rows = len(self) * (len(first) if first.ndim else 1)  # about

    def __len__(self) -> int:
        return len(self.arguments)

    def take(self, numbers: Sequence[int], device: torch.device) -> list[Example]:
        return [self._example(number, device) for number in numbers]

    def _example(self, number: int, device: torch.device) -> Example:
        args, kwargs = map_tensors(self.arguments[number], lambda one: one.clone().to(device))
        weights = self.weights[number]
        targets = {
            path: Target(output.to(device), None, weights[path].to(device))
            for path, output in self.outputs[number].items()
        }
        return Example(args, kwargs, targets)


def _floating(tree: Any) -> Any:
    return map_tensors(tree, lambda one: one.float() if one.is_floating_point() else one)


def _copied(tree: Any) -> Any:
    return map_tensors(tree, lambda one: one.detach().cpu().clone())


def _joined(trees: Iterable[Any], rows: Mapping[str, Along]) -> Any:
    """One tree of all, without holding every tensor twice."""
    first, *others = map(_floating, trees)
    parts = [tensors(tree) for tree in (first, *others)]
    frame = rebuild(first, lambda path, leaf: Slot(path) if isinstance(leaf, Tensor) else leaf)
    del first, others

    def join(_: str, leaf: Any) -> Any:
        if not isinstance(leaf, Slot):
            return leaf
        if leaf.path not in rows:
            return parts[0][leaf.path].cpu()
        return torch.cat([part.pop(leaf.path).cpu() for part in parts], rows[leaf.path].dim)

    return rebuild(frame, join)


def _by_row(tensor: Tensor, along: Along | None) -> Tensor:
    return tensor.reshape(1, -1) if along is None else along.by_row(tensor)


def _shares(energies: Tensor, times: Tensor | None) -> Tensor:
    """One over the mean of the energies at the same timestep, of each of them."""
    times = torch.zeros(len(energies)) if times is None else times
    _, which = times.unique(return_inverse=True)
    mean = torch.bincount(which, energies) / torch.bincount(which)
    return mean.clamp(min=TINY).reciprocal()[which]
