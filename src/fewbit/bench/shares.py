"""Where the time of one call goes, by a stopwatch in every layer; never inside a timed round."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from fewbit.layers.stage import InputStage

PARTS = ("linear", "attention", "quantize", "other")  # quantize: with whatever rotates before it


def shares(
    module: nn.Module, run: Callable[[], object], synchronize: Callable[[], None]
) -> dict[str, float]:
    """Of the time of run(), which calls `module`; a part inside another counts for itself only."""
    watch = _Stopwatch(synchronize)
    with watch.listening(module), _Attention(watch):
        run()  # what compiles itself does so again where it is listened to
        watch.seconds.clear()
        with watch.of("other"):
            run()
    total = sum(watch.seconds.values())
    return {part: round(watch.seconds[part] / total, 4) for part in PARTS}


class _Stopwatch:
    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.synchronize = synchronize
        self.running: list[str] = []
        self.since = 0.0

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        self.start(part)
        yield
        self.stop()

    def start(self, part: str) -> None:
        self._lap()
        self.running.append(part)

    def stop(self) -> None:
        self._lap()
        self.running.pop()

    def _lap(self) -> None:
        self.synchronize()
        now = time.perf_counter()
        if self.running:
            self.seconds[self.running[-1]] += now - self.since
        self.since = now

    @contextmanager
    def listening(self, module: nn.Module) -> Iterator[None]:
        hooks = []
        for inner in module.modules():
            part = _part(inner)
            if part is not None:
                hooks.append(inner.register_forward_pre_hook(lambda *_, p=part: self.start(p)))
                hooks.append(inner.register_forward_hook(lambda *_: self.stop()))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Attention(TorchFunctionMode):
    def __init__(self, watch: _Stopwatch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with self.watch.of("attention"):
            return func(*args, **(kwargs or {}))


def _part(module: nn.Module) -> str | None:
    if isinstance(module, InputStage):
        return "quantize"
    is_linear = hasattr(module, "in_features") and hasattr(module, "out_features")
    return "linear" if is_linear else None


def nothing_to_wait_for() -> None:
    """On a CPU a call is over when it returns."""


def waiting_for(device: torch.device) -> Callable[[], None]:
    return torch.cuda.synchronize if device.type == "cuda" else nothing_to_wait_for
