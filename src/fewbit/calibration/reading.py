"""What a text encoder is called with while its pipeline reads prompts: nothing is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn

from fewbit.calibration.call_set import CallSet
from fewbit.calibration.drawing import (
    CALIBRATION,
    AllSeen,
    Source,
    borrowed,
    by_name,
    drawn,
    generator_of,
)
from fewbit.calibration.tree import map_tensors
from fewbit.errors import BadModel
from fewbit.models import components_of
from fewbit.pipelines.asking import Manner
from fewbit.progress import Meter
from fewbit.storage.entries import Entries


@dataclass(frozen=True)
class Reading(Source):
    """Each of the prompts once, and the negative one where the pipeline encodes it."""

    manner: Manner
    samples: int  # prompts at most
    seed: int
    note: str | None = None

    def __len__(self) -> int:
        return min(self.samples, len(self.manner.subjects))

    @property
    def rows_run(self) -> int:
        return len(self) * self.manner.halves

    def draw(self, pipe: Any, kept: Entries | None = None, meter: Meter | None = None) -> CallSet:
        """Quick enough to be done again, so nothing is kept."""
        meter = Meter(show=False) if meter is None else meter
        calls: list[dict[str, Any]] = []
        subjects = drawn(self.manner.subjects, len(self), self.seed)
        with borrowed(pipe):
            torch.manual_seed(generator_of(self.seed, "prompts").initial_seed())
            for subject in meter.track(CALIBRATION, subjects, len(subjects)):
                calls += self._calls(pipe, subject)
        if not calls:
            raise BadModel(
                f"{type(pipe).__name__} did not call the forward of its {self.manner.watched} "
                "before its first step; leave it out of components"
            )
        return CallSet(tuple(_different(CallSet.from_items(calls))))

    def _calls(self, pipe: Any, subject: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []

        def look(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            forward = by_name(network, args, kwargs)
            found.append(map_tensors(forward, lambda tensor: tensor.detach().cpu().clone()))

        hook = self.manner.network(pipe).register_forward_pre_hook(look, with_kwargs=True)
        try:
            with _ended_by_the_first_step(pipe):
                self.manner.ask(pipe, [subject], [generator_of(self.seed, subject)])
        finally:
            hook.remove()
        return found


def _different(calls: CallSet) -> Iterator[dict[str, Any]]:
    """The same negative prompt comes with every prompt."""
    seen = {CallSet((call,)).fingerprint(): call for call in calls.calls}
    yield from seen.values()


@contextmanager
def _ended_by_the_first_step(pipe: Any) -> Iterator[None]:
    hooks = [one.network.register_forward_pre_hook(_end) for one in components_of(pipe)]
    try:
        yield
    except AllSeen:
        pass
    finally:
        for hook in hooks:
            hook.remove()


def _end(*_: Any) -> NoReturn:
    raise AllSeen
