"""What a solver is told of a layer's inputs: their second moments and a small sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.calibration.moments import SecondMoments
from fewbit.calibration.stream import LayerInput, Step

SAMPLE_ROWS = 512


@dataclass(frozen=True)
class Seen:
    moments: Tensor  # [in, in], the mean of x·xᵀ
    sample: Tensor  # [at most SAMPLE_ROWS, in], tokens drawn evenly over all minibatches

    @property
    def rms(self) -> Tensor:
        """How loud each channel is."""
        return self.moments.diagonal().sqrt()

    def after(self, transform: Callable[[Tensor], Tensor] | None) -> Seen:
        """Of inputs that went through a linear map."""
        if transform is None:
            return self
        return Seen(transform(transform(self.moments).T), transform(self.sample))


class Observer:
    """Collects `Seen` from a stream of inputs; `minibatches` is how many will come."""

    def __init__(
        self, channels: int, minibatches: int, seed: int, device: torch.device | None = None
    ) -> None:
        self.moments = SecondMoments(channels, device)
        self.share = -(-SAMPLE_ROWS // minibatches)
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.drawn: list[Tensor] = []

    def update(self, x: Tensor, mask: Tensor | None) -> None:
        self.moments.update(x, mask)
        rows = x.detach().flatten(0, -2)
        if mask is not None:
            rows = rows[mask.flatten() > 0]
        order = torch.randperm(len(rows), generator=self.generator)[: self.share]
        self.drawn.append(rows[order.to(rows.device)].float())

    def seen(self) -> Seen:
        sample = torch.cat(self.drawn)[:SAMPLE_ROWS]
        return Seen(self.moments.mean(), sample)


def observe(step: Step, widths: Mapping[str, int], seed: int) -> dict[str, Seen]:
    """What the layers of a block see, by their paths in it; one pass over all rows."""
    observers = {
        path: Observer(width, step.minibatches, seed, step.device) for path, width in widths.items()
    }

    def receive(given: LayerInput) -> None:
        observers[given.name].update(given.x, given.mask)

    step.layer_inputs(tuple(widths), receive)
    return {path: observer.seen() for path, observer in observers.items()}
