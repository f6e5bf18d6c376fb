"""What a model is made of: every linear with its role, how it is stored, and its bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fewbit.artefact import CONFIG, PIPELINE_INDEX, Artefact
from fewbit.folder import skeleton
from fewbit.linear import QLinear
from fewbit.models import Layer, ModelSpec, describe, transformer_of
from fewbit.report.summary import megabytes
from fewbit.strict_json import read_table


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
class Inspection:
    family: str
    recipe: dict[str, Any] | None
    layers: tuple[InspectedLayer, ...]
    other_bytes: int

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers) + self.other_bytes

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "bytes": self.bytes}

    def __str__(self) -> str:
        """One row for each role and way of storing; `table()` has a row for each layer."""
        made = f", {self.recipe['method']}:{self.recipe['bits']}" if self.recipe else ""
        head = [f"{self.family}{made}, {megabytes(self.bytes)}", _row("role", "", "", "", "MB")]
        kinds: dict[tuple[Any, ...], list[InspectedLayer]] = {}
        for layer in self.layers:
            key = (layer.role, layer.status, layer.weight, layer.input)
            kinds.setdefault(key, []).append(layer)
        rows = [
            _row(role or "-", str(len(same)), status, _how(weight, rounded), _size(same))
            for (role, status, weight, rounded), same in kinds.items()
        ]
        return "\n".join([*head, *rows, _row("-", "", "keep", "all else", _mb(self.other_bytes))])

    def table(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        return "\n".join(
            f"{layer.name:<{width}}  {layer.role or '-':<9} {layer.status:<11} "
            f"{'x'.join(map(str, layer.shape)):<11} {layer.bytes:>10}  "
            f"{_how(layer.weight, layer.input)}".rstrip()
            for layer in self.layers
        )


def inspect(model: Any, spec: ModelSpec | None = None) -> Inspection:
    """Of a pipeline, a module, or the folder of a saved model, whose tensors are not loaded."""
    if isinstance(model, str | Path):
        return _inspect_folder(Path(model), spec)
    module = transformer_of(model)
    provenance = getattr(module, "fewbit", None)
    return _inspect_module(module, spec, None if provenance is None else provenance.recipe)


def _inspect_folder(folder: Path, spec: ModelSpec | None) -> Inspection:
    if (folder / PIPELINE_INDEX).exists():
        folder = folder / "transformer"
    config = read_table(folder / CONFIG)
    model = skeleton(folder, config)
    if "quantization_config" not in config:
        return _inspect_module(model, spec, None)
    artefact = Artefact.open(folder)
    artefact.prepare(model)
    return _inspect_module(model, spec, artefact.manifest.provenance.recipe)


def _inspect_module(
    module: nn.Module, spec: ModelSpec | None, recipe: dict[str, Any] | None
) -> Inspection:
    structure = describe(module, spec)
    layers = tuple(_layer(one, module.get_submodule(one.name)) for one in structure.layers)
    return Inspection(structure.family, recipe, layers, structure.other_bytes)


def _layer(layer: Layer, module: nn.Module) -> InspectedLayer:
    role = None if layer.role is None else str(layer.role)
    if not isinstance(module, QLinear):
        status = "quantizable" if layer.status == "quantize" else layer.status
        return InspectedLayer(layer.name, role, status, layer.shape, layer.bytes)
    rounded = None if module.stage is None else str(module.stage)
    weight = str(module.spec)
    return InspectedLayer(layer.name, role, "quantized", layer.shape, layer.bytes, weight, rounded)


def _how(weight: str | None, rounded: str | None) -> str:
    return " x ".join(part for part in (weight, rounded) if part)


def _row(role: str, count: str, status: str, how: str, size: str) -> str:
    return f"  {role:<9} {count:>5}  {status:<11}  {how:<36} {size:>9}".rstrip()


def _size(layers: Iterable[InspectedLayer]) -> str:
    return _mb(sum(layer.bytes for layer in layers))


def _mb(count: int) -> str:
    return f"{count / 1e6:.2f}"
