"""What a method is, and the jobs it is given.

A method is one file in this folder: its `Settings`, its functions, and at the end one value
`METHOD = Method(...)` that says it all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fewbit.calibration import BlockStream, CalibrationSet, Step
from fewbit.calibration.observe import InputStats, Record, observe
from fewbit.formats import FORMATS, QTensor, Spec
from fewbit.layers.linear import QLinear
from fewbit.methods.settings import Calibrated, Common
from fewbit.models import Attention, Layer, Role
from fewbit.progress import Track
from fewbit.transforms.fit import Consumer
from fewbit.transforms.transform import Transform

INT8_ROWS = Spec(FORMATS["int8"])


@dataclass(frozen=True)
class Rule:
    """What becomes of a layer: how its weight is stored, how its input is rounded, and how many
    of the strongest directions of the input are kept beside it in int8. `wide` is how a modulation
    is stored that is to have 8 bits."""

    weight: Spec
    activation: Spec | None = None
    directions: int = 0
    wide: Spec = INT8_ROWS

    def bytes(self, rows: int, columns: int) -> int:
        return self.weight.bytes(rows, columns)


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
    odd: Mapping[str, str]  # attentions whose matmuls cannot be quantized, and why
    seed: int
    step: Step | None = None  # the block's place in the calibration stream, if there is data
    exact: Step | None = None  # its place in the one before quantization
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

    def observe(self) -> dict[str, InputStats]:
        """What each group of layers sees, by the name of its first."""
        assert self.step is not None
        seen = observe(self.step, self._widths(), self.seed_of(999))
        return {group[0]: seen[self.path(group[0])] for group in self.groups}

    def regular_attentions(self) -> tuple[str, ...]:
        """Those whose matmuls can be quantized; a warning for each of the others."""
        for name in self.attending:
            if name in self.odd:
                self.warn(f"the matmuls of {name} stay as they are: {self.odd[name]}")
        return tuple(name for name in self.attending if name not in self.odd)

    def record(self, importance: Mapping[str, Tensor]) -> Record:
        """What each group of layers sees in full precision, by the path of its first;
        `importance` is how much each row of the calibration counts, by the same."""
        assert self.exact is not None
        return Record(self.exact, self._widths(), self.seed_of(999), importance)

    def _widths(self) -> dict[str, int]:
        firsts = (group[0] for group in self.groups)
        return {self.path(name): self.linear(name).in_features for name in firsts}

    def consumer(self, name: str, seen: InputStats) -> Consumer:
        """A layer as whoever chooses the transform of its input knows it."""
        rule, weight = self.rules[name], self.weight(name).float()
        formats, count = (rule.weight, rule.activation), rule.directions
        moments = seen.moments if count else None
        return Consumer(seen.sample, seen.squares, weight, *formats, count, moments)

    def can_fold(self, attention: Attention) -> bool:
        """Whether a transform of what attention gives can stand in the weights before it: not where
        several heads read one value head."""
        channels = self.linear(attention.outs[0]).in_features
        return all(len(self._value_rows(name)[0]) == channels for name in attention.values)

    def fold_into_values(self, attention: Attention, transform: Transform) -> None:
        """The value projections give what the output projections now expect: nothing changes.
        Attention mixes tokens and not channels, so this is free of run-time cost."""
        for name in attention.values:
            weight, bias = self._value_rows(name)
            weight.copy_(transform(weight.float().T).T)
            if bias is not None:
                bias.copy_(transform(bias.float()))
        for name in attention.outs:
            weight = self.weight(name)
            weight.copy_(transform.weight(weight.float()))

    def _value_rows(self, name: str) -> tuple[Tensor, Tensor | None]:
        """The rows of a projection that give values: of a joint one the last third."""
        linear = self.linear(name)
        rows = linear.out_features // (3 if self.role(name) is Role.QKV else 1)
        bias = None if linear.bias is None else linear.bias.detach()[-rows:]
        return linear.weight.detach()[-rows:], bias

    def path(self, name: str) -> str:
        """Of a layer inside its block."""
        return name.removeprefix(self.name).removeprefix(".")

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def replace(
        self, name: str, layer: QLinear, target: Tensor, plain: QTensor | None = None
    ) -> None:
        """Put `layer` where the linear stood; `target` is what its packed weight stands for, and
        `plain` what the simplest method makes of it, where that is not rounding by the rule."""
        layer.model_dtype = self.linear(name).weight.dtype
        self.solved[name] = Solved(layer, target, plain)
        self.module.set_submodule(self.path(name), layer.train(self.module.training))


@dataclass(frozen=True)
class ModelJob:
    """The whole model, every block solved."""

    model: nn.Module
    blocks: tuple[str, ...]
    exact: BlockStream  # has gone through the full-precision blocks
    original: nn.Module | None
    seed: int


@dataclass(frozen=True)
class SurveyJob:
    """The whole model in full precision, and what it is to be quantized for."""

    model: nn.Module
    blocks: tuple[str, ...]
    rules: Mapping[str, Rule]
    attending: tuple[str, ...]  # modules that call the fused attention, of all blocks
    data: CalibrationSet
    seed: int
    track: Track  # its minibatches, to show how far it is

    @property
    def layers(self) -> tuple[str, ...]:
        """Those that have a rule."""
        return tuple(self.rules)

    def weight(self, name: str) -> Tensor:
        linear = self.model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        return linear.weight.detach()


@dataclass(frozen=True)
class Solved:
    layer: QLinear
    target: Tensor
    plain: QTensor | None

    def plainly(self, weight: Tensor, rule: Rule) -> Tensor:
        """The weight by plain rounding, float32."""
        return rule.weight.round(weight) if self.plain is None else self.plain.dequantize()


@dataclass(frozen=True)
class Method:
    """A way of quantizing: its bits, its settings, and what it does to a layer and to a block.

    `rule` says what a layer becomes (None keeps it), `solve` replaces the layers of one block.
    `survey` learns of the whole model in full precision, before any block is solved. `finish`
    changes the whole model in the end, layers of the same kinds in their places, and says whether
    there was anything to do. A calibrated method sees data, and its settings are `Calibrated`; one
    with `targets` also sees what full precision gives: `exact` of its jobs, which has advanced
    unless the method `records` it before it changes the block. `options` says what a layer of so
    many columns may become under a budget; the survey then gives what is lost in each of them, by
    the name of the layer and ".losses". `ranks` says how many directions an input may keep; what is
    then lost stands by the names of the layers that read it and ".directions".
    """

    name: str
    summary: str
    variants: Mapping[str, Rule]  # bits -> the rule they stand for, the default first
    settings: type[Common]
    rule: Callable[[Layer, Rule, Any], Rule | None]
    solve: Callable[[BlockJob, Any], None]
    survey: Callable[[SurveyJob, Any], Mapping[str, Tensor]] | None = None
    finish: Callable[[ModelJob, Any], bool] | None = None
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    targets: bool = False
    records: bool = False
    options: Callable[[Rule, int], tuple[Rule, ...]] | None = None
    ranks: Callable[[Rule, int], tuple[int, ...]] | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def calibrated(self) -> bool:
        return issubclass(self.settings, Calibrated)

    def options_of(self, rule: Rule, width: int) -> tuple[Rule, ...]:
        """What a layer with this rule may become, where bits are chosen by layer."""
        return (rule,) if self.options is None else self.options(rule, width)

    def ranks_of(self, rule: Rule, width: int) -> tuple[int, ...]:
        """How many directions an input may keep, where that is chosen too."""
        return (rule.directions,) if self.ranks is None else self.ranks(rule, width)

    def rule_of(self, layer: Layer, variant: Rule, settings: Common) -> Rule | None:
        """The method's own rule, but for the modulation: one row per image, whose input is never
        rounded. One that all blocks share is rounded plainly and felt everywhere: in int8."""
        if layer.role is not Role.ADALN:
            return self.rule(layer, variant, settings)
        if settings.adaln != "same" or layer.block is None:
            return None if settings.adaln == "keep" else Rule(variant.wide)
        rule = self.rule(layer, variant, settings)
        return None if rule is None else Rule(rule.weight)
