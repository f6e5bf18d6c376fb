"""A pipeline borrowed for its trajectories: which images are looked at when, from which noise."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Generator, nn

from fewbit.calibration.modes import evaluating
from fewbit.calibration.set import CalibrationSet
from fewbit.pipelines.asking import Enough, Manner
from fewbit.pipelines.quiet import without_bar
from fewbit.progress import Meter
from fewbit.storage.entries import Entries

CALIBRATION = "calibration"  # what the phase is called
MOMENTS_PER_IMAGE = 4  # more saves time, fewer means more images


class AllSeen(Enough):
    """What was chosen is kept."""


class Source(ABC):
    """How a pipeline is to give calibration data, settled before anything is drawn."""

    manner: Manner
    note: str | None  # what a user would not expect

    @abstractmethod
    def __len__(self) -> int:
        """Rows of the data."""

    @property
    @abstractmethod
    def rows_run(self) -> int:
        """Rows that go through the watched network while the pipeline runs."""

    @abstractmethod
    def draw(
        self, pipe: Any, kept: Entries | None = None, meter: Meter | None = None
    ) -> CalibrationSet:
        """Each part is kept when it is drawn, and is not drawn again."""

    def fingerprint(self) -> str:
        """SHA-256 of all that the data depend on beside the pipeline."""
        return sha256(repr(self).encode()).hexdigest()


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

    def of(self, images: Sequence[int], steps: Sequence[int]) -> dict[int, dict[int, int]]:
        """Step -> moment -> place of its image among `images`; `steps` can be chosen."""
        chosen: dict[int, dict[int, int]] = {}
        for place, image in enumerate(images):
            for moment in range(image, self.moments, self.images):
                number = (2 * moment + 1) * len(steps) // (2 * self.moments)
                chosen.setdefault(steps[number], {})[moment] = place
        return chosen


def drawn(subjects: Sequence[Any], count: int, seed: int) -> list[Any]:
    """In random order, all of them before any comes again."""
    order = torch.randperm(len(subjects), generator=generator_of(seed, "subjects")).tolist()
    return [subjects[order[number % len(order)]] for number in range(count)]


def generator_of(seed: int, purpose: object) -> Generator:
    digest = sha256(f"{seed} {purpose}".encode()).digest()
    return Generator("cpu").manual_seed(int.from_bytes(digest[:6]))


@contextmanager
def borrowed(pipe: Any) -> Iterator[None]:
    """The pipeline quiet and in evaluation mode, the global generators put back afterwards."""
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    forked = torch.random.fork_rng(range(torch.cuda.device_count()))
    with forked, evaluating(*modules), without_bar(pipe):
        try:
            yield
        finally:
            pipe.maybe_free_model_hooks()


def by_name(
    transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a forward as keywords."""
    names = inspect.signature(transformer.forward).parameters
    return {**dict(zip(names, args, strict=False)), **kwargs}
