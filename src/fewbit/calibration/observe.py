"""What a solver is told of a layer's inputs: their second moments and a small sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fewbit.calibration.modes import evaluating
from fewbit.calibration.moments import Paired, PairedMoments, SecondMoments
from fewbit.calibration.set import CalibrationSet
from fewbit.calibration.stream import LayerInput, Step
from fewbit.calibration.tree import map_tensors

SAMPLE_ROWS = 512
BATCH = 16  # rows in each pass through a whole model


@dataclass(frozen=True)
class InputStats:
    """Where tokens count differently, those of the sample are as loud as they count."""

    moments: Tensor  # [in, in], the mean of x·xᵀ
    sample: Tensor  # [at most SAMPLE_ROWS, in], tokens drawn evenly over all minibatches

    @property
    def rms(self) -> Tensor:
        """How loud each channel is."""
        return self.moments.diagonal().sqrt()

    def after(self, transform: Callable[[Tensor], Tensor] | None) -> InputStats:
        """Of inputs that went through a linear map."""
        if transform is None:
            return self
        return InputStats(transform(transform(self.moments).T), transform(self.sample))


class Observer:
    """Collects `InputStats` from a stream of inputs; `minibatches` is how many will come."""

    def __init__(
        self, channels: int, minibatches: int, seed: int, device: torch.device | None = None
    ) -> None:
        self.moments = SecondMoments(channels, device)
        self.share = -(-SAMPLE_ROWS // minibatches)
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.drawn: list[Tensor] = []

    def update(self, x: Tensor, weight: Tensor | None) -> None:
        """Add inputs x [..., channels]; `weight` [...] is how much each token counts, 0 of
        padding."""
        self.moments.update(x, weight)
        rows = x.detach().flatten(0, -2)
        if weight is not None:
            weight = weight.flatten().float()
            rows = (rows * weight.sqrt()[:, None])[weight > 0]
        order = torch.randperm(len(rows), generator=self.generator)[: self.share]
        self.drawn.append(rows[order.to(rows.device)].float())

    def seen(self) -> InputStats:
        sample = torch.cat(self.drawn)[:SAMPLE_ROWS]
        return InputStats(self.moments.mean(), sample)


def observe(step: Step, widths: Mapping[str, int], seed: int) -> dict[str, InputStats]:
    """What the layers of a block see, by their paths in it; one pass over all rows."""
    observers = _observers(step, widths, seed)

    def receive(given: LayerInput) -> None:
        observers[given.name].update(given.x, given.mask)

    step.layer_inputs(tuple(widths), receive)
    return {path: observer.seen() for path, observer in observers.items()}


class Record:
    """All inputs of some layers of a block, as they are before the block is changed; of a layer
    that is called several times in one go, those of the first call. `importance` is how much each
    row of the calibration counts for a layer; where nothing is said, all count alike."""

    def __init__(
        self,
        step: Step,
        widths: Mapping[str, int],
        seed: int,
        importance: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.observers = _observers(step, widths, seed)
        self.importance = dict.fromkeys(widths, torch.ones(step.rows)) | dict(importance or {})
        self.heard = list(map(self._heard, step.heard(tuple(widths))))

    def _heard(self, heard: Mapping[str, LayerInput]) -> dict[str, Tensor]:
        """A minibatch may pass by a layer."""
        for path, given in heard.items():
            self.observers[path].update(given.x, _of_tokens(given, self.importance[path]))
        return {path: given.x for path, given in heard.items()}

    def seen(self, path: str) -> InputStats:
        return self.observers[path].seen()

    def tokens(self, path: str) -> float:
        """All that a layer received."""
        return self.observers[path].moments.rows

    def compare(
        self,
        step: Step,
        path: str,
        transform: Callable[[Tensor], Tensor],
        rounded: Callable[[Tensor], Tensor],
    ) -> Paired:
        """The recorded inputs of a layer, transformed, with what is made of those that it has in
        the block as it is now."""
        moments = PairedMoments()
        for before, heard in zip(self.heard, step.heard([path]), strict=True):
            if path in before and path in heard:
                exact, given = before[path].float(), heard[path]
                if exact.shape != given.x.shape:  # a router now sends other tokens to this layer
                    exact = given.x.float()
                weight = _of_tokens(given, self.importance[path])
                moments.update(transform(exact), rounded(given.x.float()), weight)
        return moments.mean()


def _of_tokens(given: LayerInput, importance: Tensor) -> Tensor:
    """How much each token counts, 0 of padding; where they do not belong to rows, all alike."""
    tokens, rows = given.x[..., 0], given.rows.indices
    counts = importance[rows.start : rows.stop].to(tokens.device)
    each, uneven = divmod(tokens.numel(), len(rows))
    if uneven:
        counts, each = counts.mean(), tokens.numel()
    counts = counts.repeat_interleave(each).view(tokens.shape)
    return counts if given.mask is None else counts * given.mask


def _observers(step: Step, widths: Mapping[str, int], seed: int) -> dict[str, Observer]:
    return {
        path: Observer(width, step.minibatches, seed, step.device) for path, width in widths.items()
    }


@torch.no_grad()
def mean_squares(
    model: nn.Module, layers: Mapping[str, nn.Module], data: CalibrationSet
) -> dict[str, Tensor]:
    """The mean square of every channel that each of the layers reads, float32 [in], over all rows;
    one pass through the whole model."""
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    rows: Counter[str] = Counter()

    def listen(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].float().flatten(0, -2)
        sums[name] = sums.get(name, 0) + x.square().sum(0)
        rows[name] += len(x)

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(partial(listen, name)).remove)
        for inputs in data.batches(BATCH):
            model(**map_tensors(inputs, lambda tensor: tensor.to(device)))
    return {name: total / rows[name] for name, total in sums.items()}
