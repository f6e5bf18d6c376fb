"""What quantized weights are trained on: inputs, and what was given for them in full precision.

Of a block, inputs come from the stream that has gone through the quantized blocks, targets from the
one that has not. Minibatches are shuffled, the two halves of the guidance kept together, and an
error counts as a share of what is given at its timestep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from fewbit.calibration.pool import CallPool, Example, RowPool
from fewbit.calibration.replay import Arguments
from fewbit.calibration.stream import BlockStream, Step


@dataclass(frozen=True)
class Minibatch:
    """Rows in one example, or calls that cannot be joined, an example each."""

    examples: Sequence[Example]

    def loss(self, forward: Callable[..., Any]) -> Tensor:
        losses = [one.loss(forward(*one.args, **one.kwargs)) for one in self.examples]
        return torch.stack(losses).mean()


class Reconstruction:
    """Minibatches out of a pool."""

    def __init__(
        self, pool: RowPool | CallPool, together: Sequence[Sequence[int]], device: torch.device
    ) -> None:
        """together: members of the pool that are always in one minibatch."""
        self.pool, self.together, self.device = pool, together, device

    @classmethod
    def of_block(cls, step: Step, exact: Step) -> Reconstruction:
        """`exact` is the block's step, already advanced, in the full-precision stream."""
        arguments = ((call.args, call.kwargs) for call in step.inputs())
        return cls._of(step.stream, arguments, exact.given(), step.index)

    @classmethod
    def of_model(cls, exact: BlockStream) -> Reconstruction:
        """`exact` has gone through the full-precision blocks."""
        arguments = (((), inputs) for inputs in exact.inputs())
        return cls._of(exact, arguments, exact.results(), len(exact.blocks))

    @classmethod
    def _of(
        cls, stream: BlockStream, arguments: Iterable[Arguments], outputs: Iterable[Any], index: int
    ) -> Reconstruction:
        rows, device = stream.rows_of(index), stream.device_of(index)
        if rows is not None:
            rows_pool = RowPool(arguments, outputs, rows, stream.times)
            return cls(rows_pool, _together(stream.data.pair, len(rows_pool)), device)
        calls = CallPool(arguments, outputs, stream.mean_times())
        return cls(calls, _together(None, len(calls)), device)

    def minibatches(self, steps: int, size: int, seed: int) -> Iterator[Minibatch]:
        """`steps` of about `size` rows each; no row comes twice before all have come."""
        generator = Generator("cpu").manual_seed(seed)
        groups = len(self.together)
        each = min(max(size * groups // self.pool.rows, 1), groups)
        waiting: list[int] = []
        for _ in range(steps):
            if len(waiting) < each:
                waiting += torch.randperm(groups, generator=generator).tolist()
            chosen, waiting = waiting[:each], waiting[each:]
            rows = [row for group in chosen for row in self.together[group]]
            yield Minibatch(self.pool.take(rows, self.device))


def _together(pair: Tensor | None, rows: int) -> list[list[int]]:
    """Rows that are always in one minibatch."""
    if pair is None:
        return [[row] for row in range(rows)]
    return [(pair == one).nonzero()[:, 0].tolist() for one in pair.unique()]
