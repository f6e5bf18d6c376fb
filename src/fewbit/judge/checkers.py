"""Prompt faithfulness on a text demo: the demo's own checker, found by the demo's name.

For a demo NAME that is `fewbit.demo.check_NAME`, if it has `captions(count)`, what to ask for, and
`faithfulness(images, captions)`: of images [N, 3, height, width] in [-1, 1], which of the things
that were said each of them shows, bool [N, things].
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fewbit import demo
from fewbit.demo.shapes import as_float


class Faithfulness:
    """The share of what was said that a picture shows."""

    name = "faithfulness"
    resize = "none"
    weights_sha256 = None

    def __init__(self, checker: Any) -> None:
        self.checker = checker

    def captions(self, count: int) -> list[str]:
        return list(self.checker.captions(count))

    def measure(self, drawn: Tensor, asked: Sequence[str]) -> list[float]:
        shares: list[float] = self.checker.faithfulness(as_float(drawn), asked).float().mean(1)
        return [float(share) for share in shares]


def checker_for(name: str) -> Faithfulness | None:
    """None where `name` is no demo, or one whose pictures a classifier judges."""
    module = f"fewbit.demo.check_{name}"
    if name not in demo.names() or importlib.util.find_spec(module) is None:
        return None
    checker = importlib.import_module(module)
    return Faithfulness(checker) if hasattr(checker, "faithfulness") else None
