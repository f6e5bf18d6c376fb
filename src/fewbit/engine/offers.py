"""What a model in full precision would weigh, by recipe and bits; no weight need be there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from fewbit.engine.allocate import budget_of
from fewbit.engine.plan import Plan, rules_of
from fewbit.engine.recipe import Recipe, method_named, recipes
from fewbit.engine.stored_size import Stored, smaller
from fewbit.errors import BadArgument
from fewbit.models import Structure

HEAD = ("MB", "bf16/", "if quantized with recipe: bits")
WIDTH, INDENT = 80, 20


@dataclass(frozen=True)
class Offer:
    """The size by a recipe and its bits, or a preset of it."""

    recipe: str
    bits: str
    bytes: int
    smaller: float  # than in bfloat16


def offers_for(
    network: nn.Module, structure: Structure, folder: Path | None = None
) -> tuple[Offer, ...]:
    """The largest first. `folder` has the weights of a network that is there without them: equal
    tensors that stay are stored once."""
    weights = {f"{one.name}.weight" for one in structure.layers if one.status == "quantize"}
    kept = {} if folder is None else _read(folder, network.state_dict().keys() - weights)
    stored = Stored.of(network, weights, kept)
    found = []
    for bits, recipe in _recipes():
        size = _size(Plan(recipe, structure, rules_of(recipe, structure), stored))
        if size is not None:
            factor = smaller(size, stored.bf16_bytes)
            found.append(Offer(recipe.method.name, bits, size, factor))
    return tuple(sorted(found, key=lambda one: -one.bytes))


def by_size(offers: Sequence[Offer]) -> list[tuple[str, str, str]]:
    """Size, factor and recipes with their bits: a row for each size, as far as two digits tell."""
    rows: dict[tuple[str, str], dict[str, list[str]]] = {}
    for one in offers:
        key = f"{one.bytes / 1e6:.2f}", f"{one.smaller:.2f}"
        rows.setdefault(key, {}).setdefault(one.recipe, []).append(one.bits)
    return [
        (*key, "; ".join(f"{recipe}: {', '.join(bits)}" for recipe, bits in by_recipe.items()))
        for key, by_recipe in rows.items()
    ]


def offered(offers: Sequence[Offer]) -> Iterator[str]:
    """The table for the terminal."""
    for size, factor, names in [HEAD, *by_size(offers)] if offers else []:
        first, *more = wrap(names, WIDTH - INDENT, break_on_hyphens=False)
        yield f"  {size:>9} {factor:>6}  {first}"
        yield from (f"{'':{INDENT}}{line}" for line in more)


def _recipes() -> Iterator[tuple[str, Recipe]]:
    """Each by its bits, and by those presets that are a budget of bits."""
    for info in recipes():
        method = method_named(info.name)
        budgets = [name for name, own in info.presets.items() if "bits_per_weight" in own]
        for bits in (*budgets, *info.bits):
            yield bits, Recipe.make(method, bits, {})


def _size(plan: Plan) -> int | None:
    """None where the recipe has no place for the model's widths."""
    try:
        after, budget = plan.size_after.bytes, budget_of(plan)
        return after if budget is None else round(after - plan.weight_bytes + budget)
    except BadArgument:
        return None


def _read(folder: Path, names: Set[str]) -> dict[str, Tensor]:
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in names & set(tensors.keys())}
    return found
