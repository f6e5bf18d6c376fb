"""The map of a model: every linear with its place, role, status and size."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from textwrap import wrap
from typing import Any, Literal

from torch import Size, Tensor, nn

from fewbit.errors import BadArgument, BadModel
from fewbit.models.component import transformer_of
from fewbit.models.hidden import LEAST_SIDE, is_shown
from fewbit.models.lists import lists_of
from fewbit.models.recognise import Origin, recognise
from fewbit.models.spec import ModelSpec, Role

Status = Literal["quantize", "keep", "unknown"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WIDTH = 80  # of what is printed
_SHOWN = 4
LINEAR_SIDES = 2
_OUT_OF_VALUE = {
    Role.V: Role.ATTN_OUT,
    Role.QKV: Role.ATTN_OUT,
    Role.CROSS_V: Role.CROSS_OUT,
}


@dataclass(frozen=True)
class Layer:
    """One linear (or convolution) of the model."""

    name: str
    role: Role | None
    status: Status
    block: int | None
    shape: tuple[int, ...]  # of the weight: [out, in] for a linear
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Attention:
    """Value projections whose heads reach the out projections unchanged but for the mixing of
    tokens: what turns a head's values may be undone in the out projections' columns."""

    values: tuple[str, ...]
    outs: tuple[str, ...]
    head_width: int


@dataclass(frozen=True)
class Matrices:
    """A parameter of a block that holds several matrices and belongs to no layer, such as those of
    all experts."""

    name: str
    shape: tuple[int, ...]
    kept: bool  # by name

    @property
    def parameters(self) -> int:
        return Size(self.shape).numel()


@dataclass(frozen=True)
class LeftOut:
    """What stays in high precision, and whether somebody who knows the model said so."""

    what: str
    names: tuple[str, ...]
    parameters: int
    intended: bool


@dataclass(frozen=True)
class Structure:
    family: str
    spec: ModelSpec
    origin: Origin
    blocks: tuple[str, ...]  # module names, in order of execution
    layers: tuple[Layer, ...]
    matrices: tuple[Matrices, ...]
    other_parameters: int  # norms, embedding tables, free parameters
    other_bytes: int

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers) + self.other_parameters

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers) + self.other_bytes

    @property
    def unknown(self) -> tuple[Layer, ...]:
        """Linears that are neither mapped to a role nor kept."""
        return tuple(layer for layer in self.layers if layer.status == "unknown")

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """All weights that a method is not asked about, by what they are."""
        kinds: dict[tuple[str, bool], list[Layer | Matrices]] = {}
        for layer in self.layers:
            if layer.status != "quantize":
                kinds.setdefault(self._kind(layer), []).append(layer)
        for one in self.matrices:
            kinds.setdefault(("matrices of experts", one.kept), []).append(one)
        return tuple(
            LeftOut(what, tuple(one.name for one in ones), sum(o.parameters for o in ones), said)
            for (what, said), ones in kinds.items()
        )

    @property
    def unknown_share(self) -> float:
        """Of all parameters, those that stay in high precision although nobody said so."""
        unknown = sum(one.parameters for one in self.left_out if not one.intended)
        return unknown / max(self.parameters, 1)

    def in_order(self, blocks: tuple[str, ...]) -> Structure:
        """The same structure with its blocks in this order."""
        place = {name: number for number, name in enumerate(blocks)}
        layers = tuple(
            one if one.block is None else replace(one, block=place[self.blocks[one.block]])
            for one in self.layers
        )
        return replace(self, blocks=blocks, layers=layers)

    def notes(self) -> list[str]:
        """Where the blocks are, who says so, and what stays out, in lines for people."""
        said = [f"structure {self.origin}: blocks in {some(self.spec.blocks)}"]
        inside = sum(one.parameters for one in self.layers if one.status == "quantize")
        said.append(f"{inside / max(self.parameters, 1):.1%} of the weights can be quantized")
        for one in self.left_out:
            share = one.parameters / max(self.parameters, 1)
            said.append(f"{share:.1%} of the weights stay: {one.what} ({some(_alike(one.names))})")
        return [
            line
            for one in said
            for line in wrap(
                one,
                WIDTH,
                initial_indent="  ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        ]

    def quantizable(self, block: int) -> tuple[Layer, ...]:
        return tuple(layer for layer in self._inside(block) if layer.status == "quantize")

    @property
    def outside(self) -> tuple[Layer, ...]:
        """The linears with a role that are in no block."""
        return tuple(la for la in self.layers if la.block is None and la.status == "quantize")

    def shared_inputs(self, block: int) -> tuple[tuple[str, ...], ...]:
        """The block's linears grouped by the tensor they read, every linear with a role once.

        Kept linears are in their group too: whoever rescales the tensor must know all consumers.
        """
        consumers: dict[str, list[Layer]] = {}
        for layer in self._inside(block):
            if layer.role:
                source = self.spec.source(*self._place(layer.name, block))
                consumers.setdefault(source, []).append(layer)
        for group in consumers.values():
            told = self.spec.sharers(*self._place(group[0].name, block)) is not None
            _refuse_if_not_one_input(group, told)
        return tuple(tuple(layer.name for layer in group) for group in consumers.values())

    def attentions(self, block: int) -> tuple[Attention, ...]:
        """The attentions whose value and out projections face each other directly."""
        values: dict[tuple[str, Role], list[str]] = {}
        for layer in self._inside(block):
            if layer.role in _OUT_OF_VALUE:
                place = layer.name.rpartition(".")[0], _OUT_OF_VALUE[layer.role]
                values.setdefault(place, []).append(layer.name)
        found = []
        for (parent, role), names in values.items():
            outs = [
                layer
                for layer in self._inside(block)
                if layer.role is role and layer.name.startswith(f"{parent}.")
            ]
            heads = self.spec.heads_of(*self._place(parent, block))
            if outs and heads is not None:
                width = _head_width(outs[0], heads)
                found.append(Attention(tuple(names), tuple(out.name for out in outs), width))
        return tuple(found)

    def attending(self, block: int) -> tuple[str, ...]:
        """The modules that multiply queries with keys: those that hold a query projection."""
        holders = (
            layer.name.rpartition(".")[0]
            for layer in self._inside(block)
            if layer.role in (Role.Q, Role.QKV, Role.CROSS_Q)
        )
        return tuple(dict.fromkeys(holders))

    def _place(self, name: str, block: int) -> tuple[str, str]:
        """The path inside its block, and the block."""
        at = self.blocks[block]
        return name.removeprefix(at).removeprefix("."), at

    def _kind(self, layer: Layer) -> tuple[str, bool]:
        """What a layer that is left out is, and whether that is intended. What a person or a family
        keeps is; so is a convolution outside of the blocks, which makes patches of an image."""
        told = self.origin not in (Origin.FORWARD, Origin.NAMES)
        kept = layer.status == "keep" and self.spec.keeps(layer.name)
        kind = "linears" if len(layer.shape) == LINEAR_SIDES else "convolutions"
        if layer.block is None:
            return f"{kind} outside of the blocks", (told and kept) or kind == "convolutions"
        return f"{kind} inside of the blocks", kept

    def _inside(self, block: int) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.block == block)


def describe(
    model: object, spec: ModelSpec | None = None, call: Mapping[str, Any] | None = None
) -> Structure:
    """The structure of a pipeline, a transformer, or any module.

    It is what `spec` says, else what the model carries since it was quantized, else what its family
    knows, else what one forward on the keyword arguments `call` shows, else what names tell.
    """
    transformer = transformer_of(model)
    family, origin = type(transformer).__name__, Origin.GIVEN
    if spec is None:
        family, spec, origin = recognise(transformer, call)
    elif not isinstance(spec, ModelSpec):
        raise BadArgument(f"spec must be a fewbit.ModelSpec, got {type(spec).__name__}")
    blocks = _block_names(transformer, spec)
    layers: list[Layer] = []
    matrices: list[Matrices] = []
    parameters = size = 0
    for name, module in _leaves(transformer):
        if is_layer(module):
            layers.append(_layer(name, module, spec, blocks, is_shown(transformer, name)))
        else:
            matrices += _matrices(name, module, spec, blocks)
            parameters += sum(p.numel() for p in module.parameters(recurse=False))
            size += _bytes(module, recurse=False)
    structure = Structure(
        family, spec, origin, blocks, tuple(layers), tuple(matrices), parameters, size
    )
    for block in range(len(blocks)):
        structure.shared_inputs(block)
        structure.attentions(block)
    return structure


def _alike(names: Sequence[str]) -> list[str]:
    """Each pattern once of names that differ in their numbers alone."""
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names))


def some(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _block_names(model: nn.Module, spec: ModelSpec) -> tuple[str, ...]:
    modules, lists = dict(model.named_modules()), lists_of(model)
    for path in spec.blocks:
        if path not in lists and not _is_member(path, lists, modules):
            raise BadModel(
                f"ModelSpec.blocks names {path!r}, which is neither a list of modules nor a member "
                f"of one in {type(model).__name__}; its lists: {', '.join(lists) or 'none'}"
            )
    names = [
        name
        for path in spec.blocks
        for name in ([f"{path}.{i}" for i in range(lists[path])] if path in lists else [path])
    ]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadModel(f"ModelSpec.blocks names the block {twice!r} twice; name it once")
    return tuple(names)


def _is_member(path: str, lists: Mapping[str, int], modules: Mapping[str, nn.Module]) -> bool:
    return path in modules and path.rpartition(".")[0] in lists


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules, but nothing from inside a layer: what a layer is made of is its own affair."""
    closed: str | None = None
    for name, module in model.named_modules():
        if closed is not None and name.startswith(f"{closed}."):
            continue
        if is_layer(module):
            closed = name
        yield name, module


