"""Evaluation mode for a while: no dropout of values or labels, and every flag put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    training = {inner for module in modules for inner in module.modules() if inner.training}
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
