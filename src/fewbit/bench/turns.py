"""Arms in turn, round after round, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

Runs = Sequence[Callable[[], object]]


@dataclass(frozen=True)
class Turn:
    """One arm: the same work on several sets of weights, and what must be active around it."""

    runs: Runs
    active: Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Times:
    """Milliseconds of each round: wall clock, and processor time of all threads."""

    wall: tuple[float, ...]
    processor: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.wall)

    @property
    def spread(self) -> float:
        """Of the rounds, in parts of the median."""
        return (max(self.wall) - min(self.wall)) / self.median

    @property
    def threads(self) -> float:
        """The most that were at work at once, on average over a round."""
        return max(p / w for p, w in zip(self.processor, self.wall, strict=True))


@dataclass(frozen=True)
class Ratio:
    """How many times faster than another arm: median, least and most over the rounds."""

    median: float
    least: float
    most: float

    @property
    def counts(self) -> bool:
        """Whether every round says the same: the ratio is larger than its spread."""
        return self.least > 1 or self.most < 1


def take_turns(
    turns: Mapping[str, Turn], rounds: int, synchronize: Callable[[], None]
) -> dict[str, Times]:
    """Each arm once a round, on its next set of weights."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for number in range(rounds):
        for name, turn in turns.items():
            run = turn.runs[number % len(turn.runs)]
            with turn.active():
                taken[name].append(_clocked(run, synchronize))
    return {
        name: Times(tuple(w for w, _ in pairs), tuple(p for _, p in pairs))
        for name, pairs in taken.items()
    }


def ratio(base: Times, arm: Times) -> Ratio:
    """Paired by round, for both have met the same machine in it."""
    each = [b / a for b, a in zip(base.wall, arm.wall, strict=True)]
    return Ratio(median(each), min(each), max(each))


def _clocked(run: Callable[[], object], synchronize: Callable[[], None]) -> tuple[float, float]:
    synchronize()
    wall, processor = time.perf_counter(), time.process_time()
    run()
    synchronize()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - processor)
