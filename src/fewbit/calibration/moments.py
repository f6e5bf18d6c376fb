"""Second moments of a layer's inputs, streamed: all that a solver is told of the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fewbit.errors import BadCalibration

SMALLEST = torch.finfo(torch.float32).tiny
TOGETHER = 2048  # rows that are summed by one matmul: it costs as much to add them as a few
PANEL = 384  # columns of a symmetric sum that one matmul gives, as far as their diagonal


class _Waiting:
    """Rows of several tensors that are handed on `TOGETHER` at a time, as one for each tensor."""

    def __init__(self, add: Callable[..., None]) -> None:
        self.add = add
        self.held: tuple[Tensor, ...] = ()
        self.count = 0

    def put(self, *rows: Tensor) -> None:
        """Copies of rows, as many of each tensor."""
        if not self.held:
            self.held = tuple(one.new_empty(TOGETHER, one.shape[1]) for one in rows)
        at = 0
        while at < len(rows[0]):
            taken = min(TOGETHER - self.count, len(rows[0]) - at)
            for held, one in zip(self.held, rows, strict=True):
                held[self.count : self.count + taken] = one[at : at + taken]
            at, self.count = at + taken, self.count + taken
            if self.count == TOGETHER:
                self.flush()

    def flush(self) -> None:
        if self.count:
            self.add(*(one[: self.count] for one in self.held))
            self.count = 0


def _add_square(total: Tensor, x: Tensor) -> None:
    """Add x·xᵀ of rows x, as far as the diagonal and no more than `PANEL` beyond it."""
    for start in range(0, len(total), PANEL):
        stop = min(start + PANEL, len(total))
        total[start:stop, :stop].addmm_(x[:, start:stop].T, x[:, :stop])


def _whole(lower: Tensor) -> Tensor:
    """A symmetric matrix of what it is up to its diagonal."""
    lower = lower.tril()
    return lower + lower.tril(-1).T


class SecondMoments:
    """Running Σ x·xᵀ and Σ of sample weights, in float32.

    Thousands of rows are summed by one matmul, so the running sum sees thousands of additions and
    not millions: its error stays orders of magnitude under GPTQ's damping.
    """

    def __init__(self, channels: int, device: torch.device | str | None = None) -> None:
        self.sum = torch.zeros(channels, channels, device=device)  # up to the diagonal
        self.rows = 0.0
        self.waiting = _Waiting(partial(_add_square, self.sum))

    def update(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Add inputs x [..., channels].

        `weight` [...] is how much each row counts, a bool mask or numbers; a row of weight zero
        (padding) never enters, not even when it holds NaN.
        """
        rows = x.detach().flatten(0, -2)
        if weight is None:
            weight = torch.ones(len(rows), device=x.device)
        weight = weight.flatten().float()
        rows, weight = rows[weight > 0].float(), weight[weight > 0]
        if len(rows):
            self.waiting.put(rows * weight.sqrt()[:, None])
            self.rows += weight.sum(dtype=torch.float64).item()

    def mean(self) -> Tensor:
        """The average of x·xᵀ: exactly symmetric."""
        if self.rows == 0:
            raise BadCalibration(
                f"second moments of {len(self.sum)} inputs saw no rows; allowed: one or more"
            )
        self.waiting.flush()
        return _whole(self.sum) / self.rows


@dataclass(frozen=True)
class Paired:
    """How inputs x̂ vary around their mean, and together with the inputs x that they stand for."""

    square: Tensor  # [in, in], the mean of x̂·x̂ᵀ around the means
    short: Tensor  # [in, in], the mean of (x - x̂)·x̂ᵀ around the means; or W·short, [out, in]
    exact: Tensor  # float64 [in], the mean of x
    actual: Tensor  # float64 [in], the mean of x̂
    alone: Tensor | None = None  # W, where only its product with `short` is known

    @property
    def cross(self) -> Tensor:
        """[in, in], the mean of x·x̂ᵀ around the means; or W·cross, [out, in]."""
        return (self.square if self.alone is None else self.alone @ self.square) + self.short

    def around_zero(self) -> Paired:
        """The same for a layer without a bias, which can make up for no difference of means."""
        square = self.square + self.actual.outer(self.actual).to(self.square)
        apart = _through(self.alone, self.exact - self.actual)
        short = self.short + apart.outer(self.actual).to(self.short)
        return Paired(square, short, 0 * self.exact, 0 * self.actual, self.alone)

    def target(self, weight: Tensor, damping: float) -> Tensor:
        """The W' [out, in] whose product with x̂ is nearest to W·x; damping holds it near W. The
        energy of W·x - Q·x̂ is that of (W' - Q)·x̂ and a constant: W' is what to round.

        W' - W is what makes up for x - x̂, and is found alone: it is small, so single precision does
        for all but the factors of the square.
        """
        damped = self.square.double()
        damped.diagonal().add_(damping * damped.diagonal().mean().clamp(min=SMALLEST))
        lacking = (weight @ self.short if self.alone is None else self.short).to(weight)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if failed:  # so little damping that rounding errors outweigh it
            return weight + torch.linalg.solve(damped, lacking.double(), left=False).to(weight)
        return weight + torch.cholesky_solve(lacking.T, lower.to(weight)).T

    def missing(self, weight: Tensor, rounded: Tensor) -> Tensor:
        """What the bias must add, float64 [out]: the mean of W·x - Q·x̂."""
        return weight.double() @ self.exact - rounded.double() @ self.actual


class PairedMoments:
    """Running moments of inputs x̂ and of those that they stand for, sample by sample. `alone` is
    the weight of the only layer that reads them, if it gives fewer numbers than it reads: what
    it makes of x - x̂ is all that it must know."""

    def __init__(self, alone: Tensor | None = None) -> None:
        self.alone = alone
        self.square = self.short = self.exact = self.actual = torch.zeros(())
        self.rows = 0.0
        self.waiting = _Waiting(self._add)

    def update(self, exact: Tensor, actual: Tensor, weight: Tensor) -> None:
        """Add x and x̂ [..., in]; `weight` [...] is how much each row counts, and 0 of padding."""
        weight = weight.flatten().float()
        rows = (one.detach().flatten(0, -2)[weight > 0].float() for one in (exact, actual))
        (x, given), root = rows, weight[weight > 0].sqrt()[:, None]
        self.waiting.put(x * root, given * root, root)
        self.rows += weight.sum(dtype=torch.float64).item()

    def _add(self, x: Tensor, given: Tensor, root: Tensor) -> None:
        apart = _through(self.alone, x - given)
        if not self.square.dim():
            self.square = x.new_zeros(x.shape[1], x.shape[1])
            self.short = x.new_zeros(apart.shape[1], x.shape[1])
        _add_square(self.square, given)
        self.exact = self.exact + (root.T @ x)[0].double()
        self.actual = self.actual + (root.T @ given)[0].double()
        self.short.addmm_(apart.T, given)

    def mean(self) -> Paired:
        if self.rows == 0:
            raise BadCalibration("pairs of inputs saw no rows; allowed: one or more")
        self.waiting.flush()
        exact, actual = self.exact / self.rows, self.actual / self.rows
        square, short = _whole(self.square).div_(self.rows), self.short / self.rows
        means, apart = actual.to(square), _through(self.alone, exact - actual).to(short)
        square.addr_(means, means, alpha=-1)
        short.addr_(apart, means, alpha=-1)
        return Paired(square, short, exact, actual, self.alone)


def _through(weight: Tensor | None, x: Tensor) -> Tensor:
    """What a layer makes of x [..., in], or x itself."""
    return x if weight is None else x @ weight.T.to(x)
