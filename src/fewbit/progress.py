"""Progress with an ETA: one rewritten line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TextIO, TypeVar

from fewbit.errors import printable

T = TypeVar("T")
Track = Callable[[Sequence[range]], Iterable[range]]  # gives minibatches again, and shows how far
QUIET_SECONDS = 2.0  # work shorter than this shows nothing
LINE_SECONDS = 10.0  # how often a line is written when it is not a terminal
LOG = logging.getLogger("fewbit")
LOG.addHandler(logging.NullHandler())  # silent until a program routes it


def track(
    items: Iterable[T], label: str, total: int, show: bool = True, stream: TextIO | None = None
) -> Iterator[T]:
    """The items again; how far we are and how long it will take goes to standard error."""
    with Meter("", show, stream) as meter:
        yield from meter.track(label, items, total)


@dataclass(frozen=True)
class Progress:
    """How far a work is, as a callback is told.

    Attributes:
        work: What is done, such as `hq-dit:w4a4`.
        phase: The part of it that is under way, such as `calibration`.
        done: How many steps of the phase are done.
        steps: How many it has.
        seconds: The time since the work began.
        left: The time that all phases still need; None until something was measured.
    """

    work: str
    phase: str
    done: float
    steps: int
    seconds: float
    left: float | None


@dataclass
class Phase:
    """A part of a long work, in steps of equal length.

    Until one of them was measured the whole phase is taken to last `seconds`, and what `work` takes
    in the phases before, in a unit they share.
    """

    name: str
    work: float = 0.0
    seconds: float = 0.0
    steps: int = 1
    done: float = 0.0
    measured: float = 0.0  # of what is done: the rest was found done by an earlier run
    took: float = 0.0  # seconds, for what was measured

    def left(self, pace: float) -> float:
        """Seconds, where a unit of work takes `pace`."""
        whole = self.seconds + self.work * pace
        each = self.took / self.measured if self.measured else whole / self.steps
        return each * (self.steps - self.done)


class Meter:
    """Phases one after the other, and the time that all of them together still need.

    It is shown on a stream, told to a callback at every step, and logged as "fewbit".
    """

    def __init__(
        self,
        label: str = "",
        show: bool = True,
        stream: TextIO | None = None,
        tell: Callable[[Progress], object] | None = None,
    ) -> None:
        self.label, self.show, self.stream = printable(label), show, stream or sys.stderr
        self.tell = tell
        self.phases: dict[str, Phase] = {}
        self.phase: Phase | None = None
        self.part = ""  # of the work, to which the phases belong
        self.start = self.last_line = self.last_log = self.last_step = time.monotonic()
        self.wrote = False

    def expect(self, name: str, work: float = 0.0, seconds: float = 0.0) -> None:
        """A phase to come, for the estimate of those before it."""
        name = self._named(name)
        self.phases[name] = Phase(name, work, seconds)

    def begin(self, name: str, steps: int) -> None:
        """The phase before, if there was one, has ended."""
        name = self._named(name)
        if self.phase is not None:
            self.phase.done = self.phase.steps
        self.phase = self.phases.setdefault(name, Phase(name))
        self.phase.steps, self.phase.done = steps, 0.0
        self.last_step = time.monotonic()
        LOG.info("%s", self._where())
        self._tell()
        self._line()

    @contextmanager
    def inside(self, part: str) -> Iterator[None]:
        """Phases belong to a part of the work that has a name, unless it is the whole."""
        self.part = part
        try:
            yield
        finally:
            self.part = ""

    def track(self, name: str, items: Iterable[T], steps: int) -> Iterator[T]:
        """The items again, each of them a step of this phase."""
        self.begin(name, steps)
        for done, item in enumerate(items, 1):
            yield item
            self.reach(done)

    def reach(self, done: float, found: bool = False) -> None:
        """So many steps of the phase are done; `found` if an earlier run has done these last."""
        assert self.phase is not None
        now = time.monotonic()
        if not found:
            self.phase.measured += done - self.phase.done
            self.phase.took += now - self.last_step
        self.phase.done, self.last_step = done, now
        self._tell()
        if done < self.phase.steps:
            self._line()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.wrote:
            if kind is None:
                self._write(f"{self._where()} in {clock(time.monotonic() - self.start)}")
            if self.stream.isatty():
                self.stream.write("\n")

    def _named(self, phase: str) -> str:
        return f"{self.part}, {phase}" if self.part else phase

    def _line(self) -> None:
        now = time.monotonic()
        pause = 0.1 if self.stream.isatty() else LINE_SECONDS
        if self.show and now - self.start >= QUIET_SECONDS and now - self.last_line >= pause:
            self.last_line = now
            self._write(self._text())
        if now - self.last_log >= LINE_SECONDS:
            self.last_log = now
            LOG.info("%s", self._text())

    def _tell(self) -> None:
        phase = self.phase
        if self.tell is not None and phase is not None:
            seconds = time.monotonic() - self.start
            told = self.label, phase.name, phase.done, phase.steps, seconds, self._left()
            self.tell(Progress(*told))

    def _text(self) -> str:
        left = self._left()
        return self._where() + ("" if left is None else f", {clock(left)} left")

    def _left(self) -> float | None:
        """Seconds for all phases, or None where nothing was measured yet."""
        begun = [phase for phase in self.phases.values() if phase.measured]
        if not begun:
            return None
        work = sum(phase.work * phase.measured / phase.steps for phase in begun)
        pace = sum(phase.took for phase in begun if phase.work) / work if work else 0.0
        return sum(phase.left(pace) for phase in self.phases.values())

    def _where(self) -> str:
        assert self.phase is not None
        label = f"{self.label}, " if self.label else ""
        return f"{label}{self.phase.name}: {int(self.phase.done)}/{self.phase.steps}"

    def _write(self, text: str) -> None:
        self.wrote = True
        self.stream.write(f"\r\x1b[K{text}" if self.stream.isatty() else f"{text}\n")
        self.stream.flush()


def clock(seconds: float) -> str:
    """As minutes and seconds, or with hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