def is_layer(module: nn.Module) -> bool:
    return _is_linear(module) or isinstance(module, _CONVOLUTIONS)


def _is_linear(module: nn.Module) -> bool:
    """Also true of whatever already stands where a linear stood."""
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def _layer(
    name: str, module: Any, spec: ModelSpec, blocks: tuple[str, ...], was_hidden: bool
) -> Layer:
    """One that was hidden and has no role stays: whoever wrote the spec need not know of it."""
    block = _block_of(name, blocks)
    at = "" if block is None else blocks[block]
    path = name.removeprefix(f"{at}.")
    role = spec.role_outside(name) if block is None else spec.role(path, at)
    shape = _shape(module)
    bias = getattr(module, "bias", None)
    count = shape.numel() + (bias.numel() if isinstance(bias, Tensor) else 0)
    size = module.nbytes() if hasattr(module, "nbytes") else _bytes(module, recurse=True)
    status = "keep" if was_hidden and role is None else _status(name, module, role, spec)
    return Layer(name, role, status, block, tuple(shape), count, size)


def _block_of(name: str, blocks: tuple[str, ...]) -> int | None:
    return next((i for i, at in enumerate(blocks) if f"{name}.".startswith(f"{at}.")), None)


def _matrices(
    name: str, module: nn.Module, spec: ModelSpec, blocks: tuple[str, ...]
) -> Iterator[Matrices]:
    if _block_of(name, blocks) is None:
        return
    for own, parameter in module.named_parameters(recurse=False):
        sides, path = parameter.shape, f"{name}.{own}"
        if len(sides) > LINEAR_SIDES and min(sides[-2:]) >= LEAST_SIDE and sides[0] > 1:
            yield Matrices(path, tuple(sides), spec.keeps(path))


