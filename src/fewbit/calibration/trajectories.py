"""What the transformer sees while its own pipeline draws images.

The pipeline runs as it is: its loop, its guidance, a copy of its scheduler. A hook on the
transformer keeps the few rows that were chosen, and ends the run when it has them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from hashlib import sha256
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fewbit.calibration.modes import evaluating
from fewbit.calibration.row_set import RowSet, count_rows, in_rows, time_per_row
from fewbit.calibration.set import CalibrationSet
from fewbit.calibration.tree import rebuild
from fewbit.errors import BadArgument, BadCalibration, BadModel
from fewbit.pipelines.asking import Manner, manner_of
from fewbit.pipelines.request import Calibration
from fewbit.progress import Meter
from fewbit.storage.entries import Entries, Entry

CALIBRATION = "calibration"  # what the phase is called
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
    return Sampling.of(manner, samples, seed, batch, times).draw(pipe)


@dataclass(frozen=True)
class Sampling:
    """All that decides which rows a pipeline gives, settled before anything is drawn."""

    manner: Manner
    choice: Choice
    seed: int
    batch: int  # images at a time

    @classmethod
    def of(
        cls, manner: Manner, samples: int, seed: int = 0, batch: int = 8, times: int = 1
    ) -> Sampling:
        if samples % manner.halves:
            raise BadArgument(f"samples must be even, for guidance has two halves, got {samples}")
        if type(batch) is not int or batch < 1:
            raise BadArgument(f"batch must be a positive number of images, got {batch!r}")
        choice = Choice.spread(samples // manner.halves, manner.steps)
        most = min(choice.moments, manner.steps)
        if most < times:
            raise BadCalibration(
                f"{times} time groups need {times * manner.halves} samples and {times} steps or "
                f"more; {samples} samples of {manner.steps} steps allow {most}"
            )
        return cls(manner, choice, seed, batch)

    def __len__(self) -> int:
        return self.choice.moments * self.manner.halves

    @property
    def rows_run(self) -> int:
        """Rows that go through the transformer while the images are drawn."""
        return self.choice.images * self.manner.steps * self.manner.halves

    def fingerprint(self) -> str:
        """SHA-256 of all that the rows depend on beside the pipeline."""
        return sha256(repr(self).encode()).hexdigest()

    def draw(
        self, pipe: Any, kept: Entries | None = None, meter: Meter | None = None
    ) -> CalibrationSet:
        """Each batch of images is kept when it is drawn, and is not drawn again."""
        images = range(self.choice.images)
        meter = Meter(show=False) if meter is None else meter
        meter.begin(CALIBRATION, len(images))
        moments: dict[int, dict[str, Any]] = {}
        with _borrowed(pipe):
            for start in images[:: self.batch]:
                moments |= self._batch(pipe, images[start : start + self.batch], kept, meter)
        order = torch.randperm(self.choice.moments, generator=_generator(self.seed, "order"))
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

        subjects = _draw(self.manner.subjects, self.choice.images, self.seed)
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
        self.generators = [_generator(seed, image) for image in images]
        self.global_seed = _generator(seed, f"images from {images.start}").initial_seed()
        self.kept: dict[int, dict[str, Any]] = {}
        self.wanted: dict[int, dict[int, int]] | None = None
        self.step = 0

    def of(self, pipe: Any, subjects: Sequence[Any]) -> dict[int, dict[str, Any]]:
        """Moment -> the forward arguments of its one or two rows."""
        lender, pipe.scheduler = pipe.scheduler, copy.deepcopy(pipe.scheduler)
        pipe.scheduler.step = self._counting(pipe.scheduler)

        def look(transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.wanted is None:
                self.wanted = self.choice.of(self.images, len(pipe.scheduler.timesteps))
            names = inspect.signature(transformer.forward).parameters
            self._keep({**dict(zip(names, args, strict=False)), **kwargs})

        torch.manual_seed(self.global_seed)  # the batches before may not have been drawn
        hook = pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
        try:
            self.manner.ask(pipe, subjects, self.generators)
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

    def _counting(self, scheduler: Any) -> Any:
        """The scheduler's step, its noise drawn from each image's own generator."""
        step = scheduler.step
        accepted = inspect.signature(step).parameters

        @wraps(step)  # pipelines read its signature
        def counted(
            output: Tensor, timestep: Any, latent: Tensor, *args: Any, **kwargs: Any
        ) -> Any:
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


def _draw(subjects: Sequence[Any], count: int, seed: int) -> list[Any]:
    """In random order, all of them before any comes again."""
    order = torch.randperm(len(subjects), generator=_generator(seed, "subjects")).tolist()
    return [subjects[order[number % len(order)]] for number in range(count)]


def _generator(seed: int, purpose: object) -> Generator:
    digest = sha256(f"{seed} {purpose}".encode()).digest()
    return Generator("cpu").manual_seed(int.from_bytes(digest[:6]))


@contextmanager
def _borrowed(pipe: Any) -> Iterator[None]:
    """The pipeline quiet and in evaluation mode, the global generators put back afterwards."""
    bar = vars(pipe).get("_progress_bar_config")
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    with torch.random.fork_rng(range(torch.cuda.device_count())), evaluating(*modules):
        pipe.set_progress_bar_config(disable=True)
        try:
            yield
        finally:
            pipe.maybe_free_model_hooks()
            del pipe._progress_bar_config
            if bar is not None:
                pipe._progress_bar_config = bar
