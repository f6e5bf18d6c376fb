"""What every quantizer of inputs is: x to the float32 values that its codes stand for."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from fewbit.formats import Spec


class Activation(nn.Module):
    spec: Spec

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x [..., in], rounded."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What, beside the stored tensors, builds it again; `kind` names its file's KIND."""

    __call__: Any = nn.Module.__call__
