"""What happens to an input before the product, computed once for all layers that share it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewbit import registry
from fewbit.activations.activation import Activation
from fewbit.kernels.choose import modulated
from fewbit.kernels.precision import as_written
from fewbit.kernels.values import Coded, Modulated, Rotation
from fewbit.layers.offload import brought
from fewbit.transforms.transform import Transform


@dataclass
class _Shared:
    """What was computed of `x`, and who has had it."""

    x: weakref.ref[Tensor | Modulated]
    version: int
    result: Coded | Tensor
    served: set[int]

    def serves(self, x: Tensor | Modulated, reader: object) -> bool:
        if self.x() is not x or self.version != _tensor(x)._version or id(reader) in self.served:
            return False
        self.served.add(id(reader))
        return True


class InputStage(nn.Module):
    """Transform, then quantize, to what a product wants: integers where the format has them. q, k
    and v hold the same stage and so use the same codes.

    `stage(x)` always computes. `stage(x, reader)` computes for the first reader of x and hands the
    result to the others, to each of them once: whoever comes a second time has a new input, a new
    timestep, new parameters or a captured graph, even if x is the same object.

    `folded` describes a transform that needs no run time: whoever gives x has it in its weights.
    """

    def __init__(
        self,
        transform: Transform | None = None,
        activation: Activation | None = None,
        folded: str | None = None,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.activation = activation
        self.folded = folded
        self._last: _Shared | None = None

    def forward(self, x: Tensor | Modulated, reader: object = None) -> Coded | Tensor:
        # The compiler removes the repetition itself; inference tensors cannot tell that they were
        # written to; and a result must not outlive the graph it belongs to.
        tensor = _tensor(x)
        if torch.compiler.is_compiling() or tensor.is_inference() or torch.is_grad_enabled():
            return self._compute(x)
        last = self._last
        if reader is not None and last is not None and last.serves(x, reader):
            return last.result
        result = self._compute(x)
        if reader is not None and result is not x:
            given = weakref.ref(x, self._forget)
            self._last = _Shared(given, tensor._version, result, {id(reader)})
        return result

    def values(self, x: Tensor, reader: object = None) -> Tensor:
        """What a layer multiplies in place of x, as float32 like x: for whoever calibrates."""
        result = self(x, reader)
        rows = result.values() if isinstance(result, Coded) else result
        return rows.view(x.shape)

    def _compute(self, x: Tensor | Modulated) -> Coded | Tensor:
        rotation: Rotation | None = None
        with as_written(_tensor(x)), brought(self.transform, self.activation):
            if self.activation is None:
                x = modulated(x)
                return x if self.transform is None else self.transform(x.float())
            if self.transform is not None:
                x, rotation = self.transform.ahead(x)
            return self.activation.code(x, rotation)

    def _forget(self, dead: weakref.ref[Tensor | Modulated]) -> None:
        if self._last is not None and self._last.x is dead:
            self._last = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last": None}

    def check_width(self, columns: int) -> None:
        """Refuse to be the stage of a layer that reads this many columns."""
        for part in (self.transform, self.activation):
            if part is not None:
                part.check_width(columns)

    def __str__(self) -> str:
        """What an input goes through, as `inspect` shows it."""
        parts = [self.transform, self.activation]
        shown = [part.extra_repr() for part in parts if part is not None]
        return " > ".join(shown if self.folded is None else [f"({self.folded})", *shown])

    def config(self) -> dict[str, Any]:
        """The parts that are there, each by its own config."""
        parts = {"transform": self.transform, "activation": self.activation}
        config = {name: part.config() for name, part in parts.items() if part is not None}
        return config if self.folded is None else {**config, "folded": self.folded}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> InputStage:
        homes = {"transform": "transforms", "activation": "activations"}
        folded = config.get("folded")
        if not isinstance(folded, str | None):
            raise TypeError(f"folded must be a text, got {folded!r}")
        parts = {name: part for name, part in config.items() if name != "folded"}
        built = {name: registry.build(homes[name], part) for name, part in parts.items()}
        return cls(**built, folded=folded)


def _tensor(x: Tensor | Modulated) -> Tensor:
    return x.x if isinstance(x, Modulated) else x
