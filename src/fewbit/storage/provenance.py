"""Where a quantized model came from; it travels with the model and into its files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LARGEST_SEED = 2**32 - 1  # leaves room for the seeds of blocks and groups, which are made from it


@dataclass(frozen=True)
class Provenance:
    recipe: dict[str, Any]
    seed: int
    source_sha256: str  # over the weights that were quantized
    fewbit_version: str


_TOLD: list[Callable[[Any], None]] = []


def mark(model: Any, provenance: Provenance) -> None:
    """Say where a model came from that is quantized from now on."""
    model.fewbit = provenance
    for tell in _TOLD:
        tell(model)


def when_marked(tell: Callable[[Any], None]) -> None:
    """Call `tell` with every model that is marked from now on."""
    _TOLD.append(tell)


def source_sha256(weights: Mapping[str, str]) -> str:
    """One digest of layer name -> SHA-256 of its weight, in whatever order they were met."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(weights.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
