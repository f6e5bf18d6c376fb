"""A format that differs from row to row: each output channel takes the option that fits it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.formats.format import Format
from fewbit.formats.names import formats
from fewbit.formats.scale import Scales

SEPARATOR = "|"


@dataclass(frozen=True)
class FormatChoice(Format):
    """Options of one width; which one a row uses is stored beside its scales."""

    members: tuple[Format, ...]

    @property
    def options(self) -> tuple[Format, ...]:
        return self.members

    @property
    def name(self) -> str:
        return SEPARATOR.join(option.name for option in self.options)

    @property
    def bits(self) -> int:
        return self.options[0].bits

    def beside(self, rows: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"choices": ((rows, 1), torch.uint8)}

    def complaint(self, scales: Scales) -> str | None:
        assert scales.choices is not None
        if int(scales.choices.max()) < len(self.options):
            return None
        return f"choices holds a choice that {self} does not offer"

    def code_values(self) -> tuple[float, ...]:
        """Of all options, one after another."""
        return tuple(value for option in self.options for value in option.code_values())

    def exact_in(self, bits: int) -> bool:
        return all(option.exact_in(bits) for option in self.options)

    def encode_rows(self, units: Tensor, scales: Scales) -> Tensor:
        assert scales.choices is not None
        codes = units.new_zeros(units.shape, dtype=torch.uint8)
        for index, option in enumerate(self.options):
            codes = torch.where(scales.choices == index, option.encode(units), codes)
        return codes

    def decode_rows(self, codes: Tensor, scales: Scales) -> Tensor:
        assert scales.choices is not None
        return self.decode(codes.int() + (scales.choices.int() << self.bits))

    def round_rows(self, units: Tensor, scales: Scales) -> Tensor:
        return self.decode_rows(self.encode_rows(units, scales), scales)

    def step_of_rows(self, scales: Scales) -> Tensor:
        assert scales.choices is not None
        steps = torch.tensor([option.step for option in self.options], device=scales.choices.device)
        return steps[scales.choices.int()]


def from_name(name: str) -> FormatChoice | None:
    """Different formats of one width and sign, joined by `|`."""
    if SEPARATOR not in name:
        return None
    options = [formats().get(part) for part in name.split(SEPARATOR)]
    known = tuple(option for option in options if option is not None)
    if len(set(known)) < len(options) or len({(f.bits, f.signed) for f in known}) > 1:
        return None
    return FormatChoice(known)
