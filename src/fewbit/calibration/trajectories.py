"""What a transformer sees while its own pipeline draws images.

The pipeline runs as it is: its loop, its guidance, a copy of its scheduler. A hook on the
transformer keeps the few rows that were chosen, and ends the run when it has them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.calibration.drawing import (
    CALIBRATION,
    AllSeen,
    Choice,
    Source,
    borrowed,
    by_name,
    drawn,
    generator_of,
)
from fewbit.calibration.reading import Reading
from fewbit.calibration.recording import Recording
from fewbit.calibration.row_set import RowSet, count_rows, in_rows, time_per_row
from fewbit.calibration.set import CalibrationSet
from fewbit.calibration.tree import rebuild
from fewbit.errors import BadArgument, BadCalibration, BadModel
from fewbit.models import denoises
from fewbit.pipelines.asking import EMBEDDED, Enough, Manner, manner_of
from fewbit.pipelines.request import Calibration
from fewbit.progress import Meter
from fewbit.storage.entries import Entries, Entry

AS_USUAL = Calibration()


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
    component: str = "transformer",
    call: Mapping[str, Any] | None = None,
) -> CalibrationSet:
    """`samples` rows, spread evenly over the scheduler's timesteps and over many images.

    With guidance, rows 2k and 2k + 1 are the conditional and the unconditional half of one image
    at one timestep. `steps` and `guidance` are the pipeline's own unless given; `batch` is images
    at a time and changes nothing but the last bits of floating-point sums. Where fewer than `times`
    different timesteps would be seen, that is said before anything is drawn. `component` is the
    name of the network that is watched; one that encodes prompts sees as many as there are.
    """
    asked = Calibration(samples, prompts, steps, guidance, call or {})
    manner = manner_of(pipe, asked, component)
    if not denoises(component):
        return Reading(manner, samples, seed).draw(pipe)
    return Sampling.of(manner, samples, seed, batch, times, asked).draw(pipe)


@dataclass(frozen=True)
class Sampling(Source):
    """All that decides which rows a pipeline gives, settled before anything is drawn."""

    manner: Manner
    choice: Choice
    seed: int
    batch: int  # images at a time
    calls: Recording  # in the place of rows, where the transformer's calls have none to be cut
    note: str | None = None  # what a user would not expect

    @classmethod
    def of(
        cls,
        manner: Manner,
        samples: int,
        seed: int = 0,
        batch: int = 8,
        times: int = 1,
        asked: Calibration = AS_USUAL,
        note: str | None = None,
    ) -> Sampling:
        """asked: the wishes that manner and samples were made of; note: what to tell of them."""
        if samples % manner.halves:
            raise BadArgument(f"samples must be even, for guidance has two halves, got {samples}")
        if type(batch) is not int or batch < 1:
            raise BadArgument(f"batch must be a positive number of images, got {batch!r}")
        batch = 1 if EMBEDDED in manner.call else batch
        choice = Choice.spread(samples // manner.halves, manner.steps)
        most = min(choice.moments, manner.steps)
        if most < times:
            raise BadCalibration(
                f"{times} time groups need {times * manner.halves} samples and {times} steps or "
                f"more; {samples} samples of {manner.steps} steps allow {most}"
            )
        recording = Recording.of(manner, samples, seed, times, asked)
        return cls(manner, choice, seed, batch, recording, note)

    def __len__(self) -> int:
        return self.choice.moments * self.manner.halves

    @property
    def rows_run(self) -> int:
        """Rows that go through the transformer while the images are drawn."""
        return self.choice.images * self.manner.steps * self.manner.halves

    def draw(
        self, pipe: Any, kept: Entries | None = None, meter: Meter | None = None
    ) -> CalibrationSet:
        """Each batch of images is kept when it is drawn, and is not drawn again."""
        meter = Meter(show=False) if meter is None else meter
        with borrowed(pipe):
            try:
                return self._rows(pipe, kept, meter)
            except NoRows:
                return self.calls.draw(pipe, kept, meter)

    def _rows(self, pipe: Any, kept: Entries | None, meter: Meter) -> CalibrationSet:
        images = range(self.choice.images)
        meter.begin(CALIBRATION, len(images))
        moments: dict[int, dict[str, Any]] = {}
        for start in images[:: self.batch]:
            moments |= self._batch(pipe, images[start : start + self.batch], kept, meter)
        order = torch.randperm(self.choice.moments, generator=generator_of(self.seed, "order"))
        return RowSet.from_items(
            (moments.pop(moment) for moment in order.tolist()),
            conditional=torch.arange(len(self)) % self.manner.halves == 0,
            pair=torch.arange(self.choice.moments).repeat_interleave(self.manner.halves),
        )

    def _batch(
        self, pipe: Any, images: range, kept: Entries | None, meter: Meter
    ) -> dict[int, dict[str, Any]]:
        """Moment -> the forward arguments of its one or two rows."""
        name = f"samples-{images.start:06}"
        known = None if kept is None else kept.read(name)
        if known is not None:
            meter.reach(images.stop, found=True)
            return _unpacked(known)

        def watch(share: float) -> None:
            meter.reach(images.start + share * len(images))

        subjects = drawn(self.manner.subjects, self.choice.images, self.seed)
        recording = _Recording(self.manner, self.choice, images, self.seed, watch)
        moments = recording.of(pipe, subjects[images.start : images.stop])
        if kept is not None:
            kept.write(name, _packed(moments))
        meter.reach(images.stop)
        return moments


def _packed(moments: Mapping[int, Mapping[str, Any]]) -> Entry:
    entry = RowSet.from_items(moments.values()).to_entry()
    return Entry(entry.tensors, {**entry.table, "moments": list(moments)})


def _unpacked(entry: Entry) -> dict[int, dict[str, Any]]:
    rows, moments = RowSet.from_entry(entry), entry.table["moments"]
    return dict(zip(moments, rows.batches(len(rows) // len(moments)), strict=True))


class NoRows(Enough):
    """The transformer's calls are not made of rows, one for each image and half of the guidance."""


