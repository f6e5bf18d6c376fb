"""Progress with an ETA: one rewritten line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from fewbit.printable import printable

T = TypeVar("T")
QUIET_SECONDS = 2.0  # work shorter than this shows nothing
LINE_SECONDS = 10.0  # how often a line is written when it is not a terminal


def track(
    items: Iterable[T], label: str, total: int, show: bool = True, stream: TextIO | None = None
) -> Iterator[T]:
    """The items again; how far we are and how long it will take goes to standard error."""
    meter = Meter(label, total, show, stream or sys.stderr)
    for item in items:
        yield item
        meter.advance()
    meter.close()


class Meter:
    def __init__(self, label: str, total: int, show: bool, stream: TextIO) -> None:
        self.label, self.total, self.show, self.stream = printable(label), total, show, stream
        self.done = 0
        self.start = self.last_line = time.monotonic()
        self.wrote = False

    def advance(self) -> None:
        self.done += 1
        now = time.monotonic()
        pause = 0.1 if self.stream.isatty() else LINE_SECONDS
        due = now - self.start >= QUIET_SECONDS and now - self.last_line >= pause
        if self.show and due and self.done < self.total:
            self.last_line = now
            self._write(self._text(now))

    def close(self) -> None:
        if self.wrote:
            self._write(f"{self.label}: {self.done}/{self.total} in {self._clock(self._elapsed())}")
            if self.stream.isatty():
                self.stream.write("\n")

    def _text(self, now: float) -> str:
        left = (now - self.start) / self.done * (self.total - self.done)
        return f"{self.label}: {self.done}/{self.total}, {self._clock(left)} left"

    def _write(self, text: str) -> None:
        self.wrote = True
        self.stream.write(f"\r\x1b[K{text}" if self.stream.isatty() else f"{text}\n")
        self.stream.flush()

    def _elapsed(self) -> float:
        return time.monotonic() - self.start

    @staticmethod
    def _clock(seconds: float) -> str:
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
