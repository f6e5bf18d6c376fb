"""A linear layer whose weight is made of what is being trained."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fewbit.rounding.straight_through import straight_through


class TrainableLinear(nn.Module):
    """Stands where the linear stood while its weight learns; everything but it is float32."""

    products = torch.float32  # the dtype that is multiplied
    stage: Any  # the input stage of a layer, which stands on a higher floor

    def __init__(self, bias: Tensor | None, stage: nn.Module | None) -> None:
        super().__init__()
        self.stage = stage
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())

    @abstractmethod
    def weight(self) -> Tensor:
        """float32 [out, in]"""

    def forward(self, x: Tensor) -> Tensor:
        staged = x if self.stage is None else straight_through(x, self._rounded(x))
        y = linear(staged.to(self.products), self.weight().to(self.products)).float()
        return y if self.bias is None else y + self.bias

    def _rounded(self, x: Tensor) -> Tensor:
        with torch.no_grad():  # so that layers that share a stage share its result
            rounded: Tensor = self.stage.values(x, consumer=self)
            return rounded