class _Recording:
    """One run of the pipeline for a few images."""

    def __init__(
        self,
        manner: Manner,
        choice: Choice,
        images: range,
        seed: int,
        watch: Callable[[float], None],
    ) -> None:
        """`watch` is told what share of the scheduler's steps is done."""
        self.manner, self.choice, self.images, self.watch = manner, choice, images, watch
        self.generators = [generator_of(seed, image) for image in images]
        self.global_seed = generator_of(seed, f"images from {images.start}").initial_seed()
        self.kept: dict[int, dict[str, Any]] = {}
        self.wanted: dict[int, dict[int, int]] | None = None
        self.step = 0
        self.seen: set[int] = set()  # steps at which the network was called

    def of(self, pipe: Any, subjects: Sequence[Any]) -> dict[int, dict[str, Any]]:
        """Moment -> the forward arguments of its one or two rows."""
        lender, pipe.scheduler = pipe.scheduler, copy.deepcopy(pipe.scheduler)
        pipe.scheduler.step = self._counting(pipe)

        def look(transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._choose(pipe)
            forward = by_name(transformer, args, kwargs)
            if self.step in self.seen or not (self.kept or self._has_rows(forward)):
                raise NoRows  # halves may come in calls of their own
            self.seen.add(self.step)
            self._keep(forward)

        torch.manual_seed(self.global_seed)  # the batches before may not have been drawn
        network = self.manner.network(pipe)
        hook = network.register_forward_pre_hook(look, with_kwargs=True)
        try:
            self.manner.ask(pipe, subjects, self.generators)
        except AllSeen:
            return self.kept
        finally:
            hook.remove()
            pipe.scheduler = lender
        if self.wanted == {}:
            return self.kept
        raise BadModel(
            f"{type(pipe).__name__} ended after {self.step} scheduler steps although its "
            f"{self.manner.watched} had not been run at all of the scheduler's timesteps"
        )

    def _choose(self, pipe: Any) -> None:
        """Once the scheduler is set."""
        if self.wanted is None:
            self.wanted = self.choice.of(self.images, self.manner.steps_of(pipe))

    def _keep(self, forward: Mapping[str, Any]) -> None:
        assert self.wanted is not None
        for moment, place in self.wanted.pop(self.step, {}).items():
            self.kept[moment] = _rows(forward, self._halves(place))

    def _has_rows(self, forward: Mapping[str, Any]) -> bool:
        """As many as images and halves, and nothing in lists whose order nobody knows."""
        listed = (value for value in forward.values() if isinstance(value, list))
        rows = len(self.images) * self.manner.halves
        return count_rows(forward) == rows and not any(map(len, listed))

    def _halves(self, place: int) -> list[int]:
        """The rows of one image, the conditional one first."""
        count = len(self.images)
        halves = [place + half * count for half in range(self.manner.halves)]
        return halves if self.manner.conditional_first else halves[::-1]

    def _counting(self, pipe: Any) -> Any:
        """The scheduler's step, its noise drawn from each image's own generator."""
        scheduler = pipe.scheduler
        step = scheduler.step
        accepted = inspect.signature(step).parameters

        @wraps(step)  # pipelines read its signature
        def counted(
            output: Tensor, timestep: Any, latent: Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            self._choose(pipe)
            if not self.wanted:
                raise AllSeen
            if "generator" in accepted and kwargs.get("generator") is None:
                kwargs["generator"] = self.generators * (len(latent) // len(self.generators))
            self.step += 1
            self.watch(self.step / len(scheduler.timesteps))
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
