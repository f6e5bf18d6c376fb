"""What a solver is told of a layer's inputs: their second moments and a small sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from fewbit.calibration.modes import evaluating
from fewbit.calibration.moments import Paired, PairedMoments, SecondMoments
from fewbit.calibration.set import CalibrationSet
from fewbit.calibration.stream import LayerInput, Step
from fewbit.calibration.tree import map_tensors
from fewbit.errors import BadCalibration

SAMPLE_ROWS = 512
BATCH = 16  # rows in each pass through a whole model


@dataclass(frozen=True)
class InputStats:
    """Where tokens count differently, those of the sample are as loud as they count."""

    squares: Tensor  # [in], the mean of x² of each channel
    sample: Tensor  # [at most SAMPLE_ROWS, in], tokens drawn evenly over all minibatches
    summed: Callable[[], Tensor]  # the moments, made where somebody asks for them

    @classmethod
    def of(cls, moments: Tensor, sample: Tensor) -> InputStats:
        return cls(moments.diagonal(), sample, lambda: moments)

    @cached_property
    def moments(self) -> Tensor:
        """[in, in], the mean of x·xᵀ."""
        return self.summed()

    @property
    def rms(self) -> Tensor:
        """How loud each channel is."""
        return self.squares.sqrt()

    def after(self, transform: Callable[[Tensor], Tensor] | None) -> InputStats:
        """Of inputs that went through a linear map."""
        if transform is None:
            return self
        return InputStats.of(transform(transform(self.moments).T), transform(self.sample))


class Sampler:
    """A small sample of a stream of inputs; `minibatches` is how many will come."""

    def __init__(self, minibatches: int, seed: int) -> None:
        self.share = -(-SAMPLE_ROWS // minibatches)
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.drawn: list[Tensor] = []

    def update(self, x: Tensor, weight: Tensor | None) -> None:
        """Add inputs x [..., channels]; `weight` [...] is how much each token counts, 0 of
        padding."""
        rows = x.detach().flatten(0, -2)
        weight = torch.ones(len(rows)) if weight is None else weight.flatten().float().cpu()
        real = weight.nonzero()[:, 0]
        order = real[torch.randperm(len(real), generator=self.generator)[: self.share]]
        loud = weight[order].sqrt()[:, None].to(rows.device)
        self.drawn.append((rows[order.to(rows.device)] * loud).float())

    def seen(self) -> Tensor:
        return torch.cat(self.drawn)[:SAMPLE_ROWS]


class Observer:
    """Collects `InputStats` from a stream of inputs; `minibatches` is how many will come."""

    def __init__(
        self, channels: int, minibatches: int, seed: int, device: torch.device | None = None
    ) -> None:
        self.moments = SecondMoments(channels, device)
        self.sampler = Sampler(minibatches, seed)

    def update(self, x: Tensor, weight: Tensor | None) -> None:
        """Add inputs x [..., channels]; `weight` [...] is how much each token counts, 0 of
        padding."""
        self.moments.update(x, weight)
        self.sampler.update(x, weight)

    def seen(self) -> InputStats:
        return InputStats.of(self.moments.mean(), self.sampler.seen())


def observe(step: Step, widths: Mapping[str, int], seed: int) -> dict[str, InputStats]:
    """What the layers of a block see, by their paths in it; one pass over all rows."""
    observers = {
        path: Observer(width, step.minibatches, seed, step.device) for path, width in widths.items()
    }

    def receive(given: LayerInput) -> None:
        observers[given.name].update(given.x, given.mask)

    step.layer_inputs(tuple(widths), receive)
    return {path: observer.seen() for path, observer in observers.items()}


class Record:
    """All inputs of some layers of a block, as they are before the block is changed; of a layer
    that is called several times in one go, those of the first call. A step that has not advanced
    does so on the way, for the block runs only once. `importance` is how much each row of the
    calibration counts for a layer; where nothing is said, all count alike."""

    def __init__(
        self,
        step: Step,
        paths: Iterable[str],
        seed: int,
        importance: Mapping[str, Tensor] | None = None,
    ) -> None:
        paths = tuple(paths)
        self.importance = dict.fromkeys(paths, torch.ones(step.rows)) | dict(importance or {})
        self.samplers = {path: Sampler(step.minibatches, seed) for path in paths}
        self.squares = {path: torch.zeros(()) for path in paths}
        self.counted = dict.fromkeys(paths, 0.0)
        self.heard: list[dict[str, Tensor]] = []
        self.counts: list[dict[str, Tensor]] = []  # of each token, as `heard`
        for heard in step.heard(paths) if step.advanced else step.advance(paths):
            self._keep(heard)

    def _keep(self, heard: Mapping[str, LayerInput]) -> None:
        """A minibatch may pass by a layer."""
        self.heard.append({path: given.x for path, given in heard.items()})
        counts = {path: _of_tokens(one, self.importance[path]) for path, one in heard.items()}
        self.counts.append(counts)
        for path, given in heard.items():
            self.samplers[path].update(given.x, counts[path])
            squares, counted = _squares(given.x, counts[path])
            self.squares[path] = self.squares[path] + squares
            self.counted[path] += counted

    def seen(self, path: str) -> InputStats:
        squares = self.squares[path] / self._known(path)
        return InputStats(squares, self.samplers[path].seen(), partial(self._moments, path))

    def tokens(self, path: str) -> float:
        """All that a layer received."""
        return self.counted[path]

    def compare(
        self,
        step: Step,
        path: str,
        transform: Callable[[Tensor], Tensor],
        rounded: Callable[[Tensor], Tensor],
        alone: Tensor | None = None,
    ) -> Paired:
        """The recorded inputs of a layer, transformed, with what is made of those that it has in
        the block as it is now; `alone` is its transformed weight, if it alone reads them and gives
        fewer numbers than it reads."""
        moments = PairedMoments(alone)
        for before, heard in zip(self.heard, step.heard([path]), strict=True):
            if path in before and path in heard:
                exact, given = before[path].float(), heard[path]
                if exact.shape != given.x.shape:  # a router now sends other tokens to this layer
                    exact = given.x.float()
                weight = _of_tokens(given, self.importance[path])
                moments.update(transform(exact), rounded(given.x.float()), weight)
        return moments.mean()

    def _moments(self, path: str) -> Tensor:
        moments = SecondMoments(len(self.squares[path]), self.squares[path].device)
        for heard, counts in zip(self.heard, self.counts, strict=True):
            if path in heard:
                moments.update(heard[path], counts[path])
        return moments.mean()

    def _known(self, path: str) -> float:
        if self.counted[path] == 0:
            raise BadCalibration(f"layer {path} was given no tokens; allowed: one or more")
        return self.counted[path]


def _squares(x: Tensor, counts: Tensor) -> tuple[Tensor, float]:
    """The sum of x² over tokens, each as often as it counts, and the sum of the counts."""
    rows, counts = x.detach().flatten(0, -2), counts.flatten().float()
    rows = rows[counts > 0] if bool((counts == 0).any()) else rows
    squares = counts[counts > 0] @ rows.float().square()
    return squares, counts.sum(dtype=torch.float64).item()


def _of_tokens(given: LayerInput, importance: Tensor) -> Tensor:
    """How much each token counts, 0 of padding; where they do not belong to rows, all alike."""
    tokens, rows = given.x[..., 0], given.rows.indices
    counts = importance[rows.start : rows.stop].to(tokens.device)
    each, uneven = divmod(tokens.numel(), len(rows))
    if uneven:
        counts, each = counts.mean(), tokens.numel()
    counts = counts.repeat_interleave(each).view(tokens.shape)
    return counts if given.mask is None else counts * given.mask


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
