"""A pipeline borrowed for its trajectories: which images are looked at when, from which noise."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Generator, nn

from fewbit.calibration.modes import evaluating

CALIBRATION = "calibration"  # what the phase is called
MOMENTS_PER_IMAGE = 4  # more saves time, fewer means more images


class AllSeen(Exception):
    """Nothing more is wanted of this run of the pipeline."""


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


def by_name(
    transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a forward as keywords."""
    names = inspect.signature(transformer.forward).parameters
    return {**dict(zip(names, args, strict=False)), **kwargs}
