"""The spec of a model that no family knows and that cannot run, from its modules' names alone.

It serves recipes that need no data. They must know the modulation; whatever else a linear does
changes nothing for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from fewbit.models.discover import WITHOUT_ATTENTION, no_blocks
from fewbit.models.hidden import shown
from fewbit.models.lists import candidates, linears_in
from fewbit.models.merge import spec_of
from fewbit.models.outside import shared_modulations
from fewbit.models.roles import BlockRoles
from fewbit.models.spec import ModelSpec, Role
from fewbit.models.trace import Same

_MODULATION = re.compile(r"(^|[._])(ada|mod(ulation)?([._]|$)|norm\w*\.(linear|emb)|time)", re.I)
_ATTENTION = re.compile(r"attn|attention|qkv|to_q", re.I)
_CROSS = re.compile(r"attn2|cross", re.I)
_OPERAND = re.compile(r"(?:^|\.)(?:w|\w*_)?(q|k|v|query|key|value)(?:_proj|_linear)?$")
_SELF = {"q": Role.Q, "k": Role.K, "v": Role.V}
_OTHER = {"q": Role.CROSS_Q, "k": Role.CROSS_K, "v": Role.CROSS_V}
_ENDINGS = {
    Role.ATTN_OUT: ("to_out.0", "to_add_out", "out_proj", "o_proj", "to_out", "wo"),
    Role.GATE: ("gate_proj",),
    Role.FC1: ("fc1", "up_proj", "net.0.proj"),
    Role.FC2: ("fc2", "down_proj", "net.2"),
}


def guess(model: nn.Module) -> ModelSpec:
    """Blocks are all that may be some, in the order in which the model holds them."""
    with shown(model):
        return _guess(model)


def _guess(model: nn.Module) -> ModelSpec:
    blocks = [
        BlockRoles(name, dict(_roles(block)), _reads(block), {})
        for name, block in blocks_of(model).items()
    ]
    if not blocks:
        raise no_blocks(model)
    large = shared_modulations(model, [block.name for block in blocks])
    return spec_of(model, blocks, list(filter(_MODULATION.search, large)))


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: block for name, block in candidates(model).items() if _is_block(block)}


def _is_block(block: nn.Module) -> bool:
    paths = linears_in(block)
    return len(paths) >= WITHOUT_ATTENTION or any(map(_ATTENTION.search, paths))


def _roles(block: nn.Module) -> Iterator[tuple[str, Role]]:
    for path in linears_in(block):
        operand, cross = _operand(path), _is_cross(path, block)
        if _MODULATION.search(path):
            yield path, Role.ADALN
        elif operand is not None:
            yield path, (_OTHER if cross else _SELF)[operand]
        else:
            role = next((r for r, ends in _ENDINGS.items() if path.endswith(ends)), Role.LINEAR)
            yield path, Role.CROSS_OUT if cross and role is Role.ATTN_OUT else role


def _reads(block: nn.Module) -> dict[str, tuple[Same, ...]]:
    """Keys and values of one attention read one tensor; where it attends to itself, queries too."""
    return {path: ((_source(path, block),),) for path in linears_in(block)}


def _source(path: str, block: nn.Module) -> str:
    operand = _operand(path)
    if operand is None or _MODULATION.search(path) or (_is_cross(path, block) and operand == "q"):
        return path
    return _stem(path)


def _operand(path: str) -> str | None:
    found = _OPERAND.search(path)
    return found[1][0] if found else None


def _stem(path: str) -> str:
    """The same for q, k and v of one stream of one attention."""
    found = _OPERAND.search(path)
    assert found is not None
    return f"{path[: found.start(1)]}*{path[found.end(1) :]}"


def _is_cross(path: str, block: nn.Module) -> bool:
    """By its name, or because queries are as wide as no key."""
    if _CROSS.search(path):
        return True
    widths = {
        linear.in_features
        for other, linear in linears_in(block).items()
        if _operand(path) and _operand(other) and _stem(other) == _stem(path)
    }
    return len(widths) > 1
