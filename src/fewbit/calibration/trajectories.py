"""What the transformer sees while its own pipeline draws images.

The pipeline runs as it is: its loop, its guidance, a copy of its scheduler. A hook on the
transformer keeps the few rows that were chosen, and ends the run when it has them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from hashlib import sha256
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fewbit.calibration.modes import evaluating
from fewbit.calibration.pipelines import Manner, manner_of
from fewbit.calibration.request import Calibration
from fewbit.calibration.set import CalibrationSet, count_rows, in_rows, time_per_row
from fewbit.calibration.tree import rebuild
from fewbit.errors import BadArgument, BadCalibration, BadModel

MOMENTS_PER_IMAGE = 4  # more saves time, fewer means more images


def sample(
    pipe: Any,
    *,
    samples: int = 512,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    prompts: Sequence[str] | None = None,
    batch: int = 8,
    times: int = 1,
) -> CalibrationSet:
    """`samples` rows, spread evenly over the scheduler's timesteps and over many images.

    With guidance, rows 2k and 2k + 1 are the conditional and the unconditional half of one image
    at one timestep. `steps` and `guidance` are the pipeline's own unless given; `batch` is images
    at a time and changes nothing but the last bits of floating-point sums. Where fewer than `times`
    different timesteps would be seen, that is said before anything is drawn.
    """
    manner = manner_of(pipe, Calibration(samples, prompts, steps, guidance))
    if samples % manner.halves:
        raise BadArgument(f"samples must be even, for guidance has two halves, got {samples}")
    if type(batch) is not int or batch < 1:
        raise BadArgument(f"batch must be a positive number of images, got {batch!r}")
    choice = Choice.spread(samples // manner.halves, manner.steps)
    most = min(choice.moments, manner.steps)
    if most < times:
        raise BadCalibration(
            f"{times} time groups need {times * manner.halves} samples and {times} steps or more; "
            f"{samples} samples of {manner.steps} steps allow {most}"
        )
    subjects = _draw(manner.subjects, choice.images, seed)
    kept: dict[int, dict[str, Any]] = {}
    with _borrowed(pipe, seed):
        for start in range(0, choice.images, batch):
            images = range(start, min(start + batch, choice.images))
            kept |= _Recording(manner, choice, images, seed).of(pipe, subjects)
    order = torch.randperm(choice.moments, generator=_generator(seed, "order")).tolist()
    pairs = torch.arange(choice.moments).repeat_interleave(manner.halves)
    return CalibrationSet.from_items(
        (kept.pop(moment) for moment in order),
        conditional=torch.arange(samples) % manner.halves == 0,
        pair=pairs,
    )


@dataclass(frozen=True)
class Choice:
    """Which image is looked at when. Moment m is image m mod images, at a time that grows with m.

    So every image is seen at a few moments far apart, and all timesteps equally often.
    """

    moments: int
    images: int

    @classmethod
    def spread(cls, moments: int, steps: int) -> Choice:
        return cls(moments, -(-moments // min(MOMENTS_PER_IMAGE, steps)))

    def of(self, images: Sequence[int], steps: int) -> dict[int, dict[int, int]]:
        """Step -> moment -> place of its image among `images`."""
        chosen: dict[int, dict[int, int]] = {}
        for place, image in enumerate(images):
            for moment in range(image, self.moments, self.images):
                step = (2 * moment + 1) * steps // (2 * self.moments)
                chosen.setdefault(step, {})[moment] = place
        return chosen


class _AllSeen(Exception):
    """Nothing more is wanted of this run of the pipeline."""


class _Recording:
    """One run of the pipeline for a few images."""

    def __init__(self, manner: Manner, choice: Choice, images: range, seed: int) -> None:
        self.manner, self.choice, self.images = manner, choice, images
        self.generators = [_generator(seed, image) for image in images]
        self.kept: dict[int, dict[str, Any]] = {}
        self.wanted: dict[int, dict[int, int]] | None = None
        self.step = 0

    def of(self, pipe: Any, subjects: Sequence[Any]) -> dict[int, dict[str, Any]]:
        """Moment -> the forward arguments of its one or two rows."""
        lender, pipe.scheduler = pipe.scheduler, copy.deepcopy(pipe.scheduler)
        pipe.scheduler.step = self._counting(pipe.scheduler.step)

        def look(transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.wanted is None:
                self.wanted = self.choice.of(self.images, len(pipe.scheduler.timesteps))
            names = inspect.signature(transformer.forward).parameters
            self._keep({**dict(zip(names, args, strict=False)), **kwargs})

        hook = pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
        try:
            self.manner.ask(pipe, subjects[self.images.start : self.images.stop], self.generators)
        except _AllSeen:
            return self.kept
        finally:
            hook.remove()
            pipe.scheduler = lender
        raise BadModel(
            f"{type(pipe).__name__} ended after {self.step} scheduler steps although its "
            "transformer had not been run at all of the scheduler's timesteps"
        )

    def _keep(self, forward: Mapping[str, Any]) -> None:
        assert self.wanted is not None
        for moment, place in self.wanted.pop(self.step, {}).items():
            self.kept[moment] = _rows(forward, self._halves(place, count_rows(forward)))
        if not self.wanted:
            raise _AllSeen

    def _halves(self, place: int, rows: int) -> list[int]:
        """The rows of one image, the conditional one first."""
        count = len(self.images)
        if rows != count * self.manner.halves:
            raise BadModel(
                f"the transformer was called with {rows} rows for {count} images; allowed at "
                f"guidance {self.manner.guidance:g}: {count * self.manner.halves}"
            )
        halves = [place + half * count for half in range(self.manner.halves)]
        return halves if self.manner.conditional_first else halves[::-1]

    def _counting(self, step: Any) -> Any:
        """The scheduler's step, its noise drawn from each image's own generator."""
        accepted = inspect.signature(step).parameters

        @wraps(step)  # pipelines read its signature
        def counted(
            output: Tensor, timestep: Any, latent: Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            if "generator" in accepted and kwargs.get("generator") is None:
                kwargs["generator"] = self.generators * (len(latent) // len(self.generators))
            self.step += 1
            return step(output, timestep, latent, *args, **kwargs)

        return counted


def _rows(forward: Mapping[str, Any], rows: list[int]) -> dict[str, Any]:
    """A copy of these rows alone, on the CPU."""
    total = count_rows(forward)

    def pick(path: str, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf[rows].cpu() if in_rows(path, leaf, total) else leaf.cpu()

    return rebuild(time_per_row(forward, total), pick)


def _draw(subjects: Sequence[Any], count: int, seed: int) -> list[Any]:
    """In random order, all of them before any comes again."""
    order = torch.randperm(len(subjects), generator=_generator(seed, "subjects")).tolist()
    return [subjects[order[number % len(order)]] for number in range(count)]


def _generator(seed: int, purpose: object) -> Generator:
    digest = sha256(f"{seed} {purpose}".encode()).digest()
    return Generator("cpu").manual_seed(int.from_bytes(digest[:6]))


@contextmanager
def _borrowed(pipe: Any, seed: int) -> Iterator[None]:
    """The pipeline quiet and in evaluation mode, the global generators set and then put back."""
    bar = vars(pipe).get("_progress_bar_config")
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    with torch.random.fork_rng(range(torch.cuda.device_count())), evaluating(*modules):
        torch.manual_seed(seed)
        pipe.set_progress_bar_config(disable=True)
        try:
            yield
        finally:
            pipe.maybe_free_model_hooks()
            del pipe._progress_bar_config
            if bar is not None:
                pipe._progress_bar_config = bar
