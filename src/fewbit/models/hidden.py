"""Matrices that a model holds in another form than nn.Linear, shown as linears and put back.

A convolution of one pixel is a linear over channels: it is called PATH.linear. A parameter
[experts, in, out] is a linear for each expert: PATH_matrices.0 and so on. Whoever replaces such a
linear needs to know of neither; what nobody has replaced becomes again what it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fewbit.models.lists import candidates

LEAST_SIDE = 8  # of a matrix: what is smaller is a table of shifts or the like
SIDES = 3  # of a table of matrices
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TOLD = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
_MATRICES = "_matrices"
_OF = "_reads_matrices"
_NAME = re.compile(rf"(.+)\.linear|(.+){_MATRICES}\.\d+")


@contextmanager
def shown(model: nn.Module) -> Iterator[None]:
    """The hidden linears of all that may be a block are in sight; those that are still the model's
    own at the end are hidden again."""
    taken = []
    try:
        for name in [name for block in candidates(model) for name in _hidden(model, block)]:
            taken.append(_show(model, name))
        yield
    finally:
        for back in reversed(taken):
            back()


def show_at(model: nn.Module, name: str) -> bool:
    """Bring the linear of that name in sight; whether a hidden one is called so."""
    match = _NAME.fullmatch(name)
    path = match and (match[1] or match[2])
    if not path or not _is_hidden(model, path):
        return False
    _show(model, path)
    return True


def hide(model: nn.Module) -> None:
    """Everything whose linears are plain ones becomes again what it was, with their weights."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Pointwise | Table) and module.is_plain:
            parent, _, own = name.rpartition(".")
            module.put_back(model.get_submodule(parent), own)


def is_shown(model: nn.Module, name: str) -> bool:
    """Whether the layer of that name is one that was hidden."""
    parent = model.get_submodule(name.rpartition(".")[0])
    return isinstance(parent, Pointwise | Table)


def is_table(tensor: Tensor) -> bool:
    """Whether it holds several matrices, such as those of all experts."""
    sides = tensor.shape
    return len(sides) == SIDES and min(sides[1:]) >= LEAST_SIDE and sides[0] > 1


def is_pointwise(module: nn.Module) -> bool:
    """Whether it is a convolution that sees one pixel at a time, of all channels, and that nobody
    listens to."""
    if type(module) not in _CONVOLUTIONS or module._forward_hooks or module._forward_pre_hooks:
        return False
    plain: Any = module
    ones = {*plain.kernel_size, *plain.stride, plain.groups}
    return ones == {1} and not any(plain.padding) and "weight" in plain._parameters


class Pointwise(nn.Module):
    """A convolution of one pixel: its linear reads the channels of each."""

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        self.kind: Any = type(convolution)
        self.axis = -len(convolution.kernel_size) - 1
        for name in _TOLD:
            setattr(self, name, getattr(convolution, name))
        weight = convolution.weight.detach().flatten(1)
        self.linear = _linear(weight, convolution.bias, convolution.training)
        self.training = convolution.training

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x.movedim(self.axis, -1))
        return y.movedim(-1, self.axis)

    @property
    def is_plain(self) -> bool:
        return type(self.linear) is nn.Linear

    def put_back(self, parent: nn.Module, own: str) -> None:
        rows, columns = self.linear.weight.shape
        found = self.kind(columns, rows, 1, bias=False, device="meta")
        shape = found.weight.shape
        found.weight = nn.Parameter(self.linear.weight.detach().view(shape), requires_grad=False)
        found.register_parameter("bias", self.linear.bias)
        setattr(parent, own, found.train(self.training))


class Table(nn.ModuleList):
    """A parameter [experts, in, out]: a linear for each expert, in the module that reads them."""

    def __init__(self, table: Tensor) -> None:
        super().__init__(_linear(matrix.T, None, training=False) for matrix in table.detach())
        self.sides = tuple(table.shape)

    @property
    def is_plain(self) -> bool:
        return all(type(linear) is nn.Linear for linear in self)

    def put_back(self, parent: nn.Module, own: str) -> None:
        table = torch.stack([one.weight.detach().T for one in self]).contiguous()  # type: ignore
        _take_out(parent, own.removesuffix(_MATRICES))
        parent.register_parameter(
            own.removesuffix(_MATRICES), nn.Parameter(table, requires_grad=False)
        )


class Matrices(Tensor):
    """What the forward reads where the parameter was: a number picks the matrix of an expert, and
    all else sees the numbers."""

    layers: tuple[Any, ...]

    @classmethod
    def of(cls, layers: Any, *shape: int) -> Matrices:
        weight = layers[0].weight
        like = weight() if callable(weight) else weight  # it is made where it is being trained
        make: Any = Tensor._make_wrapper_subclass
        found: Matrices = make(cls, shape, dtype=like.dtype, device=like.device)
        found.layers = tuple(layers)
        return found

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        first, *others = args
        if func in _TELLING:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if func is Tensor.__getitem__ and _is_number(others[0]):
            layer = first.layers[int(others[0])]
            return Matrix.of([layer], *first.shape[1:])
        return cls.__torch_dispatch__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*tree_map(_numbers, args), **tree_map(_numbers, kwargs or {}))

    def numbers(self) -> Tensor:
        return torch.stack([_weight(layer).T for layer in self.layers])


