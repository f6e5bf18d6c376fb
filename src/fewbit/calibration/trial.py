"""A few forwards before the walk: what runs, in which order, and which attentions are odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.calibration.modes import evaluating
from fewbit.calibration.set import CalibrationSet, time_in
from fewbit.calibration.tree import map_tensors
from fewbit.errors import BadCalibration, BadModel, FewbitError
from fewbit.models.fused_attention import AttentionCall, StandIn
from fewbit.models.own_forward import own_forward


@dataclass(frozen=True)
class Trial:
    """blocks: those that ran, in order of execution.
    idle: linears that never ran, or in a block that did not run as a whole.
    odd: attention modules whose matmuls cannot be quantized, and why.
    """

    blocks: tuple[str, ...] = ()
    idle: frozenset[str] = frozenset()
    odd: Mapping[str, str] = field(default_factory=dict)


def try_out(
    model: nn.Module,
    blocks: Sequence[str],
    linears: Sequence[str],
    groups: Sequence[Sequence[str]],
    attending: Sequence[str],
    data: CalibrationSet,
) -> Trial:
    """All of them by name; one forward for every shape that occurs in the data. The linears of a
    group are said to read one tensor, and it is an error if they do not."""
    ran: dict[str, None] = {}
    odd = {name: why for name in attending if (why := _bare(name, blocks))}
    watched = {name: _Watched(model.get_submodule(name)) for name in attending}
    with evaluating(model), _noting(model, (*blocks, *linears), ran), _watching(watched):
        for inputs in data.examples():
            time = time_in(inputs)
            for one in watched.values():
                one.begin(1 if time is None else len(time))
            with _comparing(model, groups):
                _run(model, inputs)
            found = {name: why for name, one in watched.items() if (why := one.oddity())}
            odd = {**found, **odd}
    running = tuple(name for name in ran if name in set(blocks))
    if not running:
        raise BadCalibration(
            f"none of the blocks of {type(model).__name__} is called as a module in its forward, "
            f"neither {blocks[0]} nor another; allowed in blocks: modules whose forward runs"
        )
    reached = {name for name in linears if name in ran and _inside(name, running)}
    return Trial(running, frozenset(linears) - reached, odd)


@torch.no_grad()
def _run(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        model(**map_tensors(inputs, lambda tensor: tensor.to(device)))
    except FewbitError:
        raise
    except Exception as error:  # whatever a model says of inputs that it cannot take
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise BadCalibration(
            f"the forward of {type(model).__name__} does not run on the calibration data: {reason}"
        ) from error


@contextmanager
def _noting(model: nn.Module, names: Sequence[str], ran: dict[str, None]) -> Iterator[None]:
    """Which of the modules run, in order of their first time."""

    def note(name: str, *_: Any) -> None:
        ran.setdefault(name)

    with ExitStack() as stack:
        for name in names:
            hook = model.get_submodule(name).register_forward_pre_hook(partial(note, name))
            stack.callback(hook.remove)
        yield


@contextmanager
def _comparing(model: nn.Module, groups: Sequence[Sequence[str]]) -> Iterator[None]:
    with ExitStack() as stack:
        for group in groups:
            reads = _Reads(len(group))
            for name in group if len(group) > 1 else ():
                hook = partial(reads.note, name)
                linear = model.get_submodule(name)
                stack.callback(linear.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


class _Reads:
    """What the linears of one group have read in one forward, call by call, until all have."""

    def __init__(self, linears: int) -> None:
        self.linears = linears
        self.first: dict[int, tuple[str, Tensor]] = {}
        self.calls: Counter[str] = Counter()

    def note(self, name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        x: Tensor = args[0] if args else kwargs["input"]
        number = self.calls[name] = self.calls[name] + 1
        other, seen = self.first.setdefault(number, (name, x))
        if seen is not x and not (seen.shape == x.shape and torch.equal(seen, x)):
            raise BadModel(
                f"{other} and {name} are said to read one tensor, but read two; say in "
                "ModelSpec.shared which linears do"
            )
        if sum(count >= number for count in self.calls.values()) == self.linears:
            del self.first[number]


@contextmanager
def _watching(watched: Mapping[str, _Watched]) -> Iterator[None]:
    with ExitStack() as stack:
        for one in watched.values():
            stack.enter_context(own_forward(one.module, one.forward))
        yield


def _inside(name: str, blocks: Sequence[str]) -> bool:
    return any(name.startswith(f"{block}.") for block in blocks)


def _bare(name: str, blocks: Sequence[str]) -> str | None:
    return "it is the block itself, not a module inside it" if name in blocks else None


class _Watched:
    """An attention module in one forward of the model."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.inner = module, module.forward
        self.begin(1)

    def begin(self, rows: int) -> None:
        self.rows, self.forwards = rows, 0
        self.asked: Counter[int] = Counter()  # for fused attention, by the number of the forward
        self.whys: list[str] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.forwards += 1
        with StandIn(self._answer):
            return self.inner(*args, **kwargs)

    def oddity(self) -> str | None:
        """What keeps its matmuls from being quantized."""
        counts = [self.asked[number + 1] for number in range(self.forwards)]
        if not counts:
            return "it never ran"
        if any(count != 1 for count in counts):
            return f"it asks for fused attention {counts[0]} times in one forward"
        if len(counts) > 1:
            return f"it runs {len(counts)} times in one forward of the model"
        return next(iter(self.whys), None)

    def _answer(
        self,
        call: AttentionCall,
    ) -> Tensor:
        self.asked[self.forwards] += 1
        query = call.query
        if call.is_causal:
            self.whys.append("it is causal")
        if call.enable_gqa or query.shape[:-2] != call.key.shape[:-2]:
            self.whys.append("its heads share keys and values")
        if query.ndim != 4 or len(query) % self.rows:
            self.whys.append(f"it does not run row by row, its queries are {list(query.shape)}")
        return call.plainly()
