"""Calibration data: what the forward of a transformer is called with."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from fewbit.errors import BadCalibration
from fewbit.models.timestep import TIMES, time_of_rows
from fewbit.storage.entries import Entry
from fewbit.storage.fingerprint import fingerprint

_PLAIN = (type(None), bool, int, float, str)


class CalibrationSet(ABC):
    """Rows in order, run a minibatch at a time.

    A row is one image at one timestep in one half of the guidance. `RowSet` can cut its rows apart
    and put them together in any way. `CallSet` runs each call as it came, with all of its rows.

    conditional: bool [rows], False in the unconditional half; None where nobody knows.
    pair:        int64 [rows], the same for the two halves of one image at one timestep, or None.
    """

    conditional: Tensor | None
    pair: Tensor | None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def parts(self, size: int) -> list[range]:
        """All rows in order, as they are run together: about `size` at a time."""

    @abstractmethod
    def some(self, rows: int, seed: int) -> Self:
        """About so many of the rows, drawn evenly; itself where it has no more."""

    @abstractmethod
    def take(self, rows: Sequence[int]) -> dict[str, Any]:
        """The keyword arguments of a forward over the rows of one part."""

    @abstractmethod
    def timesteps(self) -> Tensor | None:
        """float32 [rows], where the forward takes a timestep."""

    @abstractmethod
    def to_entry(self) -> Entry: ...

    def batches(self, size: int) -> Iterator[dict[str, Any]]:
        return map(self.take, self.parts(size))

    def examples(self) -> list[dict[str, Any]]:
        """Small forwards, of every shape that occurs."""
        return [self.take(self.parts(1)[0])]

    def fingerprint(self) -> str:
        """SHA-256 of all there is."""
        entry = self.to_entry()
        return fingerprint(json.dumps(entry.table, sort_keys=True), dict(entry.tensors))


@dataclass(frozen=True)
class Slot:
    """Where a tensor stood in the arguments."""

    path: str


class Item:
    """One keyword dict on its way into a set, whose faults are told by its place."""

    def __init__(self, index: int, given: Mapping[str, Any]) -> None:
        self.index = index
        if not isinstance(given, Mapping):
            raise BadCalibration(
                f"calibration item {index} is of type {type(given).__name__}; allowed: dicts of "
                "the forward's keyword arguments"
            )
        for key in given:
            if not isinstance(key, str):
                raise self.bad(f"has a key that is no string: {key!r}")

    def checked(self, path: str, leaf: Any) -> Any:
        """The leaf itself, a tensor on the CPU; of a kind that can be written down."""
        if not isinstance(leaf, Tensor):
            if not isinstance(leaf, _PLAIN):
                raise self.bad(
                    f"holds a {type(leaf).__name__}; allowed: tensors, numbers, strings, None, "
                    "and dicts, lists and tuples of them",
                    path,
                )
            return leaf
        if leaf.is_floating_point() and (leaf.isnan() | leaf.isposinf()).any():  # masks hold -inf
            raise self.bad("holds NaN or infinity; allowed: finite numbers", path)
        return leaf.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)

    def bad(self, what: str, path: str | None = None) -> BadCalibration:
        key = "" if path is None else f", key {path!r},"
        return BadCalibration(f"calibration item {self.index}{key} {what}")


def time_in(item: Mapping[str, Any]) -> Tensor | None:
    """float32 [rows], the timestep of a forward; [1] where it is one for all rows."""
    time = next((item[key] for key in TIMES if item.get(key) is not None), None)
    return None if time is None else time_of_rows(torch.as_tensor(time))


def spread(count: int, total: int, seed: int) -> list[int]:
    """`count` of `total` numbers in order: of as many spans of about equal length one number each,
    drawn by chance, so that they follow no rhythm of the data."""
    generator = torch.Generator("cpu").manual_seed(seed)
    bounds = torch.arange(count + 1, device="cpu") * total // count
    inside = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
    return (bounds[:-1] + (inside * bounds.diff()).long()).tolist()


def to_json(tree: Any) -> Any:
    if isinstance(tree, Slot):
        return {"slot": tree.path}
    if isinstance(tree, dict):
        return {"dict": [[key, to_json(value)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {type(tree).__name__: [to_json(value) for value in tree]}
    return tree


def from_json(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    [(kind, value)] = tree.items()
    if kind == "slot":
        return Slot(value)
    if kind == "dict":
        return {key: from_json(inner) for key, inner in value}
    return {"list": list, "tuple": tuple}[kind](map(from_json, value))
