"""The rule of each layer under a budget of bytes: those with which the model loses least.

What a layer loses in each of its options is known beforehand, and what its input loses for each
number of directions that it may keep. Losses add up: which option each layer and each input takes
is a knapsack, solved by dynamic programming.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fewbit.engine.plan import Plan
from fewbit.errors import BadArgument
from fewbit.formats.names import megabytes
from fewbit.methods.method import Rule
from fewbit.methods.settings import Budgeted
from fewbit.models import Layer
from fewbit.transforms.principal import stored_bytes

STEPS = 4096  # of the budget: what a layer needs is rounded up to one of them


def promise(plan: Plan) -> list[str]:
    """What a budget will change of the plan, in lines for people."""
    budget = budget_of(plan)
    if budget is None:
        return []
    kept = plan.size_after.bytes - plan.weight_bytes
    bits = 8 * budget / sum(layer.shape[0] * layer.shape[1] for layer in plan.layers)
    total = megabytes(budget + kept)
    return [
        f"  a budget of {bits:.2f} bits a weight, {total} in all: layers get the bits with",
        "  which the model loses least, once it was measured what their errors do",
    ]


def budget_of(plan: Plan) -> float | None:
    """How many bytes the quantized weights may take; None where nothing limits them."""
    settings = plan.recipe.settings
    if not isinstance(settings, Budgeted) or (settings.size or settings.bits_per_weight) is None:
        return None
    weights = sum(layer.shape[0] * layer.shape[1] for layer in plan.layers)
    kept = plan.size_after.bytes - plan.weight_bytes
    if settings.bits_per_weight is not None:
        budget, said = settings.bits_per_weight * weights / 8, f"{settings.bits_per_weight:g} bits"
    else:
        assert settings.size is not None
        budget, said = settings.size * 1e6 - kept, megabytes(settings.size * 1e6)
    items = [*_weights(plan, {}), *_inputs(plan, {})]
    smallest = sum(min(costs) for costs, _ in items)
    if smallest > budget:
        raise BadArgument(
            f"a budget of {said} is below the smallest possible: {8 * smallest / weights:.2f} bits "
            f"a weight, {megabytes(smallest + kept)}, of which {megabytes(kept)} are no quantized "
            "weights"
        )
    return budget


def allocate(plan: Plan, losses: Mapping[str, Tensor], budget: float) -> Plan:
    """The plan whose quantized weights fit the budget and lose least; `losses` has those of all
    options of a layer by its name and ".losses", those of its input by ".directions"."""
    taken = iter(knapsack([*_weights(plan, losses), *_inputs(plan, losses)], budget))
    rules = {layer.name: _options(plan, layer)[next(taken)] for layer in plan.layers}
    for group in _groups(plan):
        rank = _ranks(plan, group)[next(taken)]
        rules |= {name: replace(rules[name], directions=rank) for name in group}
    return replace(plan, rules=rules)


Item = tuple[Sequence[int], Sequence[float]]  # bytes and losses of the options


def _weights(plan: Plan, losses: Mapping[str, Tensor]) -> Iterator[Item]:
    """Of each layer; what never ran loses nothing."""
    for layer in plan.layers:
        costs = [option.weight.bytes(*layer.shape) for option in _options(plan, layer)]
        yield costs, losses.get(f"{layer.name}.losses", torch.zeros(len(costs))).tolist()


def _inputs(plan: Plan, losses: Mapping[str, Tensor]) -> Iterator[Item]:
    """Of each input: its directions, which all layers that read it share."""
    for group in _groups(plan):
        ranks = _ranks(plan, group)
        costs = [stored_bytes(rank, _width(plan, group)) for rank in ranks]
        lost = [losses.get(f"{name}.directions", torch.zeros(len(ranks))) for name in group]
        yield costs, torch.stack(lost).sum(0).tolist()


def _groups(plan: Plan) -> list[tuple[str, ...]]:
    """Layers that read one tensor, of all blocks."""
    return [group for block in range(len(plan.structure.blocks)) for group in plan.groups(block)]


def _width(plan: Plan, group: Sequence[str]) -> int:
    return next(layer.shape[1] for layer in plan.layers if layer.name == group[0])


def _ranks(plan: Plan, group: Sequence[str]) -> tuple[int, ...]:
    return plan.recipe.method.ranks_of(plan.rules[group[0]], _width(plan, group))


def _options(plan: Plan, layer: Layer) -> tuple[Rule, ...]:
    """What is in no block is measured by nobody, and stays as its rule says."""
    rule = plan.rules[layer.name]
    if layer.block is None:
        return (rule,)
    return plan.recipe.method.options_of(rule, layer.shape[1])


def knapsack(items: Sequence[Item], budget: float) -> list[int]:
    """Of each item the option, so that costs stay within the budget and the losses are least; items
    are costs and losses of their options. The cheapest of all must fit."""
    cheapest = sum(min(costs) for costs, _ in items)
    unit = max((budget - cheapest) / STEPS, 1e-9)
    best = torch.zeros(STEPS + 1, dtype=torch.float64)
    taken = []
    for costs, lost in items:
        extra = [-int(-(cost - min(costs)) // unit) for cost in costs]
        tried = torch.stack(
            [_shifted(best, more) + loss for more, loss in zip(extra, lost, strict=True)]
        )
        best, index = tried.min(0)
        taken.append((extra, index))
    left, chosen = STEPS, []
    for extra, index in reversed(taken):
        option = int(index[left])
        chosen.append(option)
        left -= extra[option]
    return chosen[::-1]


def _shifted(best: Tensor, by: int) -> Tensor:
    """What was best with so much less to spend."""
    shifted = torch.full_like(best, torch.inf)
    if by <= STEPS:
        shifted[by:] = best[: len(best) - by]
    return shifted
