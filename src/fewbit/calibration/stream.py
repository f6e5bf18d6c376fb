"""Calibration data through a model block by block: one block's inputs and outputs at a time.

A stream knows nothing of quantization. Steps that advance after the block was changed carry its
error on; steps that advance before do not. Two streams over one model give both, in lockstep.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.calibration.along import Along, rows_in
from fewbit.calibration.modes import evaluating
from fewbit.calibration.padding import real_tokens, text_mask
from fewbit.calibration.replay import Replay, Routes
from fewbit.calibration.row_set import RowSet
from fewbit.calibration.set import CalibrationSet
from fewbit.calibration.store import Disk, Memory, Named, Store
from fewbit.calibration.tree import map_tensors, rebuild, tensors
from fewbit.errors import BadArgument, BadCalibration
from fewbit.storage.entries import Entries

STORED = (None, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Rows:
    """Which rows of the calibration set a minibatch holds."""

    indices: range
    timesteps: Tensor | None  # float32 [rows]
    conditional: Tensor | None  # bool [rows]


@dataclass(frozen=True)
class BlockInput:
    """What a block receives, on its own device."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: Rows


@dataclass(frozen=True)
class LayerInput:
    """What a layer of a block receives: x [rows, ..., channels]."""

    name: str
    x: Tensor
    rows: Rows
    mask: Tensor | None  # bool [rows, tokens], False where a token of x is padding