def _status(name: str, module: nn.Module, role: Role | None, spec: ModelSpec) -> Status:
    if spec.keeps(name) or not _is_linear(module):
        return "keep"
    return "quantize" if role else "unknown"


def _shape(module: Any) -> Size:
    if _is_linear(module):
        return Size((module.out_features, module.in_features))
    return module.weight.shape


def _bytes(module: nn.Module, *, recurse: bool) -> int:
    tensors = chain(module.parameters(recurse=recurse), module.buffers(recurse=recurse))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _refuse_if_not_one_input(group: list[Layer], told: bool) -> None:
    """Two linears of one role, or of two input widths, betray two inputs taken for one. What
    `ModelSpec.shared` says is believed."""
    names = ", ".join(layer.name for layer in group)
    if len({layer.shape[1] for layer in group}) > 1:
        widths = ", ".join(str(layer.shape[1]) for layer in group)
        raise BadModel(f"{names} are said to read one tensor but read widths {widths}")
    roles = [layer.role for layer in group if layer.role is not Role.ADALN]
    if len(set(roles)) < len(roles) and not told:
        raise BadModel(
            f"{names} would read one tensor although a role occurs twice among them; "
            "say in ModelSpec.shared which of them do"
        )


def _head_width(out: Layer, heads: int) -> int:
    if out.shape[1] % heads:
        raise BadModel(f"{out.name} reads {out.shape[1]} channels, not divisible by {heads} heads")
    return out.shape[1] // heads
