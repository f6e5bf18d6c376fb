"""Names of another layout, as authors published a model: brought to those of diffusers.

diffusers' own converters rename tensors, split them and join them by rows. They are shown matrices
of row numbers in the place of packed ones, so what they do is known without a packed weight ever
being unpacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewbit.errors import BrokenFile
from fewbit.formats import QTensor, Scales
from fewbit.formats.scale import E4M3_PER_ROW, E4M3_PER_TENSOR
from fewbit.storage.foreign.contents import Contents, ForeignLayer

T = TypeVar("T")

WEIGHT = ".weight"
PREFIX = "model.diffusion_model."  # of files for ComfyUI
_NUMBERS = torch.int32


def named_as(model: nn.Module, contents: Contents) -> Contents:
    """The same under the names that the model has, if it has others and diffusers knows how."""
    known = model.state_dict().keys()
    stored = {f"{name}{WEIGHT}" for name in contents.layers} | contents.tensors.keys()
    convert = _converter(type(model))
    if stored <= known or convert is None:
        return contents
    numbered = _Numbered(contents.layers)
    try:
        found = convert(
            checkpoint={**numbered.matrices, **contents.tensors},
            config=getattr(model, "config", {}),
        )
    except Exception as error:  # a foreign converter fails in any way on what it does not expect
        raise BrokenFile(
            f"{contents.path} has names that neither {type(model).__name__} nor diffusers' "
            f"converter for it knows: {error!r:.200}"
        ) from None
    tensors, layers = dict(found), {}
    for name in [name for name, tensor in found.items() if tensor.dtype == _NUMBERS]:
        layers[name.removesuffix(WEIGHT)] = numbered.layer(contents, name, tensors.pop(name))
    return replace(contents, layers=layers, tensors=tensors)


@dataclass
class _Numbered:
    """Layers whose rows are numbered one after another."""

    layers: Mapping[str, ForeignLayer]

    def __post_init__(self) -> None:
        self.matrices: dict[str, Tensor] = {}
        self.rows: list[tuple[ForeignLayer, int]] = []  # each with the number of its first row
        at = 0
        for name, layer in self.layers.items():
            rows, columns = layer.weight.shape
            numbers = torch.arange(at, at + rows, dtype=_NUMBERS, device="cpu")
            self.matrices[f"{name}{WEIGHT}"] = numbers[:, None].expand(rows, columns)
            self.rows.append((layer, at))
            at += rows

    def layer(self, contents: Contents, name: str, numbers: Tensor) -> ForeignLayer:
        """What the rows of these numbers make."""
        whole = numbers.dim() == 2 and torch.equal(numbers[:, 0], numbers[:, -1])
        if not whole or not name.endswith(WEIGHT):
            raise BrokenFile(
                f"{contents.path}: {name} is made of columns of packed weights, or is no weight of "
                "a layer; only rows of packed weights can be joined"
            )
        return _joined(f"{contents.path}: {name}", list(self._pieces(numbers[:, 0].tolist())))

    def _pieces(self, numbers: list[int]) -> Iterator[ForeignLayer]:
        """Neighbouring rows of one layer together."""
        at = 0
        while at < len(numbers):
            layer, first = next(one for one in reversed(self.rows) if one[1] <= numbers[at])
            begin, end = numbers[at] - first, at + 1
            most = at + layer.weight.shape[0] - begin
            while end < min(most, len(numbers)) and numbers[end] == numbers[end - 1] + 1:
                end += 1
            part = layer.weight.rows(slice(begin, begin + end - at))
            yield replace(layer, weight=part)
            at = end


def _joined(where: str, pieces: Sequence[ForeignLayer]) -> ForeignLayer:
    first = pieces[0]
    if len(pieces) == 1:
        return first
    weights = [_by_row(one.weight) for one in pieces]
    spec, columns = weights[0].spec, weights[0].columns
    alike = all(one.spec == spec and one.columns == columns for one in weights)
    tables: list[Any] = [one.scales.codebook for one in weights]
    one_table = all(t is None or torch.equal(t, tables[0]) for t in tables)
    if not (alike and one_table and all(one.input == first.input for one in pieces)):
        raise BrokenFile(f"{where} is made of rows that are not stored alike and cannot be joined")
    scales = Scales(
        torch.cat([one.scales.stored for one in weights]),
        _rows([one.scales.outer for one in weights]),
        _rows([one.scales.zeros for one in weights]),
        codebook=tables[0],
    )
    packed = torch.cat([one.packed for one in weights])
    return replace(first, weight=QTensor(packed, scales, spec, columns))


def _rows(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def _by_row(weight: QTensor) -> QTensor:
    """One scale, or one outer scale, for all rows becomes one for each."""
    spec, scales, rows = weight.spec, weight.scales, weight.shape[0]
    if spec.span == "tensor":
        stored = scales.stored.expand(rows, 1)
        return replace(
            weight, spec=replace(spec, span="row"), scales=replace(scales, stored=stored)
        )
    if spec.scale is E4M3_PER_TENSOR and scales.outer is not None:
        outer = scales.outer.expand(rows, 1)
        return replace(
            weight,
            spec=replace(spec, scale=E4M3_PER_ROW),
            scales=replace(scales, outer=outer),
        )
    return weight


def _converter(cls: type) -> Callable[..., dict[str, Tensor]] | None:
    """That of diffusers for the class or one that it inherits from, if there is one."""
    try:
        from diffusers.loaders import single_file_model
    except ImportError:
        return None
    known: Any = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
    for parent in cls.__mro__:
        if parent.__name__ in known:
            found: Callable[..., dict[str, Tensor]] = known[parent.__name__][
                "checkpoint_mapping_fn"
            ]
            return found
    return None


def of_the_denoiser(named: Mapping[str, T]) -> dict[str, T]:
    """Of a file that holds whole pipelines, or names as if it did, what belongs to the denoiser."""
    inside = {name.removeprefix(PREFIX): t for name, t in named.items() if name.startswith(PREFIX)}
    return inside or dict(named)
