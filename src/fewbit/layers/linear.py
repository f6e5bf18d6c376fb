"""QLinear, what stands where nn.Linear stood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from fewbit.formats import QTensor, Spec
from fewbit.kernels.choose import backend_for
from fewbit.kernels.precision import without_autocast
from fewbit.kernels.reference import Reference
from fewbit.kernels.values import (
    NOTHING,
    AdaLNInput,
    Epilogue,
    Weight,
    refuse_other_width,
)
from fewbit.layers.bound import Bound, RowsOf, plain
from fewbit.layers.packed_matrix import PackedMatrix
from fewbit.layers.packed_weight import PackedWeight
from fewbit.layers.side import side_of
from fewbit.layers.stage import InputStage


class QLinear(PackedMatrix):
    """A linear layer whose weight is stored packed; the result has the dtype of the input."""

    def __init__(self, weight: QTensor, bias: Tensor | None, stage: InputStage | None) -> None:
        super().__init__(weight, bias)
        self.out_features, self.in_features = weight.shape
        self.stage = stage
        self.model_dtype = torch.float32  # of the weight, as far as nothing stored says it

    @property
    def weight(self) -> PackedWeight:
        """Shape, dtype and device for whoever asks a linear layer for them, without the numbers."""
        dtype = self.model_dtype if self.bias is None else self.bias.dtype
        return PackedWeight.of(self.out_features, self.in_features, dtype, self.scales.device)

    def forward(self, x: Tensor | AdaLNInput, epilogue: Epilogue = NOTHING) -> Tensor:
        if isinstance(x, Tensor) and torch.is_grad_enabled() and self._is_derived(x):
            derived: Tensor = _Derived.apply(x, self.bias, self)
            return derived
        return self._traced(x, epilogue) if self._is_traced() else self.bound()(x, epilogue)

    def _is_derived(self, x: Tensor) -> bool:
        return x.requires_grad or (self.bias is not None and self.bias.requires_grad)

    def unbind(self) -> None:
        if self._bound is not None and self.stage is not None:
            self.stage.unshare(self)
        super().unbind()

    @property
    def side(self) -> QTensor | None:
        """What it multiplies the components of its input with, if that keeps directions apart."""
        principal = None if self.stage is None else self.stage.principal
        return None if principal is None else side_of(self.packed_weight, principal)

    def _ready(self, backend: Reference, weight: Weight) -> Bound:
        multiply: Any = backend.multiplier(weight, self.bias)
        beside = self._beside(backend)
        if beside is not None:
            multiply = backend.added(multiply, backend.multiplier(beside, None))
        return Bound(backend, self._coder(backend), weight, multiply, beside)

    def _beside(self, backend: Reference) -> Weight | None:
        """Its side as the backend wants it."""
        side = self.side
        if side is None:
            return None
        weight = Weight(side, backend.layout(side, None, self.fast))
        return replace(weight, kept_scales=weight.integer_scales())

    def _coder(self, backend: Reference) -> RowsOf:
        if self.stage is None:
            return partial(plain, backend)
        return self.stage.shared(backend, self)

    def _traced(self, x: Tensor | AdaLNInput, epilogue: Epilogue) -> Tensor:
        """As bound, for the compiler, which makes ready what it likes."""
        given = x.x if isinstance(x, AdaLNInput) else x
        refuse_other_width(given, self.in_features)
        if not given.numel():
            return given[..., :1].expand(*given.shape[:-1], self.out_features)
        with without_autocast(given):
            backend = backend_for(given) if self._bound is None else self._bound.backend
            code = partial(plain, backend) if self.stage is None else self.stage.coder(backend)
            multiply: Any = Reference.multiplier(backend, self._resting(), self.bias)
            beside = self._resting_side()
            if beside is not None:
                side = Reference.multiplier(backend, beside, None)
                multiply = Reference.added(backend, multiply, side)
            product: Tensor = multiply(code(x), given.dtype, epilogue)
        return product.view(*given.shape[:-1], self.out_features)

    def _resting_side(self) -> Weight | None:
        """As it was bound, or made anew."""
        if self._bound is not None:
            return self._bound.beside
        side = self.side
        return None if side is None else Weight(side)

    @property
    def activation(self) -> Spec | None:
        activation = None if self.stage is None else self.stage.activation
        return None if activation is None else activation.code_spec

    def effective_weight(self) -> Tensor:
        """The matrix this layer multiplies its untransformed, unrounded input with, in float32; a
        codebook is rounded further where it meets bfloat16."""
        weight = self.packed_weight.dequantize()
        if self.stage is None:
            return weight
        if self.stage.principal is not None:
            side = side_of(self.packed_weight, self.stage.principal)
            weight = self.stage.principal.joined(weight, side.dequantize())
        if self.stage.transform is None:
            return weight
        identity = torch.eye(self.in_features, device=weight.device)
        return (self.stage.transform(identity) @ weight.T).T

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weight."""
        return self.packed_weight.nbytes

    def nbytes(self) -> int:
        """Bytes this layer keeps, its input stage aside."""
        return self.weight_bytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def hidden_bytes(self) -> int:
        beside = None if self._bound is None else self._bound.beside
        return super().hidden_bytes + (0 if beside is None else beside.nbytes)

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.model_dtype = fn(torch.empty(0, dtype=self.model_dtype, device="cpu")).dtype
        return self


class _Derived(torch.autograd.Function):
    """The product of a layer; gradients pass its roundings as if nothing had been rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: QLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return layer.bound()(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad = grads[0].float()
        of_x, of_bias, _ = ctx.needs_input_grad
        return (
            (grad @ ctx.layer.effective_weight()).to(ctx.dtype) if of_x else None,
            grad.flatten(0, -2).sum(0).to(ctx.layer.bias.dtype) if of_bias else None,
            None,
        )


def quantized_layers(model: nn.Module, inside: str = "") -> dict[str, QLinear]:
    """By name, of the whole model or of the block called `inside`."""
    prefix = f"{inside}." if inside else ""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QLinear) and name.startswith(prefix)
    }
