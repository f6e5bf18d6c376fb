"""What a model is made of: every linear with its role, how it is stored, and its bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Any

from torch import nn

from fewbit.engine.call import call_for
from fewbit.engine.columns import Row, aligned
from fewbit.engine.offers import HEAD, Offer, by_size, offered, offers_for
from fewbit.engine.recipe import unknown_part
from fewbit.engine.stored_size import Size, by_owner, bytes_by_name
from fewbit.formats.names import brief, megabytes
from fewbit.layers.adapters import adapter_names, inner_layer
from fewbit.layers.attention import OPERANDS, quantized_attentions
from fewbit.layers.linear import QLinear, quantized_layers
from fewbit.models import (
    Component,
    Layer,
    ModelSpec,
    components_of,
    describe,
    is_known,
    quantized_components,
)
from fewbit.models.hidden import shown
from fewbit.pages.notebook import shown as in_notebook
from fewbit.storage.folder import component_folders, skeleton
from fewbit.storage.foreign.loading import DIALECTS
from fewbit.storage.reader import CONFIG, PIPELINE_INDEX, Artefact
from fewbit.storage.spec_file import Given, spec_from, specs_from
from fewbit.storage.strict_json import read_table

WIDTH = 80
_HEAD = ("role", "n", "status", "shape", "weight", "input", "MB")
NUMBERS, INPUT = (
    (1, 6),
    5,
)  # the columns of counts and of megabytes, and of what is done to an input
LEAST = 12  # characters of the latter


@dataclass(frozen=True)
class InspectedLayer:
    name: str
    role: str | None
    status: str  # "quantized", "quantizable", "keep" or "unknown"
    shape: tuple[int, ...]
    bytes: int
    weight: str | None = None  # how it is packed
    input: str | None = None  # what happens to its input


@dataclass(frozen=True)
class InspectedAttention:
    """How the operands of its two matmuls are rounded."""

    name: str
    query: str
    key: str
    shares: str
    value: str

    def __str__(self) -> str:
        operands = {"q": self.query, "k": self.key, "shares": self.shares, "v": self.value}
        ways: dict[str, list[str]] = {}
        for operand, way in operands.items():
            ways.setdefault(brief(way), []).append(operand)
        return "; ".join(f"{', '.join(alike)} {way}" for way, alike in ways.items())


@dataclass(frozen=True)
class Inspection:
    family: str
    origin: str  # of the structure
    spec: dict[str, Any]  # what a `ModelSpec` is made of
    notes: tuple[str, ...]  # where the blocks are, and what stays in high precision
    recipe: dict[str, Any] | None
    layers: tuple[InspectedLayer, ...]
    attentions: tuple[InspectedAttention, ...]  # those with quantized matmuls
    other_bytes: int
    adapters: tuple[str, ...] = ()  # whose bytes are in their layers'
    offers: tuple[Offer, ...] = ()  # what it would weigh, where it is in full precision
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> Size:
        """As saved and loaded, by what it is made of."""
        packed = sum(layer.bytes for layer in self.layers if layer.status == "quantized")
        kept = sum(layer.bytes for layer in self.layers) - packed
        return Size(packed, kept, self.other_bytes)

    @property
    def bytes(self) -> int:
        return self.size.bytes

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "size": asdict(self.size), "bytes": self.bytes}

    def __repr__(self) -> str:
        return f"<Inspection: {self._head()}, {self.size}>"

    def _repr_html_(self) -> str:
        other = ("no linear layer", *[""] * 5, f"{self.other_bytes / 1e6:.2f}")
        told = (f"{self.size}", *self.notes, *self._matmuls(), *self.warnings)
        own = in_notebook(self._head(), _HEAD, [*self._rows(), other], told)
        return own + (in_notebook("", HEAD, by_size(self.offers), ()) if self.offers else "")

    def _head(self) -> str:
        made = f", {self.recipe['method']}:{self.recipe['bits']}" if self.recipe else ""
        return f"{self.family}{made}" + (
            f", with {', '.join(self.adapters)}" if self.adapters else ""
        )

    def _rows(self) -> list[Row]:
        """One for each role and way of storing."""
        kinds: dict[tuple[Any, ...], list[InspectedLayer]] = {}
        for layer in self.layers:
            key = (layer.role, layer.status, layer.shape, layer.weight, layer.input)
            kinds.setdefault(key, []).append(layer)
        return [
            _row(role, str(len(same)), status, _size(shape), weight, how, _megabytes(same))
            for (role, status, shape, weight, how), same in kinds.items()
        ]

    def __str__(self) -> str:
        """One row for each role and way of storing; `table()` has a row for each layer."""
        table = _table([_HEAD, *self._rows()])
        return "\n".join(
            [
                self._head(),
                f"  {self.size}",
                *self.notes,
                *table,
                *self._matmuls(),
                f"  {'no linear layer':<{len(table[0]) - 10}} {self.other_bytes / 1e6:>7.2f}",
                *offered(self.offers),
                *(f"  warning: {warning}" for warning in self.warnings),
            ]
        )

    def _matmuls(self) -> list[str]:
        counts = Counter(map(str, self.attentions))
        return [f"  {'matmuls':<9} {count:>3} {how}" for how, count in counts.items()]

    def table(self) -> str:
        """The name of each layer, and below it what it is."""
        return "\n".join(line for layer in self.layers for line in _lines(layer))


@dataclass(frozen=True)
class Inspections:
    """Of several networks of a pipeline, by their names."""

    parts: Mapping[str, Inspection]

    @property
    def layers(self) -> tuple[InspectedLayer, ...]:
        """Those of all, their names beginning with that of the network."""
        return tuple(
            replace(layer, name=f"{name}.{layer.name}")
            for name, part in self.parts.items()
            for layer in part.layers
        )

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts.values())

    @property
    def spec(self) -> dict[str, Any]:
        """As `fewbit.quantize(spec=...)` takes them."""
        return {name: part.spec for name, part in self.parts.items()}

    def to_dict(self) -> dict[str, Any]:
        return {name: part.to_dict() for name, part in self.parts.items()}

    def __repr__(self) -> str:
        return f"<Inspections: {', '.join(self.parts)}, {megabytes(self.bytes)}>"

    def _repr_html_(self) -> str:
        return "".join(
            f"<p>{escape(name)}</p>\n{part._repr_html_()}" for name, part in self.parts.items()
        )

    def __str__(self) -> str:
        return "\n".join(f"{name}: {part}" for name, part in self.parts.items())

    def table(self) -> str:
        return "\n".join(f"{name}:\n{part.table()}" for name, part in self.parts.items())


def inspect_model(model: Any, spec: Given = None) -> Inspection | Inspections:
    """Of a pipeline or a module."""
    components = _components(model)
    told = specs_from(spec, [one.name for one in components])
    return _of_all({one.name: _inspect(model, one, told[one.name]) for one in components})


def inspect_folder(folder: Path, spec: Given = None) -> Inspection | Inspections:
    """Of the folder of a saved model, whose tensors are not loaded."""
    if not (folder / PIPELINE_INDEX).exists():
        return _inspect_folder(folder, spec_from(spec))
    folders = component_folders(folder)
    told = specs_from(spec, list(folders))
    return _of_all({name: _inspect_folder(at, told[name]) for name, at in folders.items()})


def _of_all(parts: Mapping[str, Inspection]) -> Inspection | Inspections:
    return next(iter(parts.values())) if len(parts) == 1 else Inspections(parts)


def _components(model: Any) -> tuple[Component, ...]:
    """Those that denoise, and those that are quantized."""
    if isinstance(model, nn.Module):
        return components_of(model)
    named = {one.name: one for one in (*quantized_components(model), *components_of(model))}
    return tuple(named.values())


def _inspect(model: Any, component: Component, spec: ModelSpec | None) -> Inspection:
    network = component.network
    provenance = getattr(network, "fewbit", None)
    call = call_for(model, component) if spec is None and not is_known(network) else None
    return _inspect_module(network, spec, None if provenance is None else provenance.recipe, call)


def _inspect_folder(folder: Path, spec: ModelSpec | None) -> Inspection:
    config = read_table(folder / CONFIG)
    if "quantization_config" not in config:
        return _inspect_module(skeleton(folder, config), spec, None, folder=folder)
    artefact = Artefact.open(folder)
    model = skeleton(folder, config, artefact)
    artefact.prepare(model)
    manifest = artefact.manifest
    return _inspect_module(model, spec, manifest.provenance.recipe, aliases=manifest.aliases)


def _way(activation: nn.Module | None) -> str:
    return "as they are" if activation is None else activation.extra_repr()


def _inspect_module(
    module: nn.Module,
    spec: ModelSpec | None,
    recipe: dict[str, Any] | None,
    call: Mapping[str, Any] | None = None,
    aliases: Collection[str] | None = None,
    folder: Path | None = None,
) -> Inspection:
    with shown(module):
        structure = describe(module, spec, call)
        names = {layer.name for layer in structure.layers}
        held = by_owner(bytes_by_name(module, aliases), names)
        is_plain = not quantized_layers(module)
        offers = offers_for(module, structure, folder) if is_plain else ()
        layers = tuple(
            _layer(one, module.get_submodule(one.name), held[one.name]) for one in structure.layers
        )
    attentions = tuple(
        InspectedAttention(name, *(_way(getattr(matmuls, part)) for part in OPERANDS))
        for name, matmuls in quantized_attentions(module).items()
    )
    foreign = recipe is not None and recipe["method"] in DIALECTS
    unknown = None if recipe is None or foreign else unknown_part(recipe)
    return Inspection(
        structure.family,
        str(structure.origin),
        structure.spec.to_dict(),
        tuple(structure.notes()),
        recipe,
        layers,
        attentions,
        held[None],
        adapter_names(module),
        offers,
        () if unknown is None else (f"made by a recipe of another fewbit: {unknown}",),
    )


def _layer(layer: Layer, module: nn.Module, size: int) -> InspectedLayer:
    role = None if layer.role is None else str(layer.role)
    module = inner_layer(module)
    if not isinstance(module, QLinear):
        status = "quantizable" if layer.status == "quantize" else layer.status
        return InspectedLayer(layer.name, role, status, layer.shape, size)
    rounded = None if module.stage is None else str(module.stage)
    weight = str(module.spec)
    return InspectedLayer(layer.name, role, "quantized", layer.shape, size, weight, rounded)


def _lines(layer: InspectedLayer) -> list[str]:
    what = f"{layer.role or '-':<9} {layer.status:<11} {_size(layer.shape):<11} {layer.bytes:>9}"
    how = f"{brief(layer.weight or '')}  {brief(layer.input or '')}".rstrip()
    return [layer.name, *wrap(f"{what}  {how}", WIDTH, initial_indent="  ",
                              subsequent_indent="    ")]  # fmt: skip


def _row(
    role: str | None,
    count: str,
    status: str,
    shape: str,
    weight: str | None,
    how: str | None,
    size: str,
) -> Row:
    return role or "-", count, status, shape, brief(weight or "-"), brief(how or "-"), size


def _table(rows: Sequence[Row]) -> list[str]:
    """What happens to an input takes more lines where it would be wider than the screen."""
    widest = [max(map(len, column)) for column in zip(*rows, strict=True)]
    over = 2 + sum(widest) + len(widest) - 1 - WIDTH
    if over > 0:
        width = max(widest[INPUT] - over, LEAST)
        rows = [row for one in rows for row in _in_lines(one, width)]
    return aligned(rows, NUMBERS)


def _in_lines(row: Row, width: int) -> list[Row]:
    first, *more = wrap(row[INPUT], width)
    blank = ("",) * len(row)
    return [
        (*row[:INPUT], first, *row[INPUT + 1 :]),
        *((*blank[:INPUT], line, *blank[INPUT + 1 :]) for line in more),
    ]


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _megabytes(layers: Iterable[InspectedLayer]) -> str:
    return f"{sum(layer.bytes for layer in layers) / 1e6:.2f}"
