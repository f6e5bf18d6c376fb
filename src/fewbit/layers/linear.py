"""QLinear, what stands where nn.Linear stood."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from fewbit.errors import BadArgument
from fewbit.formats import QTensor, Spec
from fewbit.kernels.choose import backend_for
from fewbit.kernels.precision import without_autocast
from fewbit.kernels.reference import Multiplier, Reference
from fewbit.kernels.values import (
    NOTHING,
    AdaLNInput,
    Epilogue,
    Weight,
    has_integers,
    refuse_other_width,
)
from fewbit.layers.bound import Bound, RowsOf, plain
from fewbit.layers.packed_matrix import PackedMatrix
from fewbit.layers.packed_weight import PackedWeight
from fewbit.layers.side import Side
from fewbit.layers.stage import InputStage


class QLinear(PackedMatrix):
    """A linear layer whose weight is stored packed; the result has the dtype of the input. Where
    its input keeps a few directions apart, it has a `side` for them, a packed matrix of its own.
    """

    def __init__(
        self,
        weight: QTensor,
        bias: Tensor | None,
        stage: InputStage | None,
        side: QTensor | None = None,
    ) -> None:
        super().__init__(weight, bias)
        _check_side(weight, stage, side)
        self.out_features, self.in_features = weight.shape
        self.register_module("side", None if side is None else Side(side))
        self.stage = stage
        self.model_dtype = torch.float32  # of the weight, as far as nothing stored says it

    side: Side | None

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
        if self.side is not None:
            self.side.unbind()
        super().unbind()

    def _ready(self, backend: Reference, weight: Weight) -> Bound:
        multiply: Any = backend.multiplier(weight, self.bias)
        if self.side is not None:
            multiply = backend.added(multiply, self._side(self.side))
        return Bound(backend, self._coder(backend), weight, multiply)

    def _side(self, side: Side) -> Multiplier:
        """Bound now, since this layer watches the tensors of its side as its own; or a module whose
        tensors are brought."""
        return side if self._is_fleeting() else side.bound().multiply

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
            if self.side is not None:
                multiply = Reference.added(backend, multiply, self.side)
            product: Tensor = multiply(code(x), given.dtype, epilogue)
        return product.view(*given.shape[:-1], self.out_features)

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
        if self.side is not None and self.stage.principal is not None:
            weight = self.stage.principal.joined(weight, self.side.packed_weight.dequantize())
        if self.stage.transform is None:
            return weight
        identity = torch.eye(self.in_features, device=weight.device)
        return (self.stage.transform(identity) @ weight.T).T

    @property
    def weight_bytes(self) -> int:
        """Bytes of what the product is made with: the packed weight, and its side."""
        return self.packed_weight.nbytes + (0 if self.side is None else self.side.nbytes())

    def nbytes(self) -> int:
        """Bytes this layer keeps, its input stage aside."""
        return self.weight_bytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def hidden_bytes(self) -> int:
        return super().hidden_bytes + (0 if self.side is None else self.side.hidden_bytes)

    def config(self) -> dict[str, Any]:
        """All that is needed, beside the stored tensors, to build this layer again."""
        return {
            "weight": str(self.spec),
            "shape": [self.out_features, self.in_features],
            "bias": self.bias is not None,
            **({} if self.side is None else {"side": str(self.side.spec)}),
            **({} if self.stage is None else {"input": self.stage.config()}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], stage: InputStage | None) -> QLinear:
        """An empty layer of that description; sharing a stage is the caller's business."""
        rows, columns = config["shape"]
        weight = QTensor.empty(rows, columns, Spec.parse(config["weight"]))
        side = None
        if "side" in config and stage is not None and stage.principal is not None:
            side = QTensor.empty(rows, stage.principal.rank, Spec.parse(config["side"]))
        return cls(weight, torch.empty(rows) if config["bias"] else None, stage, side)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.spec}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.model_dtype = fn(torch.empty(0, dtype=self.model_dtype, device="cpu")).dtype
        return self


def _check_side(weight: QTensor, stage: InputStage | None, side: QTensor | None) -> None:
    """A layer has a side for the directions of its input, and none without them."""
    principal = None if stage is None else stage.principal
    wanted = None if principal is None else (weight.shape[0], principal.rank)
    found = None if side is None else side.shape
    if wanted != found:
        raise BadArgument(f"an input with directions needs a side of {wanted}, got {found}")
    if side is not None and not has_integers(side.spec):
        raise BadArgument(f"a side is stored as integers, not as {side.spec}")


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
