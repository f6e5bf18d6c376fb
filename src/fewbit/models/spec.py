"""What a model must say about itself: its blocks, and the role of each linear inside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from fewbit.errors import BadArgument


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
    FC2 = "fc2"
    FUSED_OUT = "fused_out"  # attn_out and fc2 in one: reads the inputs of both, in this order
    ADALN = "adaln"
    SKIP = "skip"


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
        blocks: Dotted paths of the lists that hold the blocks, in order of execution. A single
            path may stand alone.
        roles: Maps the path of a linear inside its block (an fnmatch pattern) to its `Role`. The
            first match counts.
        keep: Patterns of full module paths that stay in high precision; stronger than `roles`.
        heads: The number of attention heads. Give it only where nothing but attention stands
            between a value projection and its out projection.
        shared: Groups of patterns inside a block whose linears read one tensor. Linears of the
            roles q, k, v (and cross_k, cross_v) with one parent form such a group by themselves.
    """

    blocks: Sequence[str]
    roles: Mapping[str, str]
    keep: Sequence[str] = ()
    heads: int | None = None
    shared: Sequence[Sequence[str]] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.roles, Mapping):
            raise BadArgument(
                f"ModelSpec.roles must map paths to roles, got {type(self.roles).__name__}"
            )
        normal = {
            "blocks": _names("blocks", self.blocks),
            "roles": {path: _role(path, role) for path, role in self.roles.items()},
            "keep": _names("keep", self.keep),
            "shared": tuple(_names("shared", group) for group in self.shared),
        }
        for field, value in normal.items():
            object.__setattr__(self, field, value)
        if not self.blocks or not self.roles:
            raise BadArgument("ModelSpec needs at least one path in blocks and one entry in roles")
        if self.heads is not None and not (isinstance(self.heads, int) and self.heads > 0):
            raise BadArgument(f"ModelSpec.heads must be a positive integer, got {self.heads!r}")

    def role(self, path: str) -> Role | None:
        """The role of the linear at `path` inside its block."""
        return next((Role(r) for p, r in self.roles.items() if fnmatchcase(path, p)), None)

    def keeps(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.keep)

    def source(self, path: str) -> str:
        """A name for the tensor that feeds the linear at `path`: same name, same tensor."""
        for group in self.shared:
            if any(fnmatchcase(path, pattern) for pattern in group):
                return " ".join(group)
        together = _READS_TOGETHER.get(self.role(path) or Role.SKIP)
        return f"{path.rpartition('.')[0]} {together}" if together else path


def _names(field: str, value: Sequence[str]) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)
    wrong = [name for name in names if not (isinstance(name, str) and name)]
    if wrong:
        raise BadArgument(f"ModelSpec.{field} must hold non-empty strings, got {wrong[0]!r}")
    return names


def _role(path: str, role: str) -> Role:
    try:
        return Role(role)
    except ValueError:
        raise BadArgument(
            f"ModelSpec.roles gives {path!r} the unknown role {role!r}; allowed: {', '.join(Role)}"
        ) from None
