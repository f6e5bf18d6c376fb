"""A function of tensors that is recorded once as a native program and runs as one from then on.

Between the operations of such a program nothing of Python runs, and the threads stay together. The
first call with inputs of some shapes runs the function and notes its native operations. What these
hand to one another gets places in a workspace, which lives no longer than the program runs. A
function that computes anything by torch is not recorded, and runs as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import Structure, addressof, c_void_p, create_string_buffer, sizeof, string_at
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from fewbit.kernels.native.library import (
    LISTENER,
    TASKS,
    LinearTask,
    Pointer,
    Program,
    Step,
    failure,
    functions,
)
from fewbit.kernels.precision import own_mode

Function = Callable[..., Tensor]
Key = tuple[tuple[torch.Size, torch.dtype], ...]

STRUCTS = tuple(TASKS.values())
WRITTEN = ("out", "codes", "scales", "aside", "aside_scales")  # of what is no product
TASKS_THEMSELVES, WORKSPACE = -1, -2  # bases of pointers, as csrc/tasks.h has them
LINE = 64  # bytes at which a buffer begins
MOST_SHAPES = 8  # that a function is recorded for
_EMPTY = ("aten::empty", "aten::new_empty", "aten::empty_strided", "aten::new_empty_strided")
_LOOKS = ("aten::detach", "aten::alias", "aten::lift_fresh")


class _Switch(threading.local):
    on = True


_switch = _Switch()


@contextmanager
def step_by_step() -> Iterator[None]:
    """Recorded functions run as they are, for whoever watches their parts."""
    _switch.on = False
    try:
        yield
    finally:
        _switch.on = True


class Recorded:
    """The function itself, quicker. It depends on nothing but its inputs, which are contiguous, and
    on what never changes as long as this is called."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.programs: dict[Key, _Program | None] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        if not _switch.on:
            return self.function(*inputs)
        key = tuple([(x.shape, x.dtype) for x in inputs])
        try:
            program = self.programs[key]
        except KeyError:  # asked once, for another thread may forget it
            result, program = _record(self.function, inputs)
            self._keep(key, program)
            return result
        return self.function(*inputs) if program is None else program(inputs)

    def _keep(self, key: Key, program: _Program | None) -> None:
        while len(self.programs) >= MOST_SHAPES:
            self.programs.pop(next(iter(self.programs)), None)
        self.programs[key] = program


class _Program:
    """Native operations with places for inputs and for one result."""

    def __init__(self, notes: _Notes, inputs: Sequence[Tensor], result: Tensor) -> None:
        self.shape, self.dtype = result.shape, result.dtype
        laid = _laid(notes, [*inputs, result])
        tasks = create_string_buffer(b"".join(map(bytes, laid.tasks)))
        steps = (Step * len(laid.steps))(*laid.steps)
        pointers = (Pointer * len(laid.pointers))(*laid.pointers)
        self._kept = tasks, steps, pointers
        self._program = Program(
            tasks=addressof(tasks),
            steps=addressof(steps),
            pointers=addressof(pointers),
            bytes=len(tasks),
            step_count=len(laid.steps),
            pointer_count=len(laid.pointers),
            workspace=laid.workspace,
        )
        self._pieces: Any = c_void_p * (len(inputs) + 1)
        self._run = functions().fewbit_run

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        result = torch.empty(self.shape, dtype=self.dtype, device="cpu")
        pieces = self._pieces(*[x.data_ptr() for x in inputs], result.data_ptr())
        status = self._run(self._program, pieces)
        if status:
            raise failure(status)
        return result


@dataclass
class _Notes:
    """What a function did: its native operations, the memory it asked for, and whether torch
    computed anything."""

    operations: list[_Operation] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)
    is_whole: bool = True

    def hear(self, number: int, at: int) -> None:
        task = _copy(STRUCTS[number], at)
        side: int | None = getattr(task, "side", None)
        self.operations.append(_Operation(number, task, _copy(LinearTask, side) if side else None))


@dataclass(frozen=True)
class _Operation:
    number: int  # as csrc/tasks.h has it
    task: Structure
    side: Structure | None  # of a product


def _copy(struct: type[Structure], at: int) -> Structure:
    return struct.from_buffer_copy(string_at(at, sizeof(struct)))


