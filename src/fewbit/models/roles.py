"""The roles of a block's linears, from one call of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fewbit.models.graph import Met, joined, sources
from fewbit.models.spec import Role
from fewbit.models.trace import Attended, BlockTrace, Ran, Same

Sources = Mapping[str, set[Met]]

_SELF = {"q": Role.Q, "k": Role.K, "v": Role.V}
_VALUES = {Role.V, Role.CROSS_V, Role.QKV}
_CROSS = {"q": Role.CROSS_Q, "k": Role.CROSS_K, "v": Role.CROSS_V}


@dataclass(frozen=True)
class BlockRoles:
    """By path inside the block.

    roles:  of every linear that ran.
    reads:  the tensors that a linear read, one for each of its calls: equal for the same tensors.
    heads:  of each module that holds value projections, where nothing but attention stands between
            them and the out projections; None where something does.
    """

    name: str
    roles: dict[str, Role]
    reads: dict[str, tuple[Same, ...]]
    heads: dict[str, int | None]


def roles_in(block: BlockTrace, batch: frozenset[int]) -> BlockRoles:
    """`batch` is the numbers of rows that one row for each image may have."""
    reader = _Reader(block, batch)
    for attention in reader.attentions:
        reader.feed(attention)
    for ran in block.ran:
        reader.leave(ran)
    for ran in block.ran:
        reader.modulate(ran)
    for ran in block.ran:
        reader.multiply(ran)
    roles = {ran.path: reader.role(ran) for ran in block.ran}
    reads = reader.reads | _equal_conditions(
        ran for ran in block.ran if roles[ran.path] is Role.ADALN
    )
    return BlockRoles(block.name, roles, reads, reader.heads())


@dataclass(eq=False)
class _Attention:
    """One call of the fused attention, and the linears that its operands come from."""

    call: Attended
    q: Sources
    k: Sources
    v: Sources
    own: bool  # queries and keys come from one tensor
    leaves: dict[str, set[Met]] = field(default_factory=dict)  # the ways to the out projections


class _Reader:
    """Gives roles, the surest first; a second claim of another role makes it a plain linear."""

    def __init__(self, block: BlockTrace, batch: frozenset[int]) -> None:
        self.block, self.batch = block, batch
        self.claims: dict[str, set[Role]] = defaultdict(set)
        self.reads: dict[str, tuple[Same, ...]] = {}
        for ran in block.ran:
            self.reads[ran.path] = (*self.reads.get(ran.path, ()), ran.read)
        self.ends = block.ends
        self.fed = {ran: sources(ran.x.grad_fn, self.ends) for ran in block.ran}
        self.attentions = [self._attention(call) for call in block.attended]

    @cached_property
    def most_rows(self) -> int:
        return max((ran.rows for ran in self.block.ran), default=0)

    def feed(self, attention: _Attention) -> None:
        """What gives queries, keys and values."""
        names = _SELF if attention.own else _CROSS
        given: dict[str, str] = {}
        for operand, feeding in (("q", attention.q), ("k", attention.k), ("v", attention.v)):
            for path in feeding:
                given[path] = given.get(path, "") + operand
        for path, operands in given.items():
            self.claims[path].add(names.get(operands) or self._joint(path, operands, attention))

    def leave(self, ran: Ran) -> None:
        """What reads an attention first."""
        fed = self.fed[ran]
        left = {self.attentions[int(end[1:])]: met for end, met in fed.items() if end[0] == "#"}
        if not left or (len(left) == 1 and _any(left.values(), Met.SUM | Met.ADDED | Met.MIXING)):
            return
        others = [end for end in fed if end[0] != "#"]
        width = next(iter(left)).call.width
        if width is None or ran.x.shape[-1] == width:
            own = any(attention.own for attention in left)
            self._claim(ran, Role.ATTN_OUT if own else Role.CROSS_OUT)
            for attention, met in left.items():
                attention.leaves[ran.path] = met | ({Met.NUMBERS} if others else set())
        elif others and self._attention_first(ran):
            self._claim(ran, Role.FUSED_OUT)
            self._first_layers({end: fed[end] for end in others})

    def modulate(self, ran: Ran) -> None:
        """What has a row for each image while others have tokens."""
        if ran.rows in self.batch and ran.rows < self.most_rows:
            self._claim(ran, Role.ADALN)

    def multiply(self, ran: Ran) -> None:
        """What ends an MLP: fed through an activation by one linear or two, and nothing added."""
        fed = {end: met for end, met in self.fed[ran].items() if not self._is_modulation(end)}
        wrong = Met.SUM | Met.MIXING
        if not 1 <= len(fed) <= 2 or any(end[0] == "#" for end in fed):
            return
        if _any(fed.values(), wrong) or not _any(fed.values(), Met.ACTIVATION):
            return
        if ran.path not in self.claims and self._first_layers(fed):
            self.claims[ran.path].add(Role.FC2)

    def role(self, ran: Ran) -> Role:
        claims = self.claims.get(ran.path, set())
        if len(claims) == 1:
            return next(iter(claims))
        return Role.SKIP if not claims and self._joins_skips(ran) else Role.LINEAR

    def heads(self) -> dict[str, int | None]:
        """What turns the values of a head can be undone after it only where all values that are
        mixed come from one module, and nothing but their places changes on the way."""
        found: dict[str, int | None] = {}
        for attention in self.attentions:
            parents = {path.rpartition(".")[0] for path in attention.v}
            for parent in parents:
                direct = len(parents) == 1 and self._is_direct(attention, parent)
                heads = attention.call.heads if direct else None
                found[parent] = heads if found.get(parent, heads) == heads else None
        return found

    def _is_direct(self, attention: _Attention, parent: str) -> bool:
        ways = [*attention.v.values(), *attention.leaves.values()]
        values = all(self.claims[path] <= _VALUES for path in attention.v)
        outs = all(path.startswith(f"{parent}.".lstrip(".")) for path in attention.leaves)
        return values and outs and not _any(ways, Met.NUMBERS) and _as_many_values(attention.call)

    def _attention(self, call: Attended) -> _Attention:
        operands = (call.query, call.key, call.value)
        q, k, v = (self._layers(sources(one.grad_fn, self.ends)) for one in operands)
        read_by_q, read_by_k = ({self.reads[path] for path in feeding} for feeding in (q, k))
        return _Attention(call, q, k, v, bool(read_by_q & read_by_k))

    def _layers(self, fed: Sources) -> Sources:
        return {end: met for end, met in fed.items() if end[0] != "#"}

    def _claim(self, ran: Ran, role: Role) -> None:
        """Unless something surer is known."""
        if ran.path not in self.claims:
            self.claims[ran.path].add(role)

    def _joint(self, path: str, operands: str, attention: _Attention) -> Role:
        """Of a linear that gives several operands."""
        out = next(ran.out for ran in self.block.ran if ran.path == path)
        parts = (attention.call.query, attention.call.key, attention.call.value)
        in_thirds = out.shape[-1] % 3 == 0 and all(
            _only_third(out, part, number) for number, part in enumerate(parts)
        )
        return Role.QKV if operands == "qkv" and attention.own and in_thirds else Role.LINEAR

    def _attention_first(self, ran: Ran) -> bool:
        """Whether an attention stands before all else in what is read."""
        parts = [set(sources(node, self.ends)) for node in joined(ran.x.grad_fn)]
        return bool(parts and parts[0]) and all(end[0] == "#" for end in parts[0])

    def _first_layers(self, fed: Sources) -> bool:
        """Of an MLP: with two, the one whose activation multiplies the other is the gate."""
        gates = {path for path, met in fed.items() if all(Met.ACTIVATION in one for one in met)}
        gates = gates if 0 < len(gates) < len(fed) else set()
        if any(path in self.claims for path in fed):
            return False
        for path in fed:
            self.claims[path].add(Role.GATE if path in gates else Role.FC1)
        return True

    def _is_modulation(self, end: str) -> bool:
        return Role.ADALN in self.claims.get(end, ())

    def _joins_skips(self, ran: Ran) -> bool:
        """Reads two streams side by side, neither of which a layer of this block has given."""
        known = ran.out.grad_fn is not None
        return known and ran.x.shape[-1] == 2 * ran.out.shape[-1] and not self.fed[ran]


def _equal_conditions(modulations: Iterable[Ran]) -> dict[str, tuple[Same, ...]]:
    """Each modulation activates the condition anew: equal numbers are one tensor here."""
    found: dict[str, tuple[Same, ...]] = {}
    for ran in modulations:
        numbers = ran.x.detach().double().flatten().tolist()
        same = (tuple(ran.x.shape), tuple(numbers)) if any(numbers) else ran.read
        found[ran.path] = (*found.get(ran.path, ()), same)
    return found


def _any(ways: Iterable[Iterable[Met]], what: Met) -> bool:
    return any(met & what for way in ways for met in way)


def _as_many_values(call: Attended) -> bool:
    """Whether heads are known, and as many for values as for queries."""
    return call.heads is not None and call.value.ndim == 4 and call.value.shape[1] == call.heads


def _only_third(out: Tensor, operand: Tensor, number: int) -> bool:
    """Whether, of the columns of `out`, exactly that third reaches the operand."""
    try:
        (slope,) = torch.autograd.grad(
            operand, out, torch.rand_like(operand), retain_graph=True, allow_unused=True
        )
    except RuntimeError:  # written in place since
        return False
    if slope is None:
        return False
    reached = slope.flatten(0, -2).abs().sum(0).unflatten(0, (3, -1)).sum(1) > 0
    return reached.tolist() == [place == number for place in range(3)]
