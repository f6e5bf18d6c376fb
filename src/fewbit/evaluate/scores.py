"""Scores, each with what is needed to repeat it; they print within 80 columns and save as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fewbit.files import write_text


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
    first_bad_layer: of a model whose output is not finite.
    notes:           what was left out and why, what was passed over.
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
    notes: tuple[str, ...] = field(default=())

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
        return "\n".join([*self._head(), *self._rows(), *self._foot()])

    def _head(self) -> list[str]:
        return [
            f"{self.model} ({self.recipe}) beside {self.reference}",
            f"  {self.pictures} pictures of seed {self.seed}, steps: {self.steps}, "
            f"guidance: {self.guidance}",
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
        gate = [f"  gate: {finding}" for finding in self.findings or ["passed"]]
        layer = [f"  first bad layer: {self.first_bad_layer}"] if self.first_bad_layer else []
        notes = [f"  note: {note}" for note in self.notes]
        bases = dict.fromkeys(
            (score.basis.reference, score.basis.reference_sha256) for score in self.scores
        )
        against = [f"  against {name} ({sha256[:12]})" for name, sha256 in bases if name and sha256]
        return [*against, *notes, *gate, *layer]


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.1f}"


def _spelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spelled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
