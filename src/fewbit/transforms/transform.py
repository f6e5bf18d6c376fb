"""What every transform is: an exact rewrite, `self(x) @ self.weight(W).T == x @ W.T`."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from fewbit.kernels.choose import modulated
from fewbit.kernels.coded import Modulated, Rotation


class Transform(nn.Module):
    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The input [..., in], at run time."""

    def ahead(self, x: Tensor | Modulated) -> tuple[Tensor | Modulated, Rotation | None]:
        """The input up to a last rotation, which a kernel does together with the rounding."""
        return self(modulated(x)), None

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
