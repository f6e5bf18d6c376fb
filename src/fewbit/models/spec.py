"""What a model must say about itself: its blocks, and the role of each linear inside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from fewbit.errors import BadArgument

SPEC = "fewbit_spec"  # the attribute of a quantized model that holds its spec


class Role(StrEnum):
    """What a linear does in its block. Both streams of a joint attention use the same roles."""

    Q = "q"
    K = "k"
    V = "v"
    QKV = "qkv"  # rows: all of q, all of k, all of v
    ATTN_OUT = "attn_out"
    CROSS_Q = "cross_q"
    CROSS_K = "cross_k"
    CROSS_V = "cross_v"
    CROSS_OUT = "cross_out"
    FC1 = "fc1"
    GATE = "gate"  # of a gated MLP: multiplied with fc1 after its activation
    FC2 = "fc2"
    FUSED_OUT = "fused_out"  # attn_out and fc2 in one: reads the inputs of both, in this order
    ADALN = "adaln"
    SKIP = "skip"
    LINEAR = "linear"  # of no known use: nothing but its shape and its input is relied on


_READS_TOGETHER = {
    Role.Q: "self",
    Role.K: "self",
    Role.V: "self",
    Role.CROSS_K: "cross",
    Role.CROSS_V: "cross",
}


@dataclass(frozen=True)
class ModelSpec:
    """Where the blocks of a model are and what the linear layers in them do.

    Attributes:
        blocks: Dotted paths of the lists that hold the blocks, in order of execution. A path may
            also name a single block, for lists whose blocks take turns. A single path may stand
            alone.
        roles: Maps the path of a linear inside its block (an fnmatch pattern) to its `Role`. The
            first match counts. A pattern may also be of full module paths.
        keep: Patterns of full module paths that stay in high precision; stronger than `roles`.
        heads: The number of attention heads, or a table from patterns of the path of an attention
            inside its block to its number. Give it only where nothing but attention stands
            between a value projection and its out projection.
        shared: Groups of patterns, as in `roles`, whose linears in one block read one tensor.
            Linears of the roles q, k, v (and cross_k, cross_v) with one parent form such a group
            by themselves.
        outside: Maps the full path of a linear outside of the blocks (an fnmatch pattern) to its
            `Role`. Without one it stays in high precision if `keep` says so.
    """

    blocks: Sequence[str]
    roles: Mapping[str, str]
    keep: Sequence[str] = ()
    heads: int | Mapping[str, int] | None = None
    shared: Sequence[Sequence[str]] = ()
    outside: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        normal = {
            "blocks": _names("blocks", self.blocks),
            "roles": _roles("roles", self.roles),
            "outside": _roles("outside", self.outside),
            "keep": _names("keep", self.keep),
            "shared": tuple(_names("shared", group) for group in self.shared),
        }
        for name, value in normal.items():
            object.__setattr__(self, name, value)
        if not self.blocks or not self.roles:
            raise BadArgument("ModelSpec needs at least one path in blocks and one entry in roles")
        _refuse_no_heads(self.heads)

    def role(self, path: str, block: str = "") -> Role | None:
        """The role of the linear at `path` inside its block, which is called `block`."""
        return next((Role(r) for p, r in self.roles.items() if matches(p, path, block)), None)

    def role_outside(self, name: str) -> Role | None:
        """The role of the linear of that full path, which is in no block."""
        return next((Role(r) for p, r in self.outside.items() if fnmatchcase(name, p)), None)

    def keeps(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.keep)

    def heads_of(self, path: str, block: str = "") -> int | None:
        """The number of heads of the attention at `path` inside its block, if it may be used."""
        if not isinstance(self.heads, Mapping):
            return self.heads
        return next((n for p, n in self.heads.items() if matches(p, path, block)), None)

    def source(self, path: str, block: str = "") -> str:
        """A name for the tensor that feeds the linear at `path`: same name, same tensor."""
        group = self.sharers(path, block)
        if group is not None:
            return " ".join(group)
        together = _READS_TOGETHER.get(self.role(path, block) or Role.SKIP)
        return f"{path.rpartition('.')[0]} {together}" if together else path

    def sharers(self, path: str, block: str = "") -> Sequence[str] | None:
        """The group of `shared` that the linear belongs to."""
        return next(
            (group for group in self.shared if any(matches(p, path, block) for p in group)), None
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; what is empty is left out."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ModelSpec:
        """From a table that a person or a file gives."""
        fields = ", ".join(cls.__dataclass_fields__)
        if not isinstance(content, Mapping) or not content.keys() <= set(cls.__dataclass_fields__):
            raise BadArgument(f"a spec is a table of {fields}, got {content!r:.80}")
        tables = {name: content[name] for name in ("roles", "heads", "outside") if name in content}
        try:
            pairs = {n: dict(value) for n, value in tables.items() if isinstance(value, list)}
            return cls(**{**content, **pairs})
        except (TypeError, ValueError) as error:
            if isinstance(error, BadArgument):
                raise
            raise BadArgument(f"a spec needs blocks and roles, got {content!r:.80}") from None


def matches(pattern: str, path: str, block: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(f"{block}.{path}", pattern)


def _refuse_no_heads(heads: object) -> None:
    numbers = list(heads.values()) if isinstance(heads, Mapping) else [heads]
    wrong = [n for n in numbers if n is not None and not (type(n) is int and n > 0)]
    if wrong or (None in numbers and isinstance(heads, Mapping)):
        raise BadArgument(f"ModelSpec.heads must be a positive integer, got {heads!r}")


def _names(field: str, value: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(value, str | Sequence):
        raise BadArgument(f"ModelSpec.{field} must hold non-empty strings, got {value!r:.80}")
    names = (value,) if isinstance(value, str) else tuple(value)
    wrong = [name for name in names if not (isinstance(name, str) and name)]
    if wrong:
        raise BadArgument(f"ModelSpec.{field} must hold non-empty strings, got {wrong[0]!r}")
    return names


def _roles(field: str, value: Mapping[str, str]) -> dict[str, Role]:
    if not isinstance(value, Mapping):
        raise BadArgument(f"ModelSpec.{field} must map paths to roles, got {type(value).__name__}")
    return {path: _role(field, path, role) for path, role in value.items()}


def _role(field: str, path: str, role: str) -> Role:
    try:
        return Role(role)
    except ValueError:
        raise BadArgument(
            f"ModelSpec.{field} gives {path!r} the unknown role {role!r}; "
            f"allowed: {', '.join(Role)}"
        ) from None
