"""Walk to a block through the model's own forward, the blocks before it only playing their part.

Each block's forward is replaced, for one pass, by a stand-in that hands out what the block once
gave. The model itself routes it: long skips, joint streams, tuples, arguments that depend on the
block's number. No control flow is copied, and no block is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.calibration.modes import evaluating
from fewbit.calibration.tree import map_tensors, shapes, tensors
from fewbit.errors import BadModel
from fewbit.models.own_forward import own_forward

StandIn = Callable[[int, tuple[Any, ...], dict[str, Any]], Any]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _Reached(Exception):
    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.arguments = args, kwargs


class Replay:
    """`blocks` are modules of `model`, each run once by its forward, in this order."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module]) -> None:
        self.model, self.blocks = model, list(blocks)
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def reach(
        self, block: int, inputs: Mapping[str, Any], given: Callable[[int], Any]
    ) -> Arguments:
        """What `block` receives when the blocks j before it give given(j)."""

        def stand_in(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if number == block:
                raise _Reached(args, kwargs)
            return given(number)

        try:
            self.run(inputs, stand_in)
        except _Reached as reached:
            return reached.arguments
        raise AssertionError("run() checks that every block was reached")

    def finish(self, inputs: Mapping[str, Any], given: Callable[[int], Any]) -> Any:
        """The model's own result when every block j gives given(j)."""
        return self.run(inputs, lambda number, *_: given(number))

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Any], stand_in: StandIn) -> Any:
        """One forward with stand_in(number, args, kwargs) in the place of every block."""
        order: list[int] = []

        def in_turn(number: int, *args: Any, **kwargs: Any) -> Any:
            if number != len(order):
                raise BadModel(
                    f"{type(self.model).__name__} ran block {number} as number {len(order)}; "
                    "blocks must be listed in order of execution, each running once"
                )
            order.append(number)
            return stand_in(number, args, kwargs)

        moved = map_tensors(inputs, lambda tensor: tensor.to(self.device))
        with evaluating(self.model), _replaced(self.blocks, in_turn):
            result = self.model(**moved)
        if len(order) < len(self.blocks):
            raise BadModel(
                f"{type(self.model).__name__} never ran block {len(order)}; list only blocks that "
                "its forward runs"
            )
        return result


@dataclass(frozen=True)
class Outline:
    """What a block receives and gives in one forward, as tensors without storage."""

    arguments: Arguments
    output: Any


class Routes:
    """What each block gives, and which later blocks read it, found by poisoning.

    last: per block, the last block that reads its output; len(blocks) for the model's tail.
    """

    def __init__(self, replay: Replay, example: Mapping[str, Any]) -> None:
        self.replay, self.example = replay, example
        self._known: dict[str, list[Outline]] = {}
        self.last = [self._last_reader(number) for number in range(len(replay.blocks))]

    def outlines(self, inputs: Mapping[str, Any]) -> list[Outline]:
        """Of every block in the forward of these inputs, and of the model itself in the end; the
        same for all of the same shapes."""
        key = shapes(inputs)
        if key not in self._known:
            self._known[key] = self._outlined(inputs)
        return self._known[key]

    def _outlined(self, inputs: Mapping[str, Any]) -> list[Outline]:
        found: list[Outline] = []
        forwards = [block.forward for block in self.replay.blocks]

        def genuine(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            arguments = _empty((args, kwargs))
            output = forwards[number](*args, **kwargs)
            found.append(Outline(arguments, _empty(output)))
            return output

        result = self.replay.run(inputs, genuine)
        return [*found, Outline(((), _empty(inputs)), _empty(result))]

    def _last_reader(self, source: int) -> int:
        """The source gives NaN, the others zeros: a consumer is who receives a NaN."""
        consumers, outlines = [source], self.outlines(self.example)

        def stand_in(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if _poisoned((args, kwargs)):
                consumers.append(number)
            value = torch.nan if number == source else 0
            return map_tensors(outlines[number].output, partial(self._filled, value=value))

        if _poisoned(self.replay.run(self.example, stand_in)):
            consumers.append(len(self.replay.blocks))
        return max(consumers)

    def _filled(self, outline: Tensor, value: float) -> Tensor:
        value = value if outline.is_floating_point() else 0
        return torch.full_like(outline, value, device=self.replay.device)


def _empty(tree: Any) -> Any:
    return map_tensors(tree, lambda tensor: tensor.to("meta"))


def _poisoned(tree: Any) -> bool:
    return any(bool(tensor.isnan().any()) for tensor in tensors(tree).values())


@contextmanager
def _replaced(blocks: Sequence[nn.Module], in_turn: Callable[..., Any]) -> Iterator[None]:
    """The modules stay where they are: models also reach into them for more than their forward."""
    with ExitStack() as inside:
        for number, block in enumerate(blocks):
            inside.enter_context(own_forward(block, partial(in_turn, number)))
        yield
