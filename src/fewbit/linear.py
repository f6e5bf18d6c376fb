"""QLinear, what stands where nn.Linear stood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.formats import QTensor, Scales, Spec
from fewbit.input_stage import InputStage
from fewbit.kernels.reference import packed_linear

STORED = ("codes", "scales", "outer_scales", "zeros", "choices")


class QLinear(nn.Module):
    """A linear layer whose weight rests packed; the result has the dtype of the input."""

    def __init__(self, weight: QTensor, bias: Tensor | None, stage: InputStage | None) -> None:
        super().__init__()
        self.spec = weight.spec
        self.out_features, self.in_features = weight.shape
        tensors = weight.tensors()
        for name in STORED:
            self.register_buffer(name, tensors.get(name))
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.stage = stage

    codes: Tensor
    scales: Tensor
    outer_scales: Tensor | None
    zeros: Tensor | None
    choices: Tensor | None

    @property
    def packed_weight(self) -> QTensor:
        scales = Scales(self.scales, self.outer_scales, self.zeros, self.choices)
        return QTensor(self.codes, scales, self.spec, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        staged = x if self.stage is None else self.stage(x, reader=self)
        return packed_linear(staged, self.packed_weight, self.bias).to(x.dtype)

    def effective_weight(self) -> Tensor:
        """The float32 matrix this layer multiplies its untransformed, unrounded input with."""
        weight = self.packed_weight.dequantize()
        transform = None if self.stage is None else self.stage.transform
        if transform is None:
            return weight
        identity = torch.eye(self.in_features, device=weight.device)
        return (transform(identity) @ weight.T).T

    def nbytes(self) -> int:
        """Bytes this layer keeps, its input stage aside."""
        return self.packed_weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def config(self) -> dict[str, Any]:
        """All that is needed, beside the stored tensors, to build this layer again."""
        return {
            "weight": str(self.spec),
            "shape": [self.out_features, self.in_features],
            "bias": self.bias is not None,
            **({} if self.stage is None else {"input": self.stage.config()}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], stage: InputStage | None) -> QLinear:
        """An empty layer of that description; sharing a stage is the caller's business."""
        rows, columns = config["shape"]
        weight = QTensor.empty(rows, columns, Spec.parse(config["weight"]))
        return cls(weight, torch.empty(rows) if config["bias"] else None, stage)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.spec}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QLinear:
        """`.half()` and `.to(dtype)` move the stored scales but never change their dtype."""
        stored = {name: self._buffers[name] for name in STORED}
        super()._apply(fn, recurse)
        for name, before in stored.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self
