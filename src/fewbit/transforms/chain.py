"""Several transforms, one after another: the law holds for each and so for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from fewbit import registry
from fewbit.errors import BadArgument
from fewbit.kernels.values import Rotation
from fewbit.transforms.transform import Transform

KIND = "chain"


class Chain(Transform):
    def __init__(self, parts: Sequence[Transform]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self._transforms():
            x = part(x)
        return x

    def split(self) -> tuple[Callable[[Tensor], Tensor] | None, Rotation | None]:
        *parts, last = self._transforms()
        first, rotation = last.split()
        if first is not None:
            return partial(_in_turn, [*parts, first]), rotation
        before = parts[-1].split()[1] if parts else None
        if (
            before is not None
            and rotation is not None
            and not (before.matrices or _smooths(rotation))
        ):
            parts, rotation = parts[:-1], replace(rotation, smooth=before.smooth)
        return partial(_in_turn, parts) if parts else None, rotation

    def check_width(self, columns: int) -> None:
        for part in self._transforms():
            part.check_width(columns)

    def weight(self, weight: Tensor) -> Tensor:
        for part in self._transforms():
            weight = part.weight(weight)
        return weight

    def _transforms(self) -> Iterable[Transform]:
        return cast(Iterable[Transform], self.parts)

    def config(self) -> dict[str, Any]:
        return {"kind": KIND, "parts": [part.config() for part in self._transforms()]}

    def extra_repr(self) -> str:
        return " > ".join(part.extra_repr() for part in self._transforms())


def _smooths(rotation: Rotation) -> bool:
    return rotation.smooth is not None


def _in_turn(parts: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    x = x.float()
    for part in parts:
        x = part(x)
    return x


def from_config(config: dict[str, Any]) -> Chain:
    parts = config["parts"]
    if not isinstance(parts, list) or not parts:
        raise BadArgument(f"a chain is a list of transforms, got {parts!r:.80}")
    return Chain([registry.build("transforms", part) for part in parts])
