"""A format that differs from row to row: each output channel takes the option that fits it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.formats.format import Format

SEPARATOR = "|"


@dataclass(frozen=True)
class FormatChoice(Format):
    """Options of one width; which one a row uses is stored beside its scales."""

    options: tuple[Format, ...]

    @property
    def name(self) -> str:
        return SEPARATOR.join(option.name for option in self.options)

    @property
    def bits(self) -> int:
        return self.options[0].bits

    def code_values(self) -> tuple[float, ...]:
        """Of all options, one after another."""
        return tuple(value for option in self.options for value in option.code_values())

    def exact_in(self, bits: int) -> bool:
        return all(option.exact_in(bits) for option in self.options)

    def encode_rows(self, values: Tensor, choice: Tensor) -> Tensor:
        """`choice` broadcasts against `values`."""
        codes = values.new_zeros(values.shape, dtype=torch.uint8)
        for index, option in enumerate(self.options):
            codes = torch.where(choice == index, option.encode(values), codes)
        return codes

    def decode_rows(self, codes: Tensor, choice: Tensor) -> Tensor:
        return self.decode(codes.int() + (choice.int() << self.bits))
