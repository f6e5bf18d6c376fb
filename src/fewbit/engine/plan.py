"""The plan: which layer becomes what, checked against its shape before any work begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fewbit.calibration import CalibrationSet
from fewbit.calibration.trial import Trial
from fewbit.engine.recipe import Recipe
from fewbit.engine.stored_size import Size, Stored, told
from fewbit.errors import BadArgument, BadModel
from fewbit.layers.adapters import refuse_adapted
from fewbit.layers.linear import QLinear
from fewbit.methods.method import BlockJob, Rule, SurveyJob
from fewbit.models import Attention, Layer, ModelSpec, Structure, describe, is_known
from fewbit.models.own_forward import is_wrapped, refuse_bound_to_one
from fewbit.models.structure import some
from fewbit.pages.notebook import shown
from fewbit.progress import Track

ALLOWED_UNKNOWN = 0.01  # of all weights, where a plan is strict


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    structure: Structure
    rules: dict[str, Rule]  # by layer name; layers without a rule stay as they are
    stored: Stored  # the network before
    trial: Trial = field(default_factory=Trial)  # what the calibration data showed

    def tried(self, trial: Trial) -> Plan:
        """The same plan with blocks in the order of execution, those that never run at the end."""
        blocks = dict.fromkeys((*trial.blocks, *self.structure.blocks))
        return replace(self, structure=self.structure.in_order(tuple(blocks)), trial=trial)

    def job(self, model: nn.Module, block: int, seed: int, idle: bool = False) -> BlockJob:
        """The layers of a block that have a rule, grouped by the tensor they read: those that run,
        or those that the calibration data never reached."""
        groups = self.groups(block, idle)
        names = set(chain.from_iterable(groups))
        layers = tuple(one for one in self.structure.quantizable(block) if one.name in names)
        return self._job(model, block, layers, groups, seed)

    def groups(self, block: int, idle: bool = False) -> tuple[tuple[str, ...], ...]:
        """The layers of a block that have a rule, those that read one tensor together."""
        names = {name for name in self.rules if (name in self.trial.idle) == idle}
        shared = self.structure.shared_inputs(block)
        groups = (tuple(name for name in group if name in names) for group in shared)
        return tuple(group for group in groups if group)

    def job_of_group(self, model: nn.Module, name: str) -> BlockJob:
        """Only the layers that read the same tensor as layer `name`."""
        block = next(one.block for one in self.structure.layers if one.name == name)
        if block is None:
            return self._job_outside(model, (name,), seed=0)
        whole = self.job(model, block, seed=0)
        group = next(group for group in whole.groups if name in group)
        layers = tuple(one for one in whole.layers if one.name in group)
        return self._job(model, block, layers, (group,), seed=0)

    def job_outside(self, model: nn.Module, seed: int) -> BlockJob:
        """The layers with a rule that are in no block, as one more block: the model itself."""
        names = tuple(one.name for one in self.structure.outside if one.name in self.rules)
        return self._job_outside(model, names, seed)

    def _job_outside(self, model: nn.Module, names: tuple[str, ...], seed: int) -> BlockJob:
        layers = tuple(one for one in self.structure.outside if one.name in names)
        rules, groups = {n: self.rules[n] for n in names}, tuple((n,) for n in names)
        last = len(self.structure.blocks)
        return BlockJob(last, model, "", layers, rules, groups, (), (), {}, seed)

    def _job(
        self,
        model: nn.Module,
        block: int,
        layers: tuple[Layer, ...],
        groups: tuple[tuple[str, ...], ...],
        seed: int,
    ) -> BlockJob:
        name = self.structure.blocks[block]
        rules = {layer.name: self.rules[layer.name] for layer in layers}
        attentions = self._attentions(block, rules)
        attending = self.structure.attending(block)
        module = model.get_submodule(name)
        odd = self.trial.odd
        return BlockJob(
            block, module, name, layers, rules, groups, attentions, attending, odd, seed
        )

    def survey_job(
        self, model: nn.Module, data: CalibrationSet, seed: int, track: Track
    ) -> SurveyJob:
        blocks = self.structure.blocks
        attending = chain.from_iterable(map(self.structure.attending, range(len(blocks))))
        rules = {name: self.rules[name] for name in self.rules if name not in self.trial.idle}
        regular = tuple(name for name in attending if name not in self.trial.odd)
        return SurveyJob(model, blocks, rules, regular, data, seed, track)

    def _attentions(self, block: int, rules: Mapping[str, Rule]) -> tuple[Attention, ...]:
        """Those all of whose value and output projections are to be quantized."""
        return tuple(
            attention
            for attention in self.structure.attentions(block)
            if all(name in rules for name in (*attention.values, *attention.outs))
        )

    def without(self, patterns: Sequence[str]) -> Plan:
        """The same plan with the layers that match a pattern kept in high precision."""
        rules = {
            name: rule
            for name, rule in self.rules.items()
            if not any(fnmatchcase(name, pattern) for pattern in patterns)
        }
        return replace(self, rules=rules)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Those that have a rule."""
        return tuple(layer for layer in self.structure.layers if layer.name in self.rules)

    @property
    def weight_bytes(self) -> int:
        """Of the quantized weights alone."""
        return sum(self._weights().values())

    @property
    def size_after(self) -> Size:
        """The arithmetic of the quantized weights, biases as they are, and all that is kept."""
        return self.stored.quantized([one.name for one in self.structure.layers], self._weights())

    def _weights(self) -> dict[str, int]:
        return {one.name: self.rules[one.name].bytes(*one.shape) for one in self.layers}

    def __repr__(self) -> str:
        return f"<Plan: {self._head()}, {len(self.rules)} layers, {self.size_after}>"

    def _repr_html_(self) -> str:
        size = told(self.size_after, self.stored.bf16_bytes)
        return shown(f"plan: {self._head()}", ("role", "n", "what"), self._kinds(), [
            *size, *self._notes()
        ])  # fmt: skip

    def _head(self) -> str:
        return f"{self.recipe} for {self.structure.family}, {len(self.structure.blocks)} blocks"

    def _kinds(self) -> list[tuple[str, str, str]]:
        """Of each role and rule, how many there are and what they become."""
        kinds = Counter(
            (str(layer.role), self.rules.get(layer.name))
            for layer in self.structure.layers
            if layer.status == "quantize"
        )
        return [(role, str(count), _becomes(rule)) for (role, rule), count in kinds.items()]

    def __str__(self) -> str:
        lines = [f"plan: {self._head()}", *told(self.size_after, self.stored.bf16_bytes)]
        lines += [f"  {role:<9} {count:>4} x {what}" for role, count, what in self._kinds()]
        return "\n".join([*lines, *self._notes()])

    def _notes(self) -> list[str]:
        """Where the blocks are, and what stays as it is."""
        kept = sum(layer.status != "quantize" for layer in self.structure.layers)
        return [*self.structure.notes(), f"  {kept} other layers stay in high precision"]


