"""The grid a solver rounds to: a spec whose scales are fixed group by group as the solver goes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fewbit.formats import QTensor, Scales, Spec
from fewbit.rounding.clipping import Fit


class Grid:
    """What `gptq` calls a rounder, for any spec of the library. Scales are fit by errors that weigh
    as much as the `importance` [columns] of their column, if that is given."""

    def __init__(
        self, spec: Spec, weight: Tensor, fit: Fit, importance: Tensor | None = None
    ) -> None:
        self.spec, self.inside = spec, spec.one_group
        self.group = spec.span if isinstance(spec.span, int) else None
        self.fit, self.importance = fit, importance
        # An outer scale, or the one scale of a tensor, stays.
        self.whole = replace(spec.fit(weight), outer=fit.outer(weight, spec, importance))
        self.fitted: dict[int, Scales] = {}

    def begin(self, columns: slice, weight: Tensor) -> None:
        if self.spec.span == "tensor":
            self.fitted[0] = self.whole
            return
        weighs = None if self.importance is None else self.importance[columns]
        self.fitted[self._index(columns.start)] = self.fit(
            weight, self.inside, self.whole.outer, weighs
        )

    def round(self, weight: Tensor, column: int) -> Tensor:
        scales = self.fitted[self._index(column)]
        return self.inside.round(weight[:, None], scales)[:, 0]

    def scales(self) -> Scales:
        groups = [self.fitted[index] for index in sorted(self.fitted)]
        zeros = [one.zeros for one in groups if one.zeros is not None]
        return Scales(
            torch.cat([one.stored for one in groups], dim=1),
            self.whole.outer,
            torch.cat(zeros, dim=1) if zeros else None,
            codebook=self.whole.codebook,
        )

    def _index(self, column: int) -> int:
        return column // self.group if self.group else 0


class ChoiceGrid:
    """Every row on the grid of its own option, where a format has several."""

    def __init__(self, spec: Spec, weight: Tensor, fit: Fit, choices: Tensor) -> None:
        self.spec, self.choices = spec, choices
        self.group = spec.span if isinstance(spec.span, int) else None
        used = [int(index) for index in choices.unique()]
        self.rows = [(choices == index).nonzero()[:, 0] for index in used]
        self.grids = [
            Grid(replace(spec, format=spec.format.options[index]), weight[rows], fit)
            for index, rows in zip(used, self.rows, strict=True)
        ]

    def begin(self, columns: slice, weight: Tensor) -> None:
        for grid, rows in zip(self.grids, self.rows, strict=True):
            grid.begin(columns, weight[rows])

    def round(self, weight: Tensor, column: int) -> Tensor:
        rounded = torch.empty_like(weight)
        for grid, rows in zip(self.grids, self.rows, strict=True):
            rounded[rows] = grid.round(weight[rows], column)
        return rounded

    def scales(self) -> Scales:
        parts = [grid.scales() for grid in self.grids]
        order = torch.cat(self.rows).argsort()
        outer = [part.outer for part in parts if part.outer is not None]
        return Scales(
            torch.cat([part.stored for part in parts])[order],
            torch.cat(outer)[order] if outer else None,
            choices=self.choices[:, None].to(torch.uint8),
        )


def round_to_nearest(weight: Tensor, grid: Grid | ChoiceGrid) -> QTensor:
    """Plain rounding at the grid's own scales."""
    columns = weight.shape[1]
    width = grid.group or columns
    for start in range(0, columns, width):
        grid.begin(slice(start, start + width), weight[:, start : start + width])
    return QTensor.quantize(weight, grid.spec, grid.scales())
