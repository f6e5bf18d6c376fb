"""The rotation of ConvRot: a regular Hadamard matrix on every group of 4^n channels.

All rows of a regular matrix have the same sum, so that it needs no signs: no row collects the mean
of the channels. It is symmetric, and thus its own inverse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewbit.errors import BadArgument
from fewbit.kernels.values import Rotation
from fewbit.transforms.hadamard import rotated
from fewbit.transforms.transform import Transform, checked_width, same_width

KIND = "regular_hadamard"
USUAL = 256  # channels of a group, where they divide the width
_FOUR = ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1))


class RegularHadamard(Transform):
    """x·(H4 ⊗ H4 ⊗ …) / √block for every `block` columns."""

    signs: Tensor
    four: Tensor

    def __init__(self, width: int, block: int) -> None:
        super().__init__()
        if block not in allowed_blocks(width):
            allowed = ", ".join(map(str, allowed_blocks(width))) or "no rotation"
            raise BadArgument(
                f"width {width} has no regular Hadamard rotation by blocks of {block}; allowed: "
                f"{allowed}"
            )
        self.width, self.block = width, block
        ones = torch.ones(width, dtype=torch.int8, device="cpu")
        self.register_buffer("signs", ones, persistent=False)
        four = torch.tensor(_FOUR, dtype=torch.int8, device="cpu")
        self.register_buffer("four", four, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return rotated(x, self.rotation)

    def split(self) -> tuple[None, Rotation]:
        return None, self.rotation

    def check_width(self, columns: int) -> None:
        same_width(self.width, columns)

    def weight(self, weight: Tensor) -> Tensor:
        return rotated(weight, self.rotation)

    @property
    def rotation(self) -> Rotation:
        """One small matrix for each factor of 4."""
        return Rotation(self.signs, (self.four,) * ((self.block.bit_length() - 1) // 2))

    def config(self) -> dict[str, Any]:
        return {"kind": KIND, "width": self.width, "block": self.block}

    def extra_repr(self) -> str:
        return f"regular hadamard {self.block}"


def from_config(config: dict[str, Any]) -> RegularHadamard:
    width, block = checked_width(config["width"]), config["block"]
    if type(block) is not int:
        raise BadArgument(f"a rotation has a block, a whole number, got {block!r:.80}")
    return RegularHadamard(width, block)


def allowed_blocks(width: int) -> list[int]:
    """The powers of 4 that divide the width, largest first."""
    return [4**n for n in range(10, 0, -1) if width % 4**n == 0]


def usual_block(width: int) -> int | None:
    """256 columns, or as many as divide the width; None for a width that 4 does not divide."""
    return next((block for block in allowed_blocks(width) if block <= USUAL), None)
