"""What one forward shows of each block: which layers ran, on which tensors, and what fed them.

The blocks run with gradients, the rest of the model without, so that a graph is never larger than
one block. It is read when the block ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from fewbit.errors import BadCalibration, BadModel
from fewbit.models.flexible_attention import differentiable
from fewbit.models.fused_attention import AttentionCall
from fewbit.models.graph import Node
from fewbit.models.lists import linears_in

Same = tuple[Any, ...]  # equal for the very same tensor


@dataclass(frozen=True, eq=False)
class Ran:
    """One call of a linear. The tensors are kept until the block has ended: an address that is in
    use belongs to one of them."""

    path: str
    x: Tensor
    out: Tensor
    read: Same  # which tensor x was then

    @property
    def rows(self) -> int:
        return self.x.numel() // max(self.x.shape[-1], 1)


@dataclass(frozen=True, eq=False)
class Attended:
    """One call of the fused attention."""

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor

    @property
    def heads(self) -> int | None:
        return self.out.shape[1] if self.out.ndim == 4 else None

    @property
    def width(self) -> int | None:
        """Channels of all heads side by side."""
        return None if self.heads is None else self.heads * self.out.shape[-1]


@dataclass
class BlockTrace:
    """The first call of a block; what ran more often in it is there more often."""

    name: str
    ran: list[Ran] = field(default_factory=list)
    attended: list[Attended] = field(default_factory=list)

    @property
    def ends(self) -> dict[Node, str]:
        """Where a way back through the graph ends: at the layers, and at the attentions, which go
        by their numbers."""
        layers = {one.out.grad_fn: one.path for one in self.ran}
        attentions = {one.out.grad_fn: f"#{i}" for i, one in enumerate(self.attended)}
        return {node: end for node, end in {**layers, **attentions}.items() if node is not None}


def trace(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    call: Mapping[str, Any],
    read: Callable[[BlockTrace], None],
    with_gradients: bool = True,
) -> dict[str, int]:
    """Run the model on `call`, the keyword arguments of its forward; `read` is given each block
    that runs, once, in order of execution.

    Returns how many rows each linear outside of the blocks has read.
    """
    watch = _Watch(read, with_gradients)
    with ExitStack() as inside:
        watch.listen_outside(model, blocks, inside)
        for name, block in blocks.items():
            watch.listen(name, block, inside)
        inside.enter_context(_undisturbed(model))
        inside.enter_context(differentiable())
        inside.enter_context(torch.no_grad())
        inside.enter_context(watch)
        try:
            model(**call)
        except Exception as error:  # whatever a foreign forward makes of foreign arguments
            if watch.is_reading or isinstance(error, BadModel):
                raise
            raise BadCalibration(
                f"the forward of {type(model).__name__} cannot run on what it was given "
                f"({', '.join(call)}): {error!r:.300}; give calibration=[{{...}}], dicts of "
                "keyword arguments that it takes"
            ) from None
    return watch.outside


class _Watch(TorchFunctionMode):
    """Writes down what happens in the block that is running."""

    def __init__(self, read: Callable[[BlockTrace], None], with_gradients: bool) -> None:
        super().__init__()
        self.read, self.with_gradients = read, with_gradients
        self.outside: dict[str, int] = {}
        self.now: BlockTrace | None = None
        self.done: set[str] = set()
        self.is_reading = False

    def listen_outside(
        self, model: nn.Module, blocks: Mapping[str, nn.Module], until: ExitStack
    ) -> None:
        inside = tuple(f"{name}." for name in blocks)
        for name, linear in linears_in(model).items():
            if not name.startswith(inside):
                hook = linear.register_forward_hook(partial(self._ran_outside, name))
                until.callback(hook.remove)

    def listen(self, name: str, block: nn.Module, until: ExitStack) -> None:
        for path, linear in linears_in(block).items():
            hook = linear.register_forward_hook(partial(self._ran, path), with_kwargs=True)
            until.callback(hook.remove)
        before = block.register_forward_pre_hook(partial(self._begin, name))
        until.callback(before.remove)
        until.callback(block.register_forward_hook(self._end).remove)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is scaled_dot_product_attention and self.now is not None:
            call = AttentionCall(*args, **(kwargs or {}))
            self.now.attended.append(Attended(call.query, call.key, call.value, out))
        return out

    def _begin(self, name: str, *_: Any) -> None:
        if name not in self.done:
            self.done.add(name)
            self.now = BlockTrace(name)
            torch.set_grad_enabled(self.with_gradients)

    def _ran_outside(self, name: str, linear: Any, _: Any, out: Tensor) -> None:
        self.outside[name] = out.numel() // max(out.shape[-1], 1)

    def _ran(self, path: str, linear: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        if self.now is None:
            return
        if out.shape[-1] != linear.out_features:
            raise BadModel(
                f"{self.now.name}.{path} gives {out.shape[-1]} channels and not its "
                f"{linear.out_features}: a hook changes its output; remove the hook"
            )
        x = args[0] if args else kwargs["input"]
        self.now.ran.append(Ran(path, x, out, _identity(x)))

    def _end(self, block: nn.Module, args: Any, out: Any) -> Any:
        if self.now is None:
            return out
        torch.set_grad_enabled(False)
        done, self.now = self.now, None
        self.is_reading = True
        self.read(done)
        self.is_reading = False
        return _without_graph(out)


def _identity(x: Tensor) -> Same:
    place = x.untyped_storage()._cdata, x.storage_offset(), x.shape, x.stride()
    return *place, 0 if x.is_inference() else x._version


def _without_graph(out: Any) -> Any:
    if isinstance(out, Tensor):
        return out.detach()
    if isinstance(out, tuple | list) and type(out) in (tuple, list):
        return type(out)(map(_without_graph, out))
    return out


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """The model evaluates, its linears give gradients, and all is as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    weights = [linear.weight for linear in linears_in(model).values()]
    plain = [w for w in weights if w.is_leaf and w.is_floating_point() and not w.requires_grad]
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        for module in training:
            module.training = False
        for weight in plain:
            weight.requires_grad_(True)
        try:
            yield
        finally:
            for weight in plain:
                weight.requires_grad_(False)
            for module in training:
                module.training = True
