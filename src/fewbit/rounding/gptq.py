"""GPTQ: round one input column after another, each corrected for the errors of those before it.

Frantar et al. 2023, in the equivalent form LDLQ (Chee et al. 2023, theorem 6). With
H = (F + I)·D·(F + I)ᵀ, where F is strictly upper triangular and D diagonal, and E = W - Q, the
output error tr(E·H·Eᵀ) is Σ_k D_k·‖E_k + E_<k·F_<k,k‖², so column k is best rounded from
T_k = W_k + E_<k·F_<k,k. No inverse is ever formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from fewbit.errors import BadArgument, BadCalibration

FEW_COLUMNS = 32  # up to here a column gathers its correction itself; above, matmuls spread it
LARGEST_DAMPING = 1.0
SMALLEST = torch.finfo(torch.float32).tiny

Order = Literal["natural", "activation"]


class Rounder(Protocol):
    """All that a solver knows of a format. After the solve it holds the scales of the result."""

    @property
    def group(self) -> int | None:
        """How many consecutive columns share a scale; None means all of them."""

    def begin(self, columns: slice, weight: Tensor) -> None:
        """Fix the scales of one group of columns from its values, weight [out, columns]."""

    def round(self, weight: Tensor, column: int) -> Tensor:
        """The representable values nearest to one column, weight [out], of a group begun."""


@dataclass(frozen=True, eq=False)
class Solution:
    """Representable values [out, in] and what it took to find them."""

    values: Tensor
    damping: float
    dead: Tensor  # bool [in]: channels calibration never saw move, rounded to nearest


def gptq(
    weight: Tensor,
    hessian: Tensor,
    rounder: Rounder,
    *,
    damping: float = 0.01,
    order: Order = "natural",
) -> Solution:
    """Minimise tr((W - Q)·H·(W - Q)ᵀ) greedily over the values Q that `rounder` can give.

    `hessian` [in, in] is the second moments of the inputs, at any common factor. In "natural"
    order a group's scales are fixed from its corrected weights, when its turn comes. "activation"
    order takes the loudest channels first, so every scale is fixed beforehand from the weight.
    """
    _check(weight, hessian, damping, order)
    dead = hessian.diagonal() == 0
    columns = _processing_order(hessian, order)
    feedback, damping = _feedback(hessian, columns, damping)
    original = weight.T[columns].to(_at_least_float32(weight))  # [in, out]: a column is contiguous
    solve = _Solve(original, feedback.to(original), rounder, columns.tolist())
    rounded = solve.group_by_group() if order == "natural" else solve.all_scales_first(weight)
    values = torch.empty_like(rounded)
    values[columns] = rounded
    return Solution(values.T.contiguous(), damping, dead)


class _Solve:
    """The recursion that hands out corrected columns.

    Whatever span it visits is already corrected for every column before the span. A group is
    visited as one span, so its scales never come from weights that still miss a correction.
    """

    def __init__(
        self, weight: Tensor, feedback: Tensor, rounder: Rounder, columns: list[int]
    ) -> None:
        self.target = weight.clone()  # T, rows are columns
        self.weight = weight
        self.error = torch.empty_like(weight)
        self.values = torch.empty_like(weight)
        self.feedback = feedback
        self.rounder = rounder
        self.columns = columns

    def group_by_group(self) -> Tensor:
        count = len(self.columns)
        for start, stop in self._corrected(0, count, self.rounder.group or count):
            self.rounder.begin(slice(start, stop), self._compensated(start, stop).T)
            self._round(start, stop)
        return self.values

    def all_scales_first(self, weight: Tensor) -> Tensor:
        count = len(self.columns)
        group = self.rounder.group or count
        for start in range(0, count, group):
            columns = slice(start, min(start + group, count))
            self.rounder.begin(columns, weight[:, columns].to(self.target))
        self._round(0, count)
        return self.values

    def _corrected(self, start: int, stop: int, unit: int) -> Iterator[tuple[int, int]]:
        """Spans of `unit` columns from left to right, each corrected for the errors of all before
        it: when one half of a span is rounded, a single matmul corrects the other half."""
        units = -(-(stop - start) // unit)
        if units == 1:
            yield start, stop
            return
        middle = start + unit * (units // 2)
        yield from self._corrected(start, middle, unit)
        correction = self.feedback[start:middle, middle:stop].T
        self.target[middle:stop].addmm_(correction, self.error[start:middle])
        yield from self._corrected(middle, stop, unit)

    def _round(self, start: int, stop: int) -> None:
        for first, last in self._corrected(start, stop, FEW_COLUMNS):
            for k in range(first, last):
                before = self.error[first:k].T
                target = torch.addmv(self.target[k], before, self.feedback[first:k, k])
                self.values[k] = self.rounder.round(target, self.columns[k])
                torch.sub(self.weight[k], self.values[k], out=self.error[k])

    def _compensated(self, start: int, stop: int) -> Tensor:
        """Where the columns end up if none of them has to be rounded: W - E with E·(F + I) = W - T.

        Every T_k presumes that its predecessors in the group keep their original values.
        """
        weight, within = self.weight[start:stop], self.feedback[start:stop, start:stop].T
        if start == 0:
            return weight
        correction = self.target[start:stop] - weight
        return weight + torch.linalg.solve_triangular(
            within, correction, upper=False, unitriangular=True
        )


def _feedback(hessian: Tensor, columns: Tensor, damping: float) -> tuple[Tensor, float]:
    """F of H + λI = (F + I)·D·(F + I)ᵀ, and the damping λ / mean(diag) that made it possible.

    The upper factor of a matrix is the lower factor of the matrix read backwards.
    """
    reverse = columns.flip(0)
    backwards = hessian[reverse][:, reverse].double()
    diagonal = backwards.diagonal().clone()
    live = diagonal != 0
    mean = diagonal[live].mean().item() if live.any() else 1.0
    diagonal[~live] = mean  # coupled to nothing: any positive value leaves them to nearest rounding
    while damping <= LARGEST_DAMPING:
        backwards.diagonal().copy_(diagonal + damping * mean)
        lower, failed = torch.linalg.cholesky_ex(backwards)
        if not failed:
            upper = lower.flip(0, 1)
            return upper.div_(upper.diagonal().clone()), damping
        damping = max(10 * damping, 1e-4)
    raise BadCalibration(
        f"the second moments of {len(hessian)} inputs are not positive definite at a damping of "
        f"{LARGEST_DAMPING:g} times their mean; allowed: sums of x·xᵀ over finite inputs"
    )


def conditional_variances(hessian: Tensor, damping: float = 0.01) -> Tensor:
    """D: what a squared error in each column costs where the columns behind it make up for it."""
    backwards = hessian.flip(0, 1).double()
    backwards.diagonal().add_(damping * backwards.diagonal().mean().clamp(min=SMALLEST))
    return torch.linalg.cholesky(backwards).diagonal().square().flip(0).to(hessian)


def _processing_order(hessian: Tensor, order: Order) -> Tensor:
    if order == "natural":
        return torch.arange(len(hessian), device=hessian.device)
    return hessian.diagonal().argsort(descending=True, stable=True)


def _at_least_float32(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def _check(weight: Tensor, hessian: Tensor, damping: float, order: str) -> None:
    inputs = weight.shape[1]
    if hessian.shape != (inputs, inputs):
        raise BadArgument(
            f"gptq of a weight with {inputs} inputs got second moments of shape "
            f"{tuple(hessian.shape)}; allowed: ({inputs}, {inputs})"
        )
    if not 0 <= damping <= LARGEST_DAMPING:
        raise BadArgument(f"gptq got damping {damping}; allowed: 0 to {LARGEST_DAMPING:g}")
    if order not in ("natural", "activation"):
        raise BadArgument(f"gptq got order {order!r}; allowed: natural, activation")
    broken = int((~hessian.isfinite()).any(dim=0).sum())
    if broken:
        raise BadCalibration(
            f"the second moments of {inputs} inputs hold NaN or infinity in {broken} channels; "
            f"allowed: finite inputs"
        )
