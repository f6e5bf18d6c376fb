"""Scores, each with what is needed to repeat it; they print within 80 columns and save as JSON."""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fewbit.files import write_text
from fewbit.judge.cost import Cost
from fewbit.judge.layers import LayerError
from fewbit.judge.trajectory import TrajectoryFidelity

SHOWN_TIMESTEPS = 8


@dataclass(frozen=True)
class Basis:
    """Where a score comes from."""

    samples: int
    seed: int
    reference: str | None = None  # what the pictures were held against
    reference_sha256: str | None = None
    resize: str = "none"
    features: str | None = None  # the feature net
    features_sha256: str | None = None


@dataclass(frozen=True)
class Score:
    """full_precision: the same score of the reference model's own pictures, where it has one.
    bias:           about how much of the value is only due to the number of pictures.
    each:           per picture, where the value is a mean over them.
    """

    name: str
    value: float
    better: Literal["higher", "lower"]
    basis: Basis
    unit: str = ""
    full_precision: float | None = None
    bias: float | None = None
    each: tuple[float, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """findings:        what the quality gate objects to; none where it is passed.
    first_bad_layer: of a broken model, where one layer is to blame.
    notes:           what was left out and why, what was passed over.
    trajectory:      the error of the noise prediction, by timestep and by layer.
    cost:            size and speed, as measured just now.
    """

    model: str
    reference: str
    recipe: str
    pictures: int
    seed: int
    steps: str
    guidance: str
    scores: tuple[Score, ...] = ()
    findings: tuple[str, ...] = ()
    first_bad_layer: str | None = None
    notes: tuple[str, ...] = ()
    trajectory: TrajectoryFidelity | None = None
    cost: Cost | None = field(default=None, compare=False)

    def score(self, name: str) -> Score | None:
        return next((score for score in self.scores if score.name == name), None)

    @property
    def passed(self) -> bool:
        return not self.findings

    @property
    def verdict(self) -> str:
        """Of the quality gate, in one line."""
        layer = f"first bad layer: {self.first_bad_layer}" if self.first_bad_layer else ""
        return "; ".join(filter(None, [*self.findings, layer])) or "passed"

    def to_dict(self) -> dict[str, Any]:
        """JSON has no word for infinite: of equal pictures the PSNR is "inf"."""
        spelled: dict[str, Any] = _spelled({"passed": self.passed, **asdict(self)})
        return spelled

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(self.to_dict(), indent=1, allow_nan=False))

    def __str__(self) -> str:
        inside = [] if self.trajectory is None else _inside(self.trajectory)
        return "\n".join([*self._head(), *self._rows(), *inside, *self._foot()])

    def _head(self) -> list[str]:
        return [
            f"{self.model} ({self.recipe}) beside {self.reference}",
            f"  {self.pictures} pictures of seed {self.seed}, steps: {self.steps}, "
            f"guidance: {self.guidance}",
            *([] if self.cost is None else [_cost(self.cost)]),
        ]

    def _rows(self) -> list[str]:
        if not self.scores:
            return []
        rows = [f"  {'score':<18} {'value':>12} {'full precision':>15} {'bias':>9}  better"]
        for score in self.scores:
            value = f"{_number(score.value)} {score.unit:<2}".rstrip()
            full, bias = (
                "-" if number is None else _number(number)
                for number in (score.full_precision, score.bias)
            )
            rows.append(f"  {score.name:<18} {value:>12} {full:>15} {bias:>9}  {score.better}")
        return rows

    def _foot(self) -> list[str]:
        gate = [_wrapped(f"  gate: {finding}") for finding in self.findings or ["passed"]]
        layer = [f"  first bad layer: {self.first_bad_layer}"] if self.first_bad_layer else []
        notes = [_wrapped(f"  note: {note}") for note in self.notes]
        bases = dict.fromkeys(
            (score.basis.reference, score.basis.reference_sha256) for score in self.scores
        )
        against = [f"  against {name} ({sha256[:12]})" for name, sha256 in bases if name and sha256]
        return [*against, *notes, *gate, *layer]


def _cost(cost: Cost) -> str:
    return (
        f"  beside bfloat16: {cost.smaller:.2f}x smaller ({cost.size.bytes / 1e6:.1f} MB), "
        f"{cost.faster:.2f}x the speed ({1e3 * cost.seconds:.1f} ms a step)"
    )


def _inside(trajectory: TrajectoryFidelity) -> list[str]:
    """Of the error by timestep as many as fit into a line; of the layers a row for each role."""
    times = sorted(trajectory.by_timestep)
    places = range(min(SHOWN_TIMESTEPS, len(times)))
    shown = [times[round(i * (len(times) - 1) / max(len(places) - 1, 1))] for i in places]
    rows = [
        "  timestep " + "".join(f"{time:>8.0f}" for time in shown),
        "  dB       " + "".join(f"{trajectory.by_timestep[time]:>8.2f}" for time in shown),
    ]
    roles: dict[str, list[LayerError]] = {}
    for layer in trajectory.layers:
        roles.setdefault(layer.role, []).append(layer)
    if roles:
        rows.append(f"  {'layers':<10} {'n':>4} {'mean dB':>9} {'worst dB':>9}  worst")
    for role, layers in roles.items():
        worst = min(layers, key=lambda layer: layer.sqnr)
        mean = sum(layer.sqnr for layer in layers) / len(layers)
        rows.append(
            f"  {role:<10} {len(layers):>4} {mean:>9.2f} {worst.sqnr:>9.2f}  {worst.name[-40:]}"
        )
    return rows


def _wrapped(text: str) -> str:
    """Paths stay whole, to be copied."""
    return textwrap.fill(
        text, 80, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.1f}"


def _spelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(key): _spelled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _key(key: str | float) -> str:
    return key if isinstance(key, str) else f"{key:g}"
