"""Settings of a method, each declared once: its default, what is allowed, one line of help."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from fewbit.errors import BadArgument


@dataclass(frozen=True)
class Limits:
    """The values that a setting may have: those of `allowed`, and numbers if it has bounds."""

    allowed: tuple[Any, ...]
    number: type | None  # int, float or none
    least: float | None
    above: float | None
    below: float | None

    def __contains__(self, value: Any) -> bool:
        if any(value == one and type(value) is type(one) for one in self.allowed):
            return True
        whole = type(value) is int
        if not (whole if self.number is int else self.number and (whole or type(value) is float)):
            return False
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = [_word(one) for one in self.allowed]
        if self.number is None:
            return ", ".join(words)
        kind = "a whole number" if self.number is int else "a number"
        return ", ".join([f"{kind} {self._bounds()}", *words])

    def _bounds(self) -> str:
        if self.above is not None and self.below is not None:
            return f"between {self.above:g} and {self.below:g}"
        low = f"of {self.least:g} or more" if self.above is None else f"above {self.above:g}"
        return low if self.below is None else f"{low} and below {self.below:g}"


def _word(value: Any) -> str:
    return "None (null on the command line)" if value is None else str(value)


def setting(
    default: Any,
    *,
    help: str,
    allowed: tuple[Any, ...] = (),
    number: type | None = None,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A field of a method's settings. A number as default asks for numbers of its type, a bool
    for one of the two."""
    if isinstance(default, bool):
        allowed = (True, False)
    elif isinstance(default, int | float) and default not in allowed:
        number = type(default)
    limits = Limits(allowed, number, least, above, below)
    return field(default=default, metadata={"help": help, "limits": limits})


def modulation(default: str) -> Any:
    """The setting of the modulation linear (adaLN), which `Method.rule_of` obeys."""
    return setting(
        default,
        allowed=("same", "int8", "keep"),
        help="weights of the modulation linear: as those of the other layers, int8, or kept",
    )


def precision() -> Any:
    """The setting of the precision in which trained blocks multiply, which `products_in` obeys."""
    return setting(
        "auto",
        allowed=("auto", "bf16", "fp32"),
        help="precision of the products in training; auto: bf16 where the processor has it, as "
        "GPUs have, else fp32, which is many times as quick there",
    )


def products_in(precision: str, device: torch.device) -> torch.dtype:
    """What that setting stands for on a device."""
    is_auto = precision == "auto"
    has_bf16 = is_auto and (device.type != "cpu" or _processor_has_bf16())
    return torch.bfloat16 if has_bf16 or precision == "bf16" else torch.float32


def _processor_has_bf16() -> bool:
    """As far as torch tells; older ones do not."""
    able: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@dataclass(frozen=True)
class Common:
    """The settings of every method; each adds its own."""

    adaln: str = modulation("int8")

    def __post_init__(self) -> None:
        for one in fields(self):
            value, limits = getattr(self, one.name), one.metadata["limits"]
            if value not in limits:
                raise BadArgument(f"setting {one.name} cannot be {value!r}; allowed: {limits}")
        self.check()

    def check(self) -> None:
        """Refuse what single settings allow and together do not."""


@dataclass(frozen=True)
class Calibrated(Common):
    """The settings of every method that sees data."""

    samples: int = setting(512, least=1, help="how many rows of the forward the calibration sees")
    propagate: bool = setting(
        True, help="later blocks see what the quantized blocks before them give"
    )

    @property
    def time_groups(self) -> int:
        """How many different timesteps the method needs at least."""
        return 1

    @property
    def trained_rows(self) -> int:
        """How many rows the training of a block sees, those of all steps together."""
        return 0

    @property
    def tuned_rows(self) -> int:
        """How many rows the training of the whole model in the end sees."""
        return 0

    @property
    def keep_original(self) -> bool:
        """Whether a copy of the model in full precision stays until the end."""
        return False


@dataclass(frozen=True)
class Budgeted(Calibrated):
    """The settings of a method that can choose bits by layer, so that the model fits a budget."""

    size: float | None = setting(
        None,
        number=float,
        above=0,
        allowed=(None,),
        help="megabytes of the model in the end; layers get the bits with which it loses least",
    )
    bits_per_weight: float | None = setting(
        None,
        number=float,
        above=0,
        allowed=(None,),
        help="the same, as bits of a quantized weight on average, scales included",
    )

    def check(self) -> None:
        if self.size is not None and self.bits_per_weight is not None:
            raise BadArgument("a budget is size or bits_per_weight, not both")
