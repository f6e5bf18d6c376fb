"""What happens to an input before the product, computed once for all layers that share it."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from fewbit import registry


class InputStage(nn.Module):
    """Transform, then quantize. q, k and v hold the same stage and so use the same codes."""

    def __init__(
        self, transform: nn.Module | None = None, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.transform = transform
        self.activation = activation
        self._last: tuple[weakref.ref[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._compute(x)  # the compiler removes the repetition itself
        last = self._last
        if last is not None and last[0]() is x:
            return last[1]
        result = self._compute(x)
        if result is not x:
            self._last = weakref.ref(x, self._forget), result
        return result

    def _compute(self, x: Tensor) -> Tensor:
        if self.transform is not None:
            x = self.transform(x)
        return x if self.activation is None else self.activation(x)

    def _forget(self, dead: weakref.ref[Tensor]) -> None:
        if self._last is not None and self._last[0] is dead:
            self._last = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last": None}  # type: ignore[misc]

    def __str__(self) -> str:
        """What an input goes through, as `inspect` shows it."""
        parts = [self.transform, self.activation]
        return " > ".join(part.extra_repr() for part in parts if part is not None)

    def config(self) -> dict[str, Any]:
        """The parts that are there, each by its own config."""
        parts = {"transform": self.transform, "activation": self.activation}
        return {name: part.config() for name, part in parts.items() if part is not None}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> InputStage:
        return cls(
            registry.build("transforms", config.get("transform")),
            registry.build("activations", config.get("activation")),
        )