class _Watch(TorchDispatchMode):
    def __init__(self, notes: _Notes) -> None:
        super().__init__()
        self.notes = notes

    def __torch_dispatch__(
        self,
        func: OpOverload[Any, Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in _EMPTY:
            self.notes.buffers.append(result)
        elif not (func.is_view or name in _LOOKS):
            self.notes.is_whole = False
        return result


def _record(function: Function, inputs: Sequence[Tensor]) -> tuple[Tensor, _Program | None]:
    notes = _Notes()
    listener = LISTENER(notes.hear)
    functions().fewbit_listen(listener)
    try:
        with own_mode(_Watch(notes)):
            result = function(*inputs)
    finally:
        functions().fewbit_listen(LISTENER())
    own = {buffer.data_ptr() for buffer in notes.buffers}
    plain = result.is_contiguous() and result.data_ptr() in own
    if not (notes.is_whole and notes.operations and plain):
        return result, None
    return result, _Program(notes, inputs, result)


@dataclass
class _Laid:
    """Tasks one after another, and where their pointers point to."""

    tasks: list[Structure] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    pointers: list[Pointer] = field(default_factory=list)
    workspace: int = 0


@dataclass
class _Piece:
    """Memory that a pointer may point into: of a call, or of the workspace."""

    begin: int
    size: int
    base: int
    offset: int = 0
    first: int = -1  # the step that uses it first, and the one that does so last
    last: int = -1

    def holds(self, address: int) -> bool:
        return self.begin <= address < self.begin + self.size

    def meets(self, other: _Piece) -> bool:
        """Whether both share bytes of what a call brings or of the workspace."""
        apart = self.offset + self.size <= other.offset or other.offset + other.size <= self.offset
        return self.base == other.base and not (self.base == WORKSPACE and apart)


@dataclass
class _Use:
    """A pointer of a task."""

    at: int
    address: int
    piece: _Piece
    writes: bool


def _laid(notes: _Notes, given: Sequence[Tensor]) -> _Laid:
    laid, pieces = _Laid(), [_piece(tensor, base) for base, tensor in enumerate(given)]
    own = {piece.begin for piece in pieces}
    buffers = [_piece(one, WORKSPACE) for one in notes.buffers if one.data_ptr() not in own]
    uses: list[list[_Use]] = []
    at = 0
    for operation in notes.operations:
        laid.steps.append(Step(at=at, operation=operation.number))
        uses.append([])
        for task in filter(None, (operation.task, operation.side)):
            uses[-1] += _uses(task, at, [*pieces, *buffers])
            laid.tasks.append(task)
            at += sizeof(task)
        if operation.side is not None:
            where = laid.steps[-1].at + LinearTask.side.offset
            laid.pointers.append(Pointer(where, TASKS_THEMSELVES, at - sizeof(operation.side)))
    _find_lives(uses)
    laid.workspace = _place([one for one in buffers if one.first >= 0])
    for step, waits in zip(laid.steps, _waiting(uses), strict=True):
        step.waits = waits
    for use in chain.from_iterable(uses):
        offset = use.piece.offset + use.address - use.piece.begin
        laid.pointers.append(Pointer(use.at, use.piece.base, offset))
    return laid


def _piece(tensor: Tensor, base: int) -> _Piece:
    return _Piece(tensor.data_ptr(), tensor.untyped_storage().nbytes(), base)


def _uses(task: Structure, at: int, pieces: Sequence[_Piece]) -> Iterator[_Use]:
    """The pointers into one of the pieces; all others are of weights."""
    written = ("out",) if isinstance(task, LinearTask) else WRITTEN
    for name in (entry[0] for entry in task._fields_ if entry[1] is c_void_p):
        address: int = getattr(task, name) or 0
        piece = next((one for one in pieces if one.holds(address)), None)
        if piece is not None:
            yield _Use(at + getattr(type(task), name).offset, address, piece, name in written)


def _find_lives(steps: Sequence[Sequence[_Use]]) -> None:
    for number, uses in enumerate(steps):
        for use in uses:
            use.piece.first = number if use.piece.first < 0 else use.piece.first
            use.piece.last = number


def _place(buffers: Sequence[_Piece]) -> int:
    """Gives each the lowest offset where nothing else lives at its time; how much all take."""
    placed: list[_Piece] = []
    for one in sorted(buffers, key=lambda one: -one.size):
        there = [b for b in placed if b.first <= one.last and one.first <= b.last]
        for other in sorted(there, key=lambda b: b.offset):
            if one.offset + one.size <= other.offset:
                break
            one.offset = max(one.offset, -(-(other.offset + other.size) // LINE) * LINE)
        placed.append(one)
    return max((one.offset + one.size for one in placed), default=0)


def _waiting(steps: Sequence[Sequence[_Use]]) -> Iterator[bool]:
    """Whether each step must wait for those before it: they share what one of them writes."""
    running: list[_Use] = []
    for uses in steps:
        waits = any(
            (use.writes or before.writes) and use.piece.meets(before.piece)
            for use in uses
            for before in running
        )
        running = list(uses) if waits else [*running, *uses]
        yield waits
