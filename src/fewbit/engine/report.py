"""The report of one quantization: per layer what was done, totals, timings; text and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fewbit.engine.columns import Row, aligned
from fewbit.engine.measured import Measured
from fewbit.engine.stored_size import Size, smaller
from fewbit.engine.verdict import verdict
from fewbit.files import write_text
from fewbit.formats.names import brief, megabytes
from fewbit.pages.notebook import shown
from fewbit.storage.provenance import source_sha256

_SPELLED = ("inf", "-inf", "nan")
_HEAD = ("role", "n", "weight", "input", "MB", "weight dB", "output dB", "gain")
_NUMBERS = (1, 4, 5, 6, 7)
_DERIVED = ("bytes", "smaller")  # written for whoever reads the JSON

SHOWN_WARNINGS = 3


@dataclass(frozen=True)
class LayerReport:
    """What one layer became. Errors are in dB against full precision: higher is better.

    Attributes:
        name: The path of the layer in the model.
        role: What it does in its block.
        weight: The spec of the packed weight, such as `e2m1/row/fp32`.
        activation: The spec of the rounded input; None where the input is not rounded.
        bits_per_weight: All bits of the packed weight, scales included, over its elements.
        bytes_before: The bytes in full precision.
        bytes: The bytes of the quantized layer.
        weight_db: The error of the weight.
        rounding_weight_db: The error that plain rounding to the same spec would have given.
        output_db: The error of the output on calibration data; None without data.
        rounding_output_db: The same for plain rounding.
    """

    name: str
    role: str
    weight: str
    activation: str | None
    bits_per_weight: float
    bytes_before: int
    bytes: int
    weight_db: float
    rounding_weight_db: float
    output_db: float | None = None
    rounding_output_db: float | None = None

    @property
    def error_db(self) -> float:
        """Of the output where it was seen, else of the weight."""
        return self.weight_db if self.output_db is None else self.output_db

    @property
    def gain_db(self) -> float | None:
        """Of the output over plain rounding to the same formats."""
        if self.output_db is None or self.rounding_output_db is None:
            return None
        return self.output_db - self.rounding_output_db


@dataclass(frozen=True)
class ComponentReport:
    """One network of several that were quantized in one call.

    Attributes:
        family: The kind of model.
        source: The SHA-256 over its full-precision weights that were quantized.
        bytes_before: Its bytes before.
        bf16_bytes: Its bytes in bfloat16.
        size: Its bytes now, as saved and loaded.
    """

    family: str
    source: str
    bytes_before: int
    bf16_bytes: int
    size: Size


@dataclass
class Report:
    """What `fewbit.quantize` did. `print(report)` shows a table, `report.save(path)` writes JSON.

    Attributes:
        recipe: The method, its bits and all its settings.
        family: The kind of model.
        source: The SHA-256 over the full-precision weights that were quantized.
        seed: The seed of every random choice.
        fewbit_version: The version that made it.
        layers: One `LayerReport` for each quantized layer.
        bytes_before: The bytes of the model in the dtype that it had.
        bf16_bytes: The bytes of the model in bfloat16.
        size: The bytes of the quantized model as it is saved and loaded, by what they are.
        seconds: The time of calibrating and of solving.
        warnings: Sentences about what did not go as planned.
        measured: A `Measured` by the name of each network: its speed and its distance from full
            precision.
        components: A `ComponentReport` by name for each network of a pipeline, where several were
            quantized. The names of their layers begin with that of the network.
    """

    recipe: dict[str, Any]
    family: str
    source: str
    seed: int
    fewbit_version: str
    layers: list[LayerReport] = field(default_factory=list)
    bytes_before: int = 0
    bf16_bytes: int = 0
    size: Size = field(default_factory=Size)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    measured: dict[str, Measured] = field(default_factory=dict)
    components: dict[str, ComponentReport] = field(default_factory=dict)

    @property
    def worst(self) -> LayerReport:
        return min(self.layers, key=lambda layer: layer.error_db)

    @property
    def bytes(self) -> int:
        return self.size.bytes

    @property
    def smaller(self) -> float:
        """How many times smaller than in bfloat16."""
        return smaller(self.size.bytes, self.bf16_bytes)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), **{name: getattr(self, name) for name in _DERIVED}}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Report:
        """From `to_dict`, or from the JSON that `save` wrote."""
        own = {name: value for name, value in content.items() if name not in _DERIVED}
        own["layers"] = [LayerReport(**_numbers(layer)) for layer in own["layers"]]
        own["measured"] = {
            name: Measured(**_numbers(found)) for name, found in own["measured"].items()
        }
        own["components"] = {
            name: ComponentReport(**{**part, "size": Size(**part["size"])})
            for name, part in own["components"].items()
        }
        return cls(**{**own, "size": Size(**own["size"])})

    def save(self, path: str | Path) -> None:
        """As JSON, which has no word for infinite: a lossless layer has "inf" dB."""
        write_text(Path(path), json.dumps(_spelled(self.to_dict()), indent=1, allow_nan=False))

    def __str__(self) -> str:
        table = aligned([_HEAD, *self._rows()], _NUMBERS)
        below = [*self._worst(), *self._foot(), *self._verdict()]
        return "\n".join([self._head(), *table, *below])

    def __repr__(self) -> str:
        return f"<Report: {self.family} by {self._made}, {len(self.layers)} layers, {self.size}>"

    def _repr_html_(self) -> str:
        below = [*self._worst(), *self._foot(), *self._verdict()]
        return shown(self._head(), _HEAD, self._rows(), below)

    @property
    def _made(self) -> str:
        return f"{self.recipe['method']}:{self.recipe['bits']}"

    def _head(self) -> str:
        seconds = sum(self.seconds.values())
        return (
            f"{self.family} quantized with {self._made} in {seconds:.1f} s, "
            f"{len(self.layers)} layers"
        )

    def _rows(self) -> list[Row | str]:
        rows: list[Row | str] = []
        for name in self.components or ("",):
            layers = [
                layer for layer in self.layers if not name or layer.name.startswith(f"{name}.")
            ]
            rows += self._component(name)
            for role in dict.fromkeys(layer.role for layer in layers):
                rows += _role_rows(role, [layer for layer in layers if layer.role == role])
        return rows

    def _component(self, name: str) -> list[str]:
        if not name:
            return []
        part = self.components[name]
        return [f"  {name}, {part.family}: {megabytes(part.size.bytes)}"]

    def _worst(self) -> list[str]:
        """What the columns mean, and the layer that lost most."""
        if not self.layers:
            return []
        means = ["  dB are means against full precision"]
        if any(layer.gain_db is not None for layer in self.layers):
            means = [
                f"{means[0]}; gain: dB of the output over plain",
                "  rounding to the same formats, whose weights may be better and outputs worse",
            ]
        return [*means, f"  worst layer: {self.worst.name} at {_db(self.worst.error_db)} dB"]

    def _verdict(self) -> list[str]:
        return verdict(self.recipe, self.size, self.bf16_bytes, self.measured)

    def _foot(self) -> list[str]:
        told = [f"  warning: {warning}" for warning in self.warnings[:SHOWN_WARNINGS]]
        more = len(self.warnings) - len(told)
        return [*told, f"  and {more} more warnings, in the JSON report"] if more else told


def together(reports: Mapping[str, Report]) -> Report:
    """One report of all networks that were quantized in one call, by their names."""
    names, parts = list(reports), list(reports.values())
    if names in ([""], ["transformer"]):
        return parts[0]
    first = parts[0]
    return Report(
        recipe=first.recipe,
        family=", ".join(dict.fromkeys(part.family for part in parts)),
        source=source_sha256({name: report.source for name, report in reports.items()}),
        seed=first.seed,
        fewbit_version=first.fewbit_version,
        layers=[
            replace(layer, name=f"{name}.{layer.name}")
            for name, report in reports.items()
            for layer in report.layers
        ],
        bytes_before=sum(part.bytes_before for part in parts),
        bf16_bytes=sum(part.bf16_bytes for part in parts),
        size=sum((part.size for part in parts), Size()),
        seconds={kind: sum(part.seconds[kind] for part in parts) for kind in first.seconds},
        measured={name: found for part in parts for name, found in part.measured.items()},
        warnings=[f"{name}: {told}" for name, part in reports.items() for told in part.warnings],
        components={
            name: ComponentReport(
                part.family, part.source, part.bytes_before, part.bf16_bytes, part.size
            )
            for name, part in reports.items()
        },
    )


def _role_rows(role: str, layers: list[LayerReport]) -> list[Row]:
    """One row for each way in which layers of this role are stored."""
    kinds = dict.fromkeys((layer.weight, layer.activation) for layer in layers)
    rows: list[Row] = []
    for weight, activation in kinds:
        same = [one for one in layers if (one.weight, one.activation) == (weight, activation)]
        size = sum(layer.bytes for layer in same) / 1e6
        rows.append(
            (
                role,
                str(len(same)),
                brief(weight),
                brief(activation or "-"),
                f"{size:.2f}",
                _mean_db(layer.weight_db for layer in same),
                _mean_db(layer.output_db for layer in same),
                _mean_db(layer.gain_db for layer in same),
            )
        )
    return rows


def _mean_db(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _db(sum(known) / len(known)) if known else "-"


def _db(value: float) -> str:
    return f"{value:.2f}"


def _spelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spelled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_spelled(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(layer: dict[str, Any]) -> dict[str, Any]:
    return {key: float(value) if value in _SPELLED else value for key, value in layer.items()}
