"""Several transforms, one after another: the law holds for each and so for all."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fewbit import registry

KIND = "chain"


class Chain(nn.Module):
    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x

    def weight(self, weight: Tensor) -> Tensor:
        for part in self.parts:
            weight = part.weight(weight)
        return weight

    def config(self) -> dict[str, Any]:
        return {"kind": KIND, "parts": [part.config() for part in self.parts]}

    def extra_repr(self) -> str:
        return " > ".join(part.extra_repr() for part in self.parts)


def from_config(config: dict[str, Any]) -> Chain:
    built = [registry.build("transforms", part) for part in config["parts"]]
    return Chain([part for part in built if part is not None])
