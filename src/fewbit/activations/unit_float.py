"""Shares of a whole, as a softmax gives them, in an unsigned float whose largest level is 1."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewbit.activations.activation import Activation
from fewbit.errors import BadArgument
from fewbit.formats import Minifloat

KIND = "unit_float"
MOST_BITS, MOST_EXPONENT = 8, 5


class UnitFloat(Activation):
    """The levels of `eXmY` that are not negative: they need no sign and no scale."""

    def __init__(self, exponent: int, mantissa: int) -> None:
        super().__init__()
        whole = type(exponent) is int and type(mantissa) is int
        known = whole and 1 <= exponent <= MOST_EXPONENT and mantissa >= 0
        if not known or exponent + mantissa > MOST_BITS:
            raise BadArgument(
                f"an unsigned float cannot be e{exponent}m{mantissa}; allowed: 1 to "
                f"{MOST_EXPONENT} exponent bits, {MOST_BITS} bits at most"
            )
        self.format = Minifloat(exponent, mantissa)

    def forward(self, x: Tensor) -> Tensor:
        most = self.format.max
        return self.format.round(x.float() * most) / most

    def config(self) -> dict[str, Any]:
        return {
            "kind": KIND,
            "exponent": self.format.exponent,
            "mantissa": self.format.mantissa,
        }

    def extra_repr(self) -> str:
        return f"u{self.format}"


def from_config(config: dict[str, Any]) -> UnitFloat:
    return UnitFloat(config["exponent"], config["mantissa"])
