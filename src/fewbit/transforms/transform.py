"""What every transform is: an exact rewrite, `self(x) @ self.weight(W).T == x @ W.T`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fewbit.errors import BadArgument
from fewbit.kernels.values import Rotation

MOST_COLUMNS = 1 << 20


class Transform(nn.Module):
    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The input [..., in], at run time."""

    def split(self) -> tuple[Callable[[Tensor], Tensor] | None, Rotation | None]:
        """What comes before smoothing and a last rotation, and these, which a kernel does while it
        rounds."""
        return self, None

    @abstractmethod
    def check_width(self, columns: int) -> None:
        """Refuse an input that has not this many columns."""

    @abstractmethod
    def weight(self, weight: Tensor) -> Tensor:
        """The weight [out, in], once and offline."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What, beside the stored tensors, builds it again; `kind` names its file's KIND."""

    @abstractmethod
    def extra_repr(self) -> str:
        """How `inspect` shows it."""

    __call__: Any = nn.Module.__call__


def checked_width(width: object) -> int:
    """As a file says it, before anything of that size is made."""
    if type(width) is not int or not 1 <= width <= MOST_COLUMNS:
        raise BadArgument(f"a transform has 1 to {MOST_COLUMNS} columns, got {width!r:.80}")
    return width


def same_width(own: int, columns: int) -> None:
    if own != columns:
        raise BadArgument(f"a transform of {own} columns cannot take an input of {columns}")