class Matrix(Matrices):
    """[in, out], of one expert: a product with it is what its linear gives."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        x, matrix = reversed(args[:2]) if func is Tensor.__rmatmul__ else (*args, None)[:2]
        if func in _PRODUCTS and isinstance(matrix, Matrix) and not isinstance(x, Matrices):
            return matrix.layers[0](x)
        return super().__torch_function__(func, types, args, kwargs)

    def numbers(self) -> Tensor:
        return _weight(self.layers[0]).T


_PRODUCTS = {
    torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__, Tensor.__rmatmul__,
}  # fmt: skip
_TELLING = {
    getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad")
} | {Tensor.size, Tensor.dim, Tensor.__len__}


def _numbers(one: Any) -> Any:
    return one.numbers() if isinstance(one, Matrices) else one


def _is_number(index: Any) -> bool:
    return isinstance(index, int) or (isinstance(index, Tensor) and index.ndim == 0)


def _weight(layer: Any) -> Tensor:
    """What a linear multiplies with; one that stands for it says so itself."""
    if isinstance(layer, nn.Linear):
        return layer.weight
    weight: Tensor = layer.effective_weight()
    return weight.to(layer.weight.dtype)


def _hidden(model: nn.Module, block: str) -> Iterator[str]:
    for name, module in model.get_submodule(block).named_modules(prefix=block):
        if is_pointwise(module):
            yield name
        for own, parameter in module.named_parameters(recurse=False):
            if is_table(parameter) and not isinstance(module, _CONVOLUTIONS):
                yield f"{name}.{own}"


def _show(model: nn.Module, path: str) -> Callable[[], None]:
    parent, _, own = path.rpartition(".")
    owner = model.get_submodule(parent)
    return _show_table(owner, own) if own in owner._parameters else _show_convolution(owner, own)


def _show_convolution(owner: nn.Module, own: str) -> Callable[[], None]:
    convolution = owner._modules[own]
    stand_in = Pointwise(convolution)

    def back() -> None:
        if owner._modules.get(own) is stand_in and stand_in.is_plain:
            owner._modules[own] = convolution

    owner._modules[own] = stand_in
    return back


def _show_table(owner: nn.Module, own: str) -> Callable[[], None]:
    parameters, table = dict(owner._parameters), owner._parameters[own]
    assert table is not None
    layers = Table(table)

    def back() -> None:
        if owner._modules.get(own + _MATRICES) is layers and layers.is_plain:
            _take_out(owner, own)
            owner._parameters.clear()
            owner._parameters.update(parameters)

    del owner._parameters[own]
    owner._modules[own + _MATRICES] = layers
    owner.__class__ = _reading(*_reads(owner), own)
    return back


def _take_out(owner: nn.Module, own: str) -> None:
    cls, *names = _reads(owner)
    names.remove(own)
    del owner._modules[own + _MATRICES]
    owner.__class__ = _reading(cls, *names) if names else cls


def _reads(owner: nn.Module) -> tuple[Any, ...]:
    """Its class, and the tables that it reads."""
    known: tuple[Any, ...] = vars(type(owner)).get(_OF, (type(owner),))
    return known


@cache
def _reading(cls: Any, *names: str) -> Any:
    """A subclass that reads the linears where it had parameters of these names."""
    inherited = cls.__reduce_ex__

    def reduced(self: Any, protocol: Any) -> Any:
        _, _, *rest = inherited(self, protocol)
        return _empty, (cls, *names), *rest

    members = {name: property(partial(_read, name=name)) for name in names}
    own = {_OF: (cls, *names), "__reduce_ex__": reduced, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), {**members, **own})


def _empty(cls: Any, *names: str) -> Any:
    reading = _reading(cls, *names)
    return reading.__new__(reading)


def _read(owner: nn.Module, name: str) -> Tensor:
    layers: Any = owner._modules[name + _MATRICES]
    return Matrices.of(layers, *layers.sides)


def _is_hidden(model: nn.Module, path: str) -> bool:
    parent, _, own = path.rpartition(".")
    try:
        owner = model.get_submodule(parent)
    except AttributeError:
        return False
    table, module = owner._parameters.get(own), owner._modules.get(own)
    return (table is not None and is_table(table)) or (module is not None and is_pointwise(module))


def _linear(weight: Tensor, bias: nn.Parameter | None, training: bool) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.register_parameter("bias", bias)
    return linear.train(training)
