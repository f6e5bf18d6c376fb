"""The spec of a model that no family knows, from one of its forwards."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sized
from typing import Any

from torch import Tensor, nn

from fewbit.errors import BadCalibration, BadModel
from fewbit.models.hidden import shown
from fewbit.models.lists import candidates, linears_in, lists_of
from fewbit.models.merge import spec_of
from fewbit.models.outside import shared_modulations
from fewbit.models.roles import BlockRoles, roles_in
from fewbit.models.spec import ModelSpec
from fewbit.models.timestep import time_argument
from fewbit.models.trace import BlockTrace, trace

MATRIX = 2  # axes
WITHOUT_ATTENTION = 3  # linears that make a block of a module that does not attend


def discover(model: nn.Module, call: Mapping[str, Any]) -> ModelSpec:
    """Blocks, roles and shared inputs, from one forward on the keyword arguments `call`.

    What lies outside of the blocks is kept, but for large modulations that they share. Where
    something has no gradients, blocks and inputs are found, and what follows from gradients is not.
    """
    with shown(model):
        try:
            return _discover(model, call, with_gradients=True)
        except BadCalibration:
            return _discover(model, call, with_gradients=False)


def _discover(model: nn.Module, call: Mapping[str, Any], with_gradients: bool) -> ModelSpec:
    found: list[BlockRoles] = []
    blocks, batch = candidates(model), _rows_of_images(model, call)

    def read(block: BlockTrace) -> None:
        if block.attended or len(linears_in(blocks[block.name])) >= WITHOUT_ATTENTION:
            found.append(roles_in(block, batch))

    outside = trace(model, blocks, call, read, with_gradients)
    if not found:
        raise no_blocks(model)
    large = shared_modulations(model, [block.name for block in found])
    return spec_of(model, found, [name for name in large if outside.get(name) in batch])


def no_blocks(model: nn.Module) -> BadModel:
    lists = ", ".join(lists_of(model)) or "none"
    return BadModel(
        f"no list of {type(model).__name__} holds blocks, modules that attend or have "
        f"{WITHOUT_ATTENTION} linears or more; give spec=fewbit.ModelSpec(...), its lists: {lists}"
    )


def _rows_of_images(model: nn.Module, call: Mapping[str, Any]) -> frozenset[int]:
    """How many rows there are where each image has one, or each of its times."""
    first = next((call[n] for n in inspect.signature(model.forward).parameters if n in call), ())
    time = time_argument(model)
    times = call.get(time[0]) if time else None
    return frozenset({_rows(first), _count(times)})


def _rows(first: object) -> int:
    """A tensor of one axis is a text or the like, of one image."""
    is_flat = isinstance(first, Tensor) and first.ndim < MATRIX
    return 1 if is_flat or not isinstance(first, Sized) else len(first)


def _count(times: object) -> int:
    return times.numel() if isinstance(times, Tensor) else 1