def _becomes(rule: Rule | None) -> str:
    if rule is None:
        return "kept"
    what = f"weight {rule.weight}, input {rule.activation or 'as it comes'}"
    return f"{what}, {rule.directions} directions" if rule.directions else what


def make_plan(
    model: nn.Module,
    recipe: Recipe,
    spec: ModelSpec | None,
    allow_unknown: bool,
    *,
    strict: bool = False,
    see: Callable[[], Mapping[str, Any] | None] = lambda: None,
) -> Plan:
    """Refuses what cannot be done, naming the layer: nothing has been touched by then.

    `see` gives a call of the model's forward, where its structure has to be found out.
    """
    refuse_adapted(model, "quantized")
    _refuse_quantized(model)
    if recipe.method.targets:
        refuse_bound_to_one(model)
    call = see() if spec is None and not is_known(model) else None
    structure = describe(model, spec, call)
    if structure.unknown and not allow_unknown:
        names = ", ".join(layer.name for layer in structure.unknown[:5])
        raise BadModel(
            f"{len(structure.unknown)} layers of {structure.family} have no known role: {names}; "
            "give them one in a ModelSpec, or allow_unknown=True to keep them in high precision"
        )
    if strict:
        _refuse_unknown_share(structure)
    rules = rules_of(recipe, structure)
    for layer in structure.layers:
        if layer.name in rules:
            _check(model, layer, rules[layer.name])
    _refuse_shared(model, rules)
    return Plan(recipe, structure, rules, Stored.of(model, {f"{name}.weight" for name in rules}))


