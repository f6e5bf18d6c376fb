"""Rows of the keyword arguments of a forward, cut from calls whose batch is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from fewbit.calibration.set import CalibrationSet, Item, Slot, from_json, spread, time_in, to_json
from fewbit.calibration.tree import rebuild, tensors
from fewbit.errors import BadArgument, BadCalibration
from fewbit.models.timestep import TIMES
from fewbit.storage.entries import Entry

_SHARED = ("image_rotary_emb", "img_ids", "txt_ids")  # positions: no batch dimension to split


@dataclass(frozen=True)
class RowSet(CalibrationSet):
    """Rows that can be taken by number.

    arguments: the nesting of the keyword arguments, a slot for each tensor.
    columns:   path -> tensor with a leading dimension over all rows.
    shared:    path -> tensor that every row uses as it is.
    """

    arguments: dict[str, Any]
    columns: dict[str, Tensor]
    shared: dict[str, Tensor]
    conditional: Tensor | None = None
    pair: Tensor | None = None

    @classmethod
    def from_items(
        cls,
        items: Iterable[Mapping[str, Any]],
        conditional: Tensor | None = None,
        pair: Tensor | None = None,
    ) -> Self:
        """From forward keyword dicts, each with one or more rows."""
        parts = [_Part(index, item) for index, item in enumerate(items)]
        if not parts:
            raise BadCalibration("calibration is empty; allowed: one or more keyword dicts")
        first = parts[0]
        for part in parts[1:]:
            part.refuse_if_unlike(first)
        columns = {path: torch.cat([part.columns.pop(path) for part in parts])
                   for path in tuple(first.columns)}  # fmt: skip
        return cls(first.arguments, columns, first.shared, conditional, pair)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, rows: Sequence[int]) -> dict[str, Any]:
        """The keyword arguments of a forward over these rows."""
        index = torch.tensor(rows, dtype=torch.int64)

        def fill(_: str, leaf: Any) -> Any:
            if not isinstance(leaf, Slot):
                return leaf
            path = leaf.path
            return self.columns[path][index] if path in self.columns else self.shared[path]

        return rebuild(self.arguments, fill)

    def parts(self, size: int) -> list[range]:
        """All rows in order, `size` at a time."""
        if type(size) is not int or size < 1:
            raise BadArgument(f"a batch holds one or more rows, got {size!r}")
        return [range(at, min(at + size, len(self))) for at in range(0, len(self), size)]

    def some(self, rows: int, seed: int) -> Self:
        if rows >= len(self):
            return self
        kept = torch.tensor(spread(rows, len(self), seed))
        flags = (None if one is None else one[kept] for one in (self.conditional, self.pair))
        columns = {path: column[kept] for path, column in self.columns.items()}
        return type(self)(self.arguments, columns, self.shared, *flags)

    def examples(self) -> list[dict[str, Any]]:
        return [self.take([0]), self.take([0, 0])]

    def timesteps(self) -> Tensor | None:
        return time_in(self.columns)

    def to_entry(self) -> Entry:
        return Entry(self._named(), {"arguments": to_json(self.arguments)})

    @classmethod
    def from_entry(cls, entry: Entry) -> Self:
        columns, shared = (
            {name.removeprefix(kind): tensor for name, tensor in entry.tensors.items()
             if name.startswith(kind)}
            for kind in ("rows/", "shared/")
        )  # fmt: skip
        flags = entry.tensors.get("conditional"), entry.tensors.get("pair")
        return cls(from_json(entry.table["arguments"]), columns, shared, *flags)

    def _named(self) -> dict[str, Tensor]:
        named = {f"rows/{path}": tensor for path, tensor in self.columns.items()}
        named |= {f"shared/{path}": tensor for path, tensor in self.shared.items()}
        flags = {"conditional": self.conditional, "pair": self.pair}
        return named | {name: flag for name, flag in flags.items() if flag is not None}


class _Part(Item):
    """One keyword dict, taken apart and checked."""

    def __init__(self, index: int, given: Mapping[str, Any]) -> None:
        super().__init__(index, given)
        self.columns: dict[str, Tensor] = {}
        self.shared: dict[str, Tensor] = {}
        self.plain: dict[str, Any] = {}
        rows = count_rows(given)
        if rows == 0:
            raise self.bad("has no tensor with rows; allowed: one row or more")
        self.arguments = rebuild(time_per_row(given, rows), lambda *leaf: self._sort(rows, *leaf))

    def _sort(self, rows: int, path: str, leaf: Any) -> Any:
        leaf = self.checked(path, leaf)
        if not isinstance(leaf, Tensor):
            self.plain[path] = leaf
            return leaf
        place = self.columns if in_rows(path, leaf, rows) else self.shared
        place[path] = leaf
        return Slot(path)

    def refuse_if_unlike(self, first: _Part) -> None:
        for kind in ("columns", "shared", "plain"):
            mine, theirs = getattr(self, kind), getattr(first, kind)
            for path in sorted(mine.keys() ^ theirs.keys()):
                raise self.bad(f"is {self._how(path)} but {first._how(path)}", path)
        for path, column in self.columns.items():
            got, allowed = _kind(column), _kind(first.columns[path])
            if got != allowed:
                raise self.bad(f"has rows of {got}; allowed, as in item 0: {allowed}", path)
        for path, tensor in self.shared.items():
            if not torch.equal(tensor, first.shared[path]):
                raise self.bad("has no batch dimension and is not what it is in item 0", path)
        for path, value in self.plain.items():
            if value != first.plain[path]:
                raise self.bad(f"is {value!r}; allowed, as in item 0: {first.plain[path]!r}", path)

    def _how(self, path: str) -> str:
        ways = {"columns": "per row", "shared": "for all rows at once", "plain": "no tensor"}
        how = next((way for kind, way in ways.items() if path in getattr(self, kind)), "missing")
        return f"{how} in item {self.index}"


def count_rows(item: Mapping[str, Any]) -> int:
    """The batch size of a forward: that of its hidden states, else of its first tensor."""
    hidden = item.get("hidden_states")
    candidates = [hidden] if isinstance(hidden, Tensor) else tensors(item).values()
    return next((len(tensor) for tensor in candidates if tensor.ndim), 0)


def in_rows(path: str, tensor: Tensor, rows: int) -> bool:
    return tensor.ndim > 0 and len(tensor) == rows and path.partition(".")[0] not in _SHARED


def time_per_row(item: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """One timestep for the whole batch becomes one for each row."""
    arguments = dict(item)
    for key in TIMES:
        time = arguments.get(key)
        if isinstance(time, int | float) or (isinstance(time, Tensor) and time.numel() == 1):
            arguments[key] = torch.as_tensor(time).reshape(1).expand(rows)
    return arguments


def _kind(column: Tensor) -> str:
    return f"{str(column.dtype).removeprefix('torch.')} {list(column.shape[1:])}"
