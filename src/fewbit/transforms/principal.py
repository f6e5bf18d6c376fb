"""Principal directions: an input is its components along a few directions, and a rest.

The components c are kept in int8 and the rest is x - c·V, computed with the components as they were
rounded and the directions V as they are stored. So it holds whatever either of them lost, and
(x - c·V)·Wᵀ + c·(W·Vᵀ)ᵀ is x·Wᵀ. Where a few directions have most of an input's power, the rest is
small, and few bits do for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import BadArgument, BrokenFile
from fewbit.formats import FORMATS
from fewbit.formats.pack import pack, packed_width, unpack
from fewbit.transforms.transform import checked_width, same_width

INT6 = FORMATS["int6"]  # fewer bits leave more of a direction in the rest than more directions take
SPARE = 8  # directions more than are asked for, which make the iteration quick
ITERATIONS = 8


class Principal(nn.Module):
    """Directions of an input as integers; only what they span matters, not how long they are."""

    codes: Tensor

    def __init__(self, directions: Tensor) -> None:
        super().__init__()
        rank, self.width = directions.shape
        check_rank(rank, self.width)
        self.register_buffer("codes", pack(INT6.encode(directions), INT6.bits))

    @property
    def rank(self) -> int:
        return len(self.codes)

    @property
    def directions(self) -> Tensor:
        """int8 [rank, width]"""
        return INT6.decode(unpack(self.codes, INT6.bits, self.width)).to(torch.int8)

    def forward(self, weight: Tensor) -> Tensor:
        """W·Vᵀ for W [out, width]: what the components are multiplied with."""
        return weight @ self.directions.to(weight.dtype).T

    def joined(self, weight: Tensor, side: Tensor) -> Tensor:
        """What both parts of a weight make of an input of which nothing is rounded."""
        directions = self.directions.to(weight.dtype)
        squares = directions.square().sum(1, keepdim=True)
        return weight + (side - self(weight)) @ (directions / squares)

    def rest(self, x: Tensor) -> Tensor:
        """x [..., width] without its components, which are not rounded: a linear map. Of a strong
        direction little is left, so it takes double precision."""
        wide = x.double()
        return (wide - self.components(wide) @ self.directions.double()).to(x.dtype)

    def components(self, x: Tensor) -> Tensor:
        directions = self.directions.to(x.dtype)
        return x @ directions.T / directions.square().sum(1)

    def check_width(self, columns: int) -> None:
        same_width(self.width, columns)

    def check(self, name: str) -> None:
        """Refuse stored numbers that no writer would write; `name` is where this stands."""
        if not bool(self.directions.any(1).all()):
            raise BrokenFile(f"{name}.codes holds a direction of zeros")

    def config(self) -> dict[str, Any]:
        return {"width": self.width, "rank": self.rank}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Principal:
        width, rank = checked_width(config["width"]), config["rank"]
        check_rank(rank, width)
        return cls(torch.zeros(rank, width, dtype=torch.int8))

    def extra_repr(self) -> str:
        return f"{self.rank} directions"


def principal(moments: Tensor, rank: int) -> Principal:
    """The `rank` directions of most power of inputs with these second moments [width, width]."""
    check_rank(rank, len(moments))
    _, directions = strongest(moments, rank)
    longest = directions.abs().amax(1, keepdim=True)
    return Principal((directions * (INT6.max / longest)).round().to(torch.int8))


def stored_bytes(rank: int, width: int) -> int:
    return rank * packed_width(width, INT6.bits)


def strongest(moments: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The powers [count], descending, and the directions [count, width] that have them, by subspace
    iteration: a few directions of many need no whole decomposition."""
    moments = moments.double()
    wide = min(count + SPARE, len(moments))
    generator = torch.Generator("cpu").manual_seed(0)
    start = torch.randn(len(moments), wide, generator=generator, device="cpu")
    basis = start.to(moments)
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(moments @ basis).Q
    powers, mixed = torch.linalg.eigh(basis.T @ moments @ basis)
    return powers.flip(0)[:count], (basis @ mixed).T.flip(0)[:count]


def check_rank(rank: object, width: int) -> None:
    if type(rank) is not int or not 1 <= rank <= width:
        raise BadArgument(
            f"an input of {width} columns has 1 to {width} directions, got {rank!r:.80}"
        )
