"""What something took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Watch:
    """Seconds by the clock and of the processor: on a busy machine the second ones count."""

    clock: float = 0.0
    processor: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started = time.perf_counter(), time.process_time()
        yield
        self.clock += time.perf_counter() - started[0]
        self.processor += time.process_time() - started[1]
