"""A training loop that, killed at any moment, goes on from its last checkpoint as if nothing was.

Every step draws from its own generator, so the step number is all the randomness there is to keep.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from fewbit.files import replacing

Loss = Callable[[int, Generator], Tensor]


@dataclass(frozen=True)
class Steps:
    """Train for so many steps: the same result wherever it runs."""

    count: int

    def progress(self, step: int, seconds: float) -> float:
        return step / self.count


@dataclass(frozen=True)
class Minutes:
    """Train for so long: on a busy machine with fewer steps, but through the whole schedule."""

    count: float

    def progress(self, step: int, seconds: float) -> float:
        return seconds / (60 * self.count)


Budget = Steps | Minutes


@dataclass
class Training:
    """AdamW with warm-up and a cosine to zero, clipped gradients and averaged weights.

    `look` is called on the way, while the model has its averaged weights.
    """

    name: str
    model: nn.Module
    loss: Loss
    budget: Budget
    rate: float
    folder: Path
    memory: float = 0.999
    warmup: int = 100
    seed: int = 0
    save_every: int = 200
    say_every: int = 50
    look: Callable[[int], None] | None = None
    look_every: int = 400

    def __post_init__(self) -> None:
        self.step = 0
        self.seconds = 0.0
        self.parameters: list[Tensor] = list(self.model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True
        )
        self.file = self.folder / f"{self.name}.safetensors"
        if self.file.exists():
            self._restore()

    def run(self) -> nn.Module:
        """Train what is left to train and return the model with its averaged weights."""
        while self.budget.progress(self.step, self.seconds) < 1:
            loss = self.advance()
            if self.step % self.say_every == 0:
                done = self.budget.progress(self.step, self.seconds)
                print(f"{self.name} {self.step} {done:.1%} loss {loss:.5f}", flush=True)
            if self.step % self.save_every == 0:
                self.save()
            if self.look is not None and self.step % self.look_every == 0:
                with self._averaged():
                    self.look(self.step)
        self.save()
        self._exchange()
        return self.model

    def advance(self) -> float:
        started = time.monotonic()
        self._set_rate()
        random = Generator().manual_seed(self.seed << 32 | self.step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.loss(self.step, random)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self._average()
        self.step += 1
        self.seconds += time.monotonic() - started
        return loss.item()

    def _set_rate(self) -> None:
        cosine = (1 + math.cos(math.pi * self.budget.progress(self.step, self.seconds))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * cosine * min(1, (self.step + 1) / self.warmup)

    @torch.no_grad()
    def _average(self) -> None:
        """The memory starts short, so that the random beginning is soon forgotten."""
        memory = min(self.memory, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(self.average, self.parameters, 1 - memory)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.data, average.data = average.data, parameter.data

    def save(self) -> None:
        tensors = {f"parameter.{i}": p.detach() for i, p in enumerate(self.parameters)}
        tensors |= {f"average.{i}": a for i, a in enumerate(self.average)}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{key}": value for key, value in state.items()}
        counters = {"step": str(self.step), "seconds": repr(self.seconds)}
        with replacing(self.file) as aside:
            save_file(tensors, aside, counters)

    @torch.no_grad()
    def _restore(self) -> None:
        with safe_open(self.file, "pt") as stored:
            counters = stored.metadata()
        tensors = load_file(self.file)
        self.step, self.seconds = int(counters["step"]), float(counters["seconds"])
        moments: dict[int, dict[str, Tensor]] = {}
        for i, (parameter, average) in enumerate(zip(self.parameters, self.average, strict=True)):
            parameter.copy_(tensors[f"parameter.{i}"])
            average.copy_(tensors[f"average.{i}"])
            prefix = f"optimizer.{i}."
            moments[i] = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
