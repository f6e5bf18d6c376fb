"""What a transformer is called with while its own pipeline draws, call by call.

For pipelines whose calls cannot be cut into rows: guidance by separate calls, lists of latents,
position tables, videos, images to be edited. They draw one subject after the other in a few steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import nn

from fewbit.calibration.call_set import CallSet
from fewbit.calibration.drawing import (
    CALIBRATION,
    AllSeen,
    Choice,
    by_name,
    drawn,
    generator_of,
)
from fewbit.calibration.tree import map_tensors
from fewbit.errors import BadModel
from fewbit.pipelines.asking import Manner
from fewbit.pipelines.request import Calibration
from fewbit.progress import Meter
from fewbit.storage.entries import Entries

CALLS = 64
STEPS = 12  # enough for the time groups of tq-dit


@dataclass(frozen=True)
class Recording:
    """All that decides which calls a pipeline gives."""

    manner: Manner
    choice: Choice
    seed: int

    @classmethod
    def of(
        cls, manner: Manner, samples: int, seed: int, times: int, asked: Calibration
    ) -> Recording:
        """Calls and steps as they are asked for, else few."""
        steps = asked.steps or min(manner.steps, max(STEPS, times))
        few = replace(manner, steps=steps)
        calls = asked.samples or min(samples, CALLS)
        moments = max(calls // manner.halves, min(times, steps))
        return cls(few, Choice.spread(moments, steps), seed)

    def draw(self, pipe: Any, kept: Entries | None, meter: Meter) -> CallSet:
        """Each image is kept when it is drawn, and is not drawn again."""
        images = range(self.choice.images)
        meter.begin(CALIBRATION, len(images))
        subjects = drawn(self.manner.subjects, len(images), self.seed)
        calls: list[dict[str, Any]] = []
        for image in images:
            calls += self._calls(pipe, image, subjects[image], kept).calls
            meter.reach(image + 1)
        order = torch.randperm(len(calls), generator=generator_of(self.seed, "order"))
        return CallSet(tuple(calls[number] for number in order.tolist()))

    def _calls(self, pipe: Any, image: int, subject: Any, kept: Entries | None) -> CallSet:
        name = f"calls-{image:06}"
        known = None if kept is None else kept.read(name)
        if known is not None:
            return CallSet.from_entry(known)
        found = CallSet.from_items(self._recorded(pipe, image, subject))
        if kept is not None:
            kept.write(name, found.to_entry())
        return found

    def _recorded(self, pipe: Any, image: int, subject: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        lender, pipe.scheduler = pipe.scheduler, copy.deepcopy(pipe.scheduler)
        count = _Count(pipe.scheduler)
        pipe.scheduler.step = count.counted(lambda: self._last(pipe, image))

        def look(transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if count.step in self._wanted(pipe, image):
                forward = by_name(transformer, args, kwargs)
                found.append(map_tensors(forward, lambda tensor: tensor.detach().cpu().clone()))

        generator = generator_of(self.seed, image)
        torch.manual_seed(generator_of(self.seed, f"calls of {image}").initial_seed())
        network = self.manner.network(pipe)
        hook = network.register_forward_pre_hook(look, with_kwargs=True)
        try:
            self.manner.ask(pipe, [subject], [generator])
        except AllSeen:
            pass
        finally:
            hook.remove()
            pipe.scheduler = lender
        if not found:
            raise BadModel(
                f"{type(pipe).__name__} drew an image without running its {self.manner.watched} at "
                "one of the steps that were chosen; give calibration=[{...}, ...], dicts of its "
                "forward"
            )
        return found

    def _wanted(self, pipe: Any, image: int) -> set[int]:
        """Steps of the scheduler whose calls are kept."""
        return set(self.choice.of([image], self.manner.steps_of(pipe)))

    def _last(self, pipe: Any, image: int) -> int:
        return max(self._wanted(pipe, image), default=0)


class _Count:
    """The steps that a scheduler has made."""

    def __init__(self, scheduler: Any) -> None:
        self.inner, self.step = scheduler.step, 0

    def counted(self, last: Callable[[], int]) -> Callable[..., Any]:
        """The scheduler's step, which ends the run when the last that is wanted is over."""

        @wraps(self.inner)  # pipelines read its signature
        def step(*args: Any, **kwargs: Any) -> Any:
            self.step += 1
            if self.step > last():
                raise AllSeen
            return self.inner(*args, **kwargs)

        return step