class BlockStream:
    """`blocks` are modules of `model` in order of execution, `batch` is rows at a time.

    store:   dtype in which floating outputs wait; None keeps theirs, and every number exact.
    workdir: a folder of this stream's own, for this model, recipe and seed. Outputs wait there and
             not in memory, and a later stream over the same data goes on from them.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        data: CalibrationSet,
        *,
        batch: int = 8,
        store: torch.dtype | None = None,
        workdir: Entries | None = None,
    ) -> None:
        if not blocks:
            raise BadArgument("a stream needs one block or more, got none")
        if store not in STORED:
            raise BadArgument(f"outputs cannot wait as {store}; allowed: {STORED}")
        self.data, self.blocks, self.dtype = data, list(blocks), store
        self.parts = data.parts(batch)
        self.times = data.timesteps()
        self.replay = Replay(model, blocks)
        self.routes = Routes(self.replay, data.examples()[0])
        self.outlines = [self.routes.outlines(inputs) for inputs in self.inputs()]
        self.outputs: Store = Memory()
        if workdir is not None:
            identity = sha256(f"{data.fingerprint()} {batch} {store}".encode()).hexdigest()
            entries = workdir.inside(f"stream-{identity[:16]}")
            self.outputs = Disk(entries, len(self.parts))

    def steps(self, first: int = 0) -> Iterator[Step]:
        """One block after the other; each step advances when the loop comes back for the next.

        Write down what was made of a block inside the loop: afterwards its inputs are forgotten.
        """
        if not self.begins(first):
            allowed = ", ".join(str(index) for index in self._places() if self.begins(index))
            raise BadArgument(f"the stream cannot begin at block {first}; allowed: {allowed}")
        for index in range(first, len(self.blocks)):
            step = Step(self, index)
            yield step
            if not step.advanced:
                step.advance()
            for done in range(index + 1):
                if self.routes.last[done] <= index:
                    self.outputs.drop(done)

    def begins(self, index: int) -> bool:
        """Whether the outputs that wait are all that is read at this block or later."""
        return index in self._places() and all(map(self.outputs.holds, self._read_from(index)))

    def ready(self) -> int:
        """The last block that it can begin at."""
        return max(filter(self.begins, self._places()))

    def results(self) -> Iterator[Any]:
        """What the model gives for each minibatch, after the last step."""
        for number in range(len(self.parts)):
            yield self.replay.finish(self._inputs(number), partial(self.output, number=number))

    def rows(self, number: int) -> Rows:
        part = self.parts[number]
        where = slice(part.start, part.stop)
        known = self.times, self.data.conditional
        times, conditional = (None if flags is None else flags[where] for flags in known)
        return Rows(part, times, conditional)

    def call(self, index: int, number: int) -> BlockInput:
        """What the block receives for one minibatch."""
        given = partial(self.output, number=number)
        arguments = self.replay.reach(index, self._inputs(number), given)
        device = self.device_of(index)
        args, kwargs = map_tensors(arguments, lambda tensor: tensor.to(device))
        return BlockInput(args, kwargs, self.rows(number))

    def rows_of(self, index: int) -> tuple[dict[str, Along], dict[str, Along]] | None:
        """Where rows are in what the block, or the model as the last, receives and gives; None
        where they cannot be told apart."""
        if not isinstance(self.data, RowSet):
            return None
        one, two = (self.routes.outlines(inputs)[index] for inputs in self.data.examples())
        received, given = rows_in(one.arguments, two.arguments), rows_in(one.output, two.output)
        return None if received is None or not given else (received, given)

    def mean_times(self) -> Tensor | None:
        """float32 [minibatches]"""
        if self.times is None:
            return None
        return torch.stack([self.times[part.start : part.stop].mean() for part in self.parts])

    def device_of(self, index: int) -> torch.device:
        parts = [*self.blocks, self.replay.model][index].parameters()
        return next((p.device for p in parts), self.replay.device)

    def park(self, output: Any) -> Named:
        """The tensors of an output as they wait, sharing no memory with anything."""

        def copy(tensor: Tensor) -> Tensor:
            dtype = self.dtype if tensor.is_floating_point() else None
            return tensor.detach().to(
                "cpu", dtype or tensor.dtype, copy=True, memory_format=torch.contiguous_format
            )

        return {path: copy(tensor) for path, tensor in tensors(output).items()}

    def text_mask(self, number: int) -> Tensor | None:
        return text_mask(self._inputs(number))

    def inputs(self) -> Iterator[dict[str, Any]]:
        """Of the model, minibatch by minibatch."""
        return map(self._inputs, range(len(self.parts)))

    def _inputs(self, number: int) -> dict[str, Any]:
        return self.data.take(self.parts[number])

    def output(self, block: int, number: int) -> Any:
        """A waiting output; zeros stand for what nobody reads any more."""
        waiting = self.outputs.read(block, number) if self.outputs.holds(block) else None

        def fill(path: str, outline: Any) -> Any:
            if not isinstance(outline, Tensor):
                return outline
            if waiting is None:
                blank = torch.zeros((), dtype=outline.dtype, device=self.replay.device)
                return blank.expand(outline.shape)
            return waiting[path].to(self.replay.device, outline.dtype, copy=True)

        return rebuild(self.outlines[number][block].output, fill)

    def _places(self) -> range:
        """Where it may begin: at any block, or after all of them."""
        return range(len(self.blocks) + 1)

    def _read_from(self, index: int) -> list[int]:
        """The blocks before `index` whose outputs are read at `index` or later."""
        return [block for block in range(index) if self.routes.last[block] >= index]


class Step:
    """One block and all it receives. The caller may change the block at any time."""

    def __init__(self, stream: BlockStream, index: int) -> None:
        self.stream, self.index = stream, index
        self.block = stream.blocks[index]
        self.advanced = False

    @property
    def minibatches(self) -> int:
        return len(self.stream.parts)

    @property
    def rows(self) -> int:
        return len(self.stream.data)

    @property
    def timesteps(self) -> Tensor | None:
        """Of all rows."""
        return self.stream.times

    @property
    def pairs(self) -> Tensor:
        """int64 [rows], the same for the halves of one image at one timestep; a number of its own
        for each row where nobody knows."""
        pair = self.stream.data.pair
        return torch.arange(self.rows) if pair is None else pair

    def inputs(self) -> Iterator[BlockInput]:
        """Minibatch by minibatch, replayed each time."""
        for number in range(self.minibatches):
            yield self.stream.call(self.index, number)

    def outputs(self) -> Iterator[Any]:
        """What the block, as it is now, gives for each of its inputs."""
        return map(self._run, self.inputs())

    def given(self) -> Iterator[Any]:
        """What the block gave when this step advanced, minibatch by minibatch."""
        for number in range(self.minibatches):
            yield self.stream.output(self.index, number)

    @property
    def device(self) -> torch.device:
        return self.stream.device_of(self.index)

    def advance(self, names: Sequence[str] = ()) -> list[dict[str, LayerInput]]:
        """Let the block, as it is now, give the inputs of the blocks to come. Also what each of its
        layers `names` receives first on the way, minibatch by minibatch."""
        heard: list[dict[str, LayerInput]] = [{} for _ in range(self.minibatches)]

        def run(number: int, found: dict[str, LayerInput]) -> Any:
            output = self._hear_one(names, partial(_keep_first, found), number)
            self._refuse_not_finite(output, self.stream.rows(number))
            return self.stream.park(output)

        self.stream.outputs.write(self.index, itertools.starmap(run, enumerate(heard)))
        self.advanced = True
        return heard

    def layer_inputs(
        self,
        names: Sequence[str],
        receive: Callable[[LayerInput], None],
        minibatches: int | None = None,
        begin: Callable[[Rows], None] | None = None,
    ) -> None:
        """Run the block over all rows, or over a few minibatches spread evenly over them, and hand
        over what its layers `names` receive. `begin` is told which rows are about to run."""
        for number in self._spread(minibatches):
            self._hear_one(names, receive, number, begin)

    def heard(self, names: Sequence[str]) -> Iterator[dict[str, LayerInput]]:
        """What each of its layers `names` receives first, minibatch by minibatch; the block runs
        no further than to the last of them."""
        for number in range(self.minibatches):
            found: dict[str, LayerInput] = {}
            with suppress(_Enough):
                self._hear_one(names, partial(_until_all, names, found), number)
            yield found

    def _hear_one(
        self,
        names: Sequence[str],
        receive: Callable[[LayerInput], None],
        number: int,
        begin: Callable[[Rows], None] | None = None,
    ) -> Any:
        """What the block gives for one minibatch."""
        layers = {name: self._layer(name) for name in names}
        call = self.stream.call(self.index, number)
        hear = partial(self._hear, receive, call, self.stream.text_mask(number))
        if begin is not None:
            begin(call.rows)
        with _listening(layers, hear):
            return self._run(call)

    def _spread(self, minibatches: int | None) -> range:
        wanted = self.minibatches if minibatches is None else min(minibatches, self.minibatches)
        return range(0, self.minibatches // wanted * wanted, self.minibatches // wanted)

    def _hear(
        self,
        receive: Callable[[LayerInput], None],
        call: BlockInput,
        mask: Tensor | None,
        name: str,
        _: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        x: Tensor = args[0] if args else kwargs["input"]
        real = real_tokens(x, call.kwargs, mask)
        seen = x if real is None else x.masked_fill(~real[..., None], 0)
        if not _is_finite(seen):
            raise self._bad(f"layer {name} of block {self.index} receives", seen, call.rows)
        receive(LayerInput(name, x, call.rows, real))

    @torch.no_grad()
    def _run(self, call: BlockInput) -> Any:
        with evaluating(self.block):
            return self.block(*call.args, **call.kwargs)

    def _refuse_not_finite(self, output: Any, rows: Rows) -> None:
        for tensor in tensors(output).values():
            if not _is_finite(tensor):
                raise self._bad(f"block {self.index} gives", tensor, rows)

    def _bad(self, what: str, x: Tensor, rows: Rows) -> BadCalibration:
        where = f"rows {rows.indices.start} to {rows.indices.stop - 1}"
        if len(x) == len(rows.indices):
            row = int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
            where = f"row {rows.indices[row]}"
            if rows.timesteps is not None:
                where += f" (timestep {rows.timesteps[row]:g})"
        return BadCalibration(f"{what} NaN or infinity in {where}; allowed: finite numbers")

    def _layer(self, name: str) -> nn.Module:
        try:
            return self.block.get_submodule(name)
        except AttributeError:
            names = ", ".join(inner for inner, _ in self.block.named_modules() if inner)
            raise BadArgument(
                f"block {self.index} has no layer {name!r}; it has: {names}"
            ) from None


class _Enough(Exception):
    """All that was asked for has been heard."""


def _keep_first(found: dict[str, LayerInput], given: LayerInput) -> None:
    found.setdefault(given.name, given)


def _until_all(names: Sequence[str], found: dict[str, LayerInput], given: LayerInput) -> None:
    _keep_first(found, given)
    if len(found) == len(names):
        raise _Enough


def _is_finite(x: Tensor) -> bool:
    """One pass over x: neither end of a range that holds NaN is a number."""
    if not x.is_floating_point() or not x.numel():
        return True
    return bool(torch.stack(x.aminmax()).isfinite().all())


@contextmanager
def _listening(layers: dict[str, nn.Module], hear: Callable[..., None]) -> Iterator[None]:
    hooks = [
        layer.register_forward_pre_hook(partial(hear, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
