"""What a method file holds, and what the engine hands it.

A method is a module with
    NAME, SUMMARY   what it is called and one line about it
    VARIANTS        bits -> Rule; the first is the default
    CALIBRATED      whether it needs to see data; its Settings then say how many `samples`, and
                    with `propagate` whether later blocks see what the quantized earlier ones give.
                    `time_groups`, if they have it, are the different timesteps it needs at least,
                    `steps` of `batch` rows the training of each block, and `tuning` those of the
                    whole model
    TARGETS         whether it needs what was given in full precision: `exact` of its jobs, and of
                    `finish` the outputs. Its Settings then say with `keep_original` whether a copy
                    of the model stays beside
    PRESETS         name -> settings that belong together
    Settings        a frozen dataclass of its settings with their defaults, checked on construction
    rule(layer, variant, settings) -> Rule | None      what a layer becomes; None keeps it
    survey(job, settings) -> tensors by name           or None: what it learns of the whole model
                    in full precision, before any block is solved
    solve(job, settings) -> None                       replaces the layers of one block
    finish(job, settings) -> bool                      or None: changes the whole model in the end,
                    layers of the same kinds in their places; whether there was anything to do
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from fewbit.calibration import CalibrationSet, Step
from fewbit.calibration.observe import Seen, observe
from fewbit.errors import BadArgument
from fewbit.formats import QTensor, Spec
from fewbit.layers.linear import QLinear
from fewbit.models import Attention, Layer, Role
from fewbit.progress import Track


@dataclass(frozen=True)
class Rule:
    """What becomes of a layer: how its weight is stored and how its input is rounded."""

    weight: Spec
    activation: Spec | None = None


@dataclass
class BlockJob:
    """One block to be solved: its module, the rules of its layers, a place for results."""

    index: int
    module: nn.Module
    name: str
    layers: tuple[Layer, ...]
    rules: Mapping[str, Rule]
    groups: tuple[tuple[str, ...], ...]  # layers with a rule, those that read one tensor together
    attentions: tuple[Attention, ...]
    attending: tuple[str, ...]  # modules of the block that call the fused attention
    seed: int
    step: Step | None = None  # the block's place in the calibration stream, if there is data
    exact: Step | None = None  # its place, already advanced, in the one before quantization
    survey: Mapping[str, Tensor] = field(default_factory=dict)  # what the method's survey gave
    solved: dict[str, Solved] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def linear(self, name: str) -> nn.Linear:
        linear = self.module.get_submodule(self.path(name))
        assert isinstance(linear, nn.Linear)
        return linear

    def role(self, name: str) -> Role | None:
        return next(layer.role for layer in self.layers if layer.name == name)

    def weight(self, name: str) -> Tensor:
        return self.linear(name).weight.detach()

    def seed_of(self, number: int) -> int:
        """A seed of its own for the number-th random choice in this block."""
        return (self.seed * 1_000 + self.index) * 1_000 + number

    def observe(self) -> dict[str, Seen]:
        """What each group of layers sees, by the name of its first."""
        assert self.step is not None
        widths = {self.path(group[0]): self.linear(group[0]).in_features for group in self.groups}
        seen = observe(self.step, widths, self.seed_of(999))
        return {group[0]: seen[self.path(group[0])] for group in self.groups}

    def path(self, name: str) -> str:
        """Of a layer inside its block."""
        return name.removeprefix(f"{self.name}.")

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def replace(
        self, name: str, layer: QLinear, target: Tensor, plain: QTensor | None = None
    ) -> None:
        """Put `layer` where the linear stood; `target` is what its packed weight stands for, and
        `plain` what the simplest method makes of it, where that is not rounding by the rule."""
        self.solved[name] = Solved(layer, target, plain)
        self.module.set_submodule(self.path(name), layer)


@dataclass(frozen=True)
class ModelJob:
    """The whole model, every block solved."""

    model: nn.Module
    blocks: tuple[str, ...]
    data: CalibrationSet
    outputs: Callable[[], Iterable[Any]]  # of the full-precision model, minibatch by minibatch
    original: nn.Module | None
    seed: int


@dataclass(frozen=True)
class SurveyJob:
    """The whole model in full precision, and what it is to be quantized for."""

    model: nn.Module
    blocks: tuple[str, ...]
    layers: tuple[str, ...]  # those that have a rule
    attending: tuple[str, ...]  # modules that call the fused attention, of all blocks
    data: CalibrationSet
    seed: int
    track: Track  # its minibatches, to show how far it is


@dataclass(frozen=True)
class Solved:
    layer: QLinear
    target: Tensor
    plain: QTensor | None

    def plainly(self, weight: Tensor, rule: Rule) -> Tensor:
        """The weight by plain rounding, float32."""
        return rule.weight.round(weight) if self.plain is None else self.plain.dequantize()


class Method(Protocol):
    NAME: str
    SUMMARY: str
    VARIANTS: Mapping[str, Rule]
    CALIBRATED: bool
    TARGETS: bool
    PRESETS: Mapping[str, Mapping[str, Any]]
    Settings: Callable[..., Any]

    def rule(self, layer: Layer, variant: Rule, settings: Any) -> Rule | None: ...

    def solve(self, job: BlockJob, settings: Any) -> None: ...

    @property
    def survey(self) -> Callable[[SurveyJob, Any], Mapping[str, Tensor]] | None: ...

    @property
    def finish(self) -> Callable[[ModelJob, Any], bool] | None: ...


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """For Settings.__post_init__."""
    if value not in allowed:
        listed = ", ".join(map(str, allowed))
        raise BadArgument(f"setting {name} cannot be {value!r}; allowed: {listed}")


def within(name: str, value: object, low: float, high: float | None, or_none: bool = False) -> None:
    """For Settings.__post_init__: strictly between, `high` None meaning without end."""
    if or_none and value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low < value < (float("inf") if high is None else high):  # type: ignore[operator]
        allowed = f"above {low:g}" if high is None else f"between {low:g} and {high:g}"
        without = ", or None (null on the command line) to leave it out" if or_none else ""
        raise BadArgument(f"setting {name} must be a number {allowed}{without}, got {value!r}")


def whole(name: str, value: object, least: int) -> None:
    """For Settings.__post_init__."""
    if type(value) is not int or value < least:
        kind = "a positive integer" if least == 1 else f"a whole number, {least} or more"
        raise BadArgument(f"setting {name} must be {kind}, got {value!r}")