def rules_of(recipe: Recipe, structure: Structure) -> dict[str, Rule]:
    """What the method says of each layer; none for those that it keeps."""
    asked = (layer for layer in structure.layers if layer.status == "quantize")
    told = {one.name: recipe.method.rule_of(one, recipe.variant, recipe.settings) for one in asked}
    return {name: rule for name, rule in told.items() if rule is not None}


def _refuse_unknown_share(structure: Structure) -> None:
    if structure.unknown_share > ALLOWED_UNKNOWN:
        names = [name for one in structure.left_out if not one.intended for name in one.names]
        raise BadModel(
            f"{structure.unknown_share:.1%} of the weights of {structure.family} would stay in "
            f"high precision although nobody said so, strict allows {ALLOWED_UNKNOWN:.0%}: "
            f"{some(names)}; name them in the keep of a spec, or leave strict out"
        )


def _refuse_shared(model: nn.Module, rules: Mapping[str, Rule]) -> None:
    """A layer is replaced under one name; under another it would stay what it was."""
    names: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        other = names.setdefault(module, name)
        if other != name and {other, name} & rules.keys():
            raise BadModel(
                f"{other} and {name} are one module; give each its own, such as "
                "copy.deepcopy(linear), or name it in the keep of a spec"
            )


def _refuse_quantized(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, QLinear):
            raise BadModel(
                f"the model is already quantized ({name} is {module.spec}); "
                "call fewbit.dequantize(model) first or start from the original"
            )


def _check(model: nn.Module, layer: Layer, rule: Rule) -> None:
    module = model.get_submodule(layer.name)
    if not isinstance(module, nn.Linear):
        raise BadModel(f"{layer.name} is a {type(module).__name__}, only nn.Linear is quantized")
    if is_parametrized(module) or "weight" not in module._parameters:
        raise BadModel(
            f"the weight of {layer.name} is computed from other tensors; make it plain first: "
            "torch.nn.utils.parametrize.remove_parametrizations(linear, 'weight')"
        )
    if 0 in layer.shape:
        raise BadModel(f"{layer.name} has no weights, its shape is {list(layer.shape)}; keep it")
    for part in (rule.weight, rule.activation):
        if part is not None:
            try:
                part.groups(layer.shape[1])
            except BadArgument as error:
                raise BadArgument(f"{layer.name}: {error}") from None
    if module.weight.is_meta:
        return  # nothing to see yet: the model is still to be loaded
    if is_wrapped(module) or module._forward_hooks or module._forward_pre_hooks:
        raise BadModel(
            f"{layer.name} has a hook or a forward of its own, which would be lost with the layer; "
            "allowed: take it away before quantizing and put it back afterwards"
        )
    if module.weight.dtype.itemsize < 2:  # float8, which torch stores and does not compute with
        raise BadModel(
            f"the weight of {layer.name} is {module.weight.dtype}; allowed: float32, bfloat16 and "
            "float16, as after model.to(torch.bfloat16)"
        )
    if not torch.isfinite(module.weight.sum()) and not torch.isfinite(module.weight).all():
        raise BadModel(f"the weight of {layer.name} holds NaN or infinite values")
    if module.bias is not None and not torch.isfinite(module.bias).all():
        raise BadModel(f"the bias of {layer.name} holds NaN or infinite values")
