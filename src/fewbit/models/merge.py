"""One spec for all blocks, from what is known of each."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any, TypeVar

from torch import nn

from fewbit.models.lists import linears_in, lists_of
from fewbit.models.roles import BlockRoles
from fewbit.models.spec import ModelSpec, Role

T = TypeVar("T")
Group = tuple[str, ...]
MANY = 4  # equal parts of a block that are named by one pattern


def spec_of(
    model: nn.Module, blocks: Sequence[BlockRoles], modulations: Sequence[str]
) -> ModelSpec:
    """For blocks in order of execution; what lies outside of them and is no modulation is kept."""
    names = [block.name for block in blocks]
    roles = _table({b.name: b.roles for b in blocks})
    spec = ModelSpec(
        blocks=_in_lists(names, lists_of(model)),
        roles=_exceptions(roles, blocks) | roles | _never_run(model, blocks),
        keep=[name for name in _outside(model, names) if name not in modulations],
        heads=_heads(blocks),
        outside=dict.fromkeys(modulations, Role.ADALN),
    )
    return replace(spec, shared=_told(spec, blocks))


def _exceptions(roles: Mapping[str, Role], blocks: Sequence[BlockRoles]) -> dict[str, Role]:
    """Layers that a pattern of another layer's would catch first."""
    spec = ModelSpec("any", roles)
    return {
        f"{block.name}.{path}": role
        for block in blocks
        for path, role in block.roles.items()
        if spec.role(path, block.name) is not role
    }


def _heads(blocks: Sequence[BlockRoles]) -> int | dict[str, int] | None:
    numbers = {number for block in blocks for number in block.heads.values()}
    if len(numbers) == 1:
        return numbers.pop()
    return _table({b.name: {p: n for p, n in b.heads.items() if n} for b in blocks}) or None


def _told(spec: ModelSpec, blocks: Sequence[BlockRoles]) -> list[Group]:
    """The groups that say more than the roles do."""
    needed = set()
    for block in blocks:
        by_role: dict[str, list[str]] = defaultdict(list)
        for path in block.roles:
            by_role[spec.source(path, block.name)].append(path)
        needed |= {path for paths in by_role.values() if len(paths) > 1 for path in paths}
    groups = _shared({block.name: block.reads for block in blocks})
    return [group for group in groups if len(group) > 1 or needed & set(group)]


def _in_lists(names: Sequence[str], lengths: Mapping[str, int]) -> list[str]:
    """A list whose blocks run one after the other goes by its own name."""
    paths: list[str] = []
    for stem, run in groupby(names, _list_of):
        blocks = list(run)
        whole = blocks == [f"{stem}.{index}" for index in range(lengths[stem])]
        paths += [stem] if whole else blocks
    return paths


def _outside(model: nn.Module, blocks: Sequence[str]) -> list[str]:
    inside = tuple(f"{block}." for block in blocks)
    return [name for name in linears_in(model) if not name.startswith(inside)]


def _never_run(model: nn.Module, blocks: Sequence[BlockRoles]) -> dict[str, Role]:
    """Linears that no block has run are plain ones, but for those whose equals have."""
    known = {path for block in blocks for path in block.roles}
    inside = {path for b in blocks for path in linears_in(model.get_submodule(b.name))}
    patterns = {_equals(path): path for path in known}
    found = {}
    for path in sorted(inside - known):
        like = patterns.get(_equals(path))
        roles = {b.roles[like] for b in blocks if like in b.roles} if like else set()
        found[path] = roles.pop() if len(roles) == 1 else Role.LINEAR
    return found


def _table(blocks: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """Path inside a block -> what all blocks say of it. Where lists differ there is one for each
    list, where the blocks of a list differ one for each block."""
    said: dict[str, dict[str, T]] = defaultdict(dict)
    for block, values in blocks.items():
        for path, value in values.items():
            said[path][block] = value
    table: dict[str, T] = {}
    for path, by_block in said.items():
        if len(set(by_block.values())) == 1:
            table[path] = next(iter(by_block.values()))
        else:
            table |= {f"{stem}.{path}": value for stem, value in _by_list(by_block).items()}
    return _folded(table)


def _by_list(by_block: Mapping[str, T]) -> dict[str, T]:
    """`LIST.*` where its blocks agree, else each block."""
    lists: dict[str, dict[str, T]] = defaultdict(dict)
    for block, value in by_block.items():
        lists[_list_of(block)][block] = value
    found: dict[str, T] = {}
    for stem, members in lists.items():
        alike = len(set(members.values())) == 1
        found |= {f"{stem}.*": next(iter(members.values()))} if alike else members
    return found


def _folded(table: Mapping[str, T]) -> dict[str, T]:
    """Many equal parts, such as experts, under one pattern."""
    alike: dict[str, list[str]] = defaultdict(list)
    for path in table:
        alike[_equals(path)].append(path)
    found: dict[str, T] = {}
    for path, value in table.items():
        pattern = _equals(path)
        matched = {table[other] for other in table if fnmatchcase(other, pattern)}
        fold = len(alike[pattern]) >= MANY and len(matched) == 1
        found[pattern if fold else path] = value
    return found


def _shared(blocks: Mapping[str, Mapping[str, Any]]) -> list[Group]:
    """Groups that read one tensor, and alone what would be taken for a member of one."""
    partitions = {block: _partition(reads) for block, reads in blocks.items()}
    groups: list[Group] = []
    for paths in _connected(group for parts in partitions.values() for group in parts):
        parts = {
            block: [group for group in groups_here if paths & set(group)]
            for block, groups_here in partitions.items()
        }
        if all(len(here) <= 1 for here in parts.values()):
            groups.append(_ordered(paths, blocks))
        else:
            groups += _group_by_group(parts)
    return groups


def _partition(reads: Mapping[str, Any]) -> list[Group]:
    """The paths of a block, those that read the same tensors together."""
    together: dict[Any, list[str]] = defaultdict(list)
    for path, tensors in reads.items():
        together[tensors].append(path)
    return [tuple(paths) for paths in together.values()]


def _connected(groups: Iterable[Group]) -> list[set[str]]:
    """Paths that are in one group in some block, in order of their first."""
    found: list[set[str]] = []
    for group in groups:
        touched = [paths for paths in found if paths & set(group)]
        rest = [paths for paths in found if not paths & set(group)]
        found = [*rest, set(group).union(*touched)]
    return found


def _group_by_group(parts: Mapping[str, list[Group]]) -> list[Group]:
    """Each block's own, where blocks differ."""
    found: dict[Group, None] = {}
    for block, groups in parts.items():
        for group in groups:
            found[tuple(f"{block}.{path}" for path in group)] = None
    return list(found)


def _ordered(paths: set[str], blocks: Mapping[str, Mapping[str, Any]]) -> Group:
    order = [path for reads in blocks.values() for path in reads]
    return tuple(sorted(paths, key=order.index))


def _list_of(block: str) -> str:
    return block.rpartition(".")[0]


def _equals(path: str) -> str:
    """The same for all members of a list inside a block."""
    return re.sub(r"\b\d+(?=\.|$)", "*", path)
