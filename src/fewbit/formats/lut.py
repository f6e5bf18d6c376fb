"""A lookup table: 16 levels stored with each matrix, which scales of groups bring onto int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewbit.formats.format import Format
from fewbit.formats.scale import INT8_END, Scales

# The best levels for normal weights that are divided by the largest of their group of 16, as the
# kernels of comfy-kitchen have them built in: with any others its quick path is not taken.
NORMAL = (
    *(-0.980602, -0.794529, -0.638165, -0.500986, -0.377321, -0.263187, -0.155210, -0.050720),
    *(0.052541, 0.156985, 0.265284, 0.379533, 0.502636, 0.638953, 0.794876, 0.980671),
)


@dataclass(frozen=True)
class Lut(Format):
    """`lut16`: a code is a place in a table of 16 numbers, ascending as a writer makes it.

    In each group the number, times the scale of the group, is rounded to an integer from -127 to
    127, ties to even. So a row is one of int8, and its one float scale is the outer scale. A value
    becomes the nearest of these integers, the lower one of two that are equally near.
    """

    @property
    def name(self) -> str:
        return "lut16"

    @property
    def bits(self) -> int:
        return 4

    @property
    def by_group(self) -> bool:
        return True

    @property
    def integer_max(self) -> int:
        return INT8_END

    def exact_in(self, bits: int) -> bool:
        return bits >= 8

    def code_values(self) -> tuple[float, ...]:
        return NORMAL

    def beside(self, rows: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"codebook": ((len(NORMAL), 1), torch.float32)}

    def unlearned(self, device: torch.device) -> dict[str, Any]:
        return {"codebook": torch.tensor(NORMAL, device=device)[:, None]}

    def complaint(self, scales: Scales) -> str | None:
        assert scales.codebook is not None
        if bool(scales.codebook.isfinite().all()):
            return None
        return "codebook holds a number that is not finite"

    def encode_rows(self, units: Tensor, scales: Scales) -> Tensor:
        table, order = self._integers(scales).sort(-1)  # [rows, groups, 16]
        grouped = _grouped(units, scales)
        above = torch.searchsorted(table, grouped).clamp_(max=len(NORMAL) - 1)
        below = (above - 1).clamp_(min=0)
        nearer = table.gather(-1, above) - grouped < grouped - table.gather(-1, below)
        found = order.gather(-1, torch.where(nearer, above, below))
        return found.to(torch.uint8).view(units.shape)

    def decode_rows(self, codes: Tensor, scales: Scales) -> Tensor:
        table = self._integers(scales)
        places = _grouped(codes.long(), scales)
        return table.gather(-1, places).view(codes.shape)

    def round_rows(self, units: Tensor, scales: Scales) -> Tensor:
        return self.decode_rows(self.encode_rows(units, scales), scales)

    def step_of_rows(self, scales: Scales) -> float:
        return 1.0

    def _integers(self, scales: Scales) -> Tensor:
        """What each code of a group means, float32 [rows, groups, 16]."""
        assert scales.codebook is not None
        levels = scales.stored.float()[..., None] * scales.codebook[:, 0]
        return levels.round_().clamp_(-INT8_END, INT8_END)


def _grouped(columns: Tensor, scales: Scales) -> Tensor:
    return columns.unflatten(1, (scales.stored.shape[1], -1)).contiguous()


LUT16 = Lut()


def from_name(name: str) -> Lut | None:
    return LUT16 if name == LUT16.name else None
