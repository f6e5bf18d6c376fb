"""Where the time of one call goes, by a stopwatch in every layer; never inside a timed round."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from fewbit.kernels.native.recording import step_by_step
from fewbit.layers.linear import quantized_layers

PARTS = ("linear", "attention", "quantize", "other")  # quantize: with whatever rotates before it


def shares(
    module: nn.Module, run: Callable[[], object], synchronize: Callable[[], None]
) -> dict[str, float]:
    """Of the time of run(), which calls `module`; a part inside another counts for itself only."""
    watch = _Stopwatch(synchronize)
    with watch.listening(module):
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
        """To bound layers inside, for hooks would make them fall back; to others by hooks."""
        with ExitStack() as ending:
            ending.enter_context(step_by_step())
            layers = list(quantized_layers(module).values())
            for bound in [layer.bound() for layer in layers]:
                self._time(bound, "code", "quantize", ending)
                self._time(bound, "multiply", "linear", ending)
            for backend in {layer.bound().backend for layer in layers}:
                self._time(backend, "attention", "attention", ending)
            if not layers:
                self._hook(module, ending)
                ending.enter_context(_Attention(self))
            yield

    def _time(self, owner: object, name: str, part: str, ending: ExitStack) -> None:
        """Calls of an attribute, which is put back in the end."""
        call, own = getattr(owner, name), vars(owner).get(name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.of(part):
                return call(*args, **kwargs)

        setattr(owner, name, timed)
        ending.callback(*((delattr, owner, name) if own is None else (setattr, owner, name, own)))

    def _hook(self, module: nn.Module, ending: ExitStack) -> None:
        for inner in filter(_is_linear, module.modules()):
            for hook in (
                inner.register_forward_pre_hook(lambda *_: self.start("linear")),
                inner.register_forward_hook(lambda *_: self.stop()),
            ):
                ending.callback(hook.remove)


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


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def nothing_to_wait_for() -> None:
    """On a CPU a call is over when it returns."""


def waiting_for(device: torch.device) -> Callable[[], None]:
    return torch.cuda.synchronize if device.type == "cuda" else nothing_to_wait_for
