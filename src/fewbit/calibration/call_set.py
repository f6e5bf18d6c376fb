"""Calls of a forward, replayed as they came: nobody knows which of their tensors hold rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Self

import torch
from torch import Tensor

from fewbit.calibration.row_set import count_rows
from fewbit.calibration.set import CalibrationSet, Item, Slot, from_json, spread, time_in, to_json
from fewbit.calibration.tree import rebuild, shapes, tensors
from fewbit.errors import BadCalibration
from fewbit.storage.entries import Entry


@dataclass(frozen=True)
class CallSet(CalibrationSet):
    """A call has a row for each of its timesteps. With one timestep or none, it is one row."""

    calls: tuple[dict[str, Any], ...]
    conditional: Tensor | None = None
    pair: Tensor | None = None

    @classmethod
    def from_items(cls, items: Iterable[Mapping[str, Any]]) -> Self:
        """From forward keyword dicts. Their shapes may differ."""
        calls = tuple(_checked(index, one) for index, one in enumerate(items))
        if not calls:
            raise BadCalibration("calibration is empty; allowed: one or more keyword dicts")
        return cls(calls)

    def __len__(self) -> int:
        return self.parts(1)[-1].stop

    def parts(self, size: int) -> list[range]:
        """A part is a call, whatever the size."""
        return list(self._parts)

    @cached_property
    def _parts(self) -> list[range]:
        ends = accumulate(map(_rows, self.calls), initial=0)
        return [range(*bounds) for bounds in pairwise(ends)]

    def some(self, rows: int, seed: int) -> Self:
        """Whole calls."""
        count = -(-rows * len(self.calls) // len(self))
        if count >= len(self.calls):
            return self
        kept = spread(count, len(self.calls), seed)
        index = torch.tensor([row for call in kept for row in self._parts[call]])
        flags = (None if one is None else one[index] for one in (self.conditional, self.pair))
        return type(self)(tuple(self.calls[call] for call in kept), *flags)

    def take(self, rows: Sequence[int]) -> dict[str, Any]:
        """Copies, for a model may write into what it is given."""
        call = self.calls[self._parts.index(range(rows[0], rows[-1] + 1))]
        return rebuild(call, lambda _, leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)

    def examples(self) -> list[dict[str, Any]]:
        """One call of each shape."""
        return list({shapes(call): call for call in reversed(self.calls)}.values())

    def timesteps(self) -> Tensor | None:
        times = [time for call in self.calls if (time := time_in(call)) is not None]
        return torch.cat(times) if len(times) == len(self.calls) else None

    def to_entry(self) -> Entry:
        def put(path: str, leaf: Any) -> Any:
            return Slot(path) if isinstance(leaf, Tensor) else leaf

        calls = list(self.calls)
        return Entry(tensors(calls), {"calls": to_json(rebuild(calls, put))})

    @classmethod
    def from_entry(cls, entry: Entry) -> Self:
        def fill(_: str, leaf: Any) -> Any:
            return entry.tensors[leaf.path] if isinstance(leaf, Slot) else leaf

        return cls(tuple(rebuild(from_json(entry.table["calls"]), fill)))


def _checked(index: int, given: Mapping[str, Any]) -> dict[str, Any]:
    item = Item(index, given)
    if count_rows(given) == 0:
        raise item.bad("has no tensor with rows; allowed: one row or more")
    checked: dict[str, Any] = rebuild(dict(given), item.checked)
    return checked


def _rows(call: Mapping[str, Any]) -> int:
    time = time_in(call)
    return 1 if time is None else len(time)
