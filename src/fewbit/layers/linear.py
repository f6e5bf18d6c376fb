"""QLinear, what stands where nn.Linear stood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fewbit.formats import QTensor, Scales, Spec
from fewbit.kernels.choose import backend_for, backend_on
from fewbit.kernels.precision import is_traced, without_autocast, without_recording
from fewbit.kernels.reference import Coder, Reference
from fewbit.kernels.values import (
    NOTHING,
    AdaLNInput,
    Epilogue,
    Weight,
    has_integers,
    refuse_other_width,
)
from fewbit.layers.bound import Bound, plain
from fewbit.layers.offload import is_offloaded
from fewbit.layers.packed_weight import PackedMetadata, PackedWeight
from fewbit.layers.snapshot import Snapshot
from fewbit.layers.stage import InputStage

UNBOUND = {"_bound": None, "_made_of": None}
_BINDING = RLock()  # codes and layout change places, which no other thread may meet half done
STORED = ("codes", "scales", "outer_scales", "zeros", "choices", "codebook")


class QLinear(nn.Module):
    """A linear layer whose weight is stored packed; the result has the dtype of the input.

    What is stored are parameters without a gradient, because libraries that move weights between
    devices, memory and disk move parameters. The first forward binds the layer: it chooses the
    backend, and lays the codes out as that wants them. Where the codes can be had back from the
    layout, it is what the parameter `codes` then holds, flat, so that a weight is in memory once
    and the form of `codes` alone says which it is. `fast`, which `fewbit.prepare` sets, also allows
    layouts that take more memory than the codes and are kept beside them.
    """

    def __init__(self, weight: QTensor, bias: Tensor | None, stage: InputStage | None) -> None:
        super().__init__()
        self.spec = weight.spec
        self.out_features, self.in_features = weight.shape
        tensors = weight.tensors()
        self.register_parameter("bias", _frozen(bias))  # first: diffusers reads a dtype off it
        for name in STORED:
            self.register_parameter(name, _frozen(tensors.get(name)))
        self.stage = stage
        self.model_dtype = torch.float32  # of the weight, as far as nothing stored says it
        self.fast = False
        self._bound: Bound | None = None
        self._made_of: Snapshot | None = None

    bias: nn.Parameter | None
    codes: Tensor
    scales: Tensor
    outer_scales: Tensor | None
    zeros: Tensor | None
    choices: Tensor | None
    codebook: Tensor | None

    @property
    def packed_weight(self) -> QTensor:
        """As it is stored, wherever its codes are now."""
        return self._weight(self._stored_codes())

    @property
    def weight(self) -> PackedWeight:
        """Shape, dtype and device for whoever asks a linear layer for them, without the numbers."""
        dtype = self.model_dtype if self.bias is None else self.bias.dtype
        return PackedWeight.of(self.out_features, self.in_features, dtype, self.scales.device)

    def _stored_codes(self) -> Tensor:
        if self._bound is None or self.codes.dim() == 2:
            return self.codes
        backend = self._bound.backend
        return backend.codes_in(self.codes.cpu(), self.spec).to(self.codes.device)

    def _weight(self, codes: Tensor) -> QTensor:
        scales = Scales(self.scales, self.outer_scales, self.zeros, self.choices, self.codebook)
        return QTensor(codes, scales, self.spec, self.in_features)

    def forward(self, x: Tensor | AdaLNInput, epilogue: Epilogue = NOTHING) -> Tensor:
        if isinstance(x, Tensor) and torch.is_grad_enabled() and self._is_derived(x):
            derived: Tensor = _Derived.apply(x, self.bias, self)
            return derived
        if is_traced():
            if torch.jit.is_tracing():  # which records what is there, and not how it is made
                with without_recording():
                    self.bound()
            return self._traced(x, epilogue)
        return self.bound()(x, epilogue)

    def _is_derived(self, x: Tensor) -> bool:
        return x.requires_grad or (self.bias is not None and self.bias.requires_grad)

    def bound(self) -> Bound:
        """The layer made ready to run, again if its tensors were moved or written since."""
        bound, made_of = self._bound, self._made_of
        if bound is not None and made_of is not None and made_of.holds():
            return bound
        with _BINDING:
            bound, made_of = self._bound, self._made_of
            if bound is not None and made_of is not None and made_of.holds():
                return bound  # another thread was faster
            return self._bind()

    def _bind(self) -> Bound:
        self.unbind()
        backend = backend_on(self.scales.device)
        with torch.inference_mode(False), torch.no_grad():
            if self._is_fleeting():
                return self._ready(backend, Weight(self.packed_weight))
            layout = backend.layout(self.packed_weight, self.activation, self.fast)
            packed = self.packed_weight
            replaced = layout is not None and backend.replaces_codes(self.spec)
            if layout is not None and replaced:
                packed = self._weight(layout.new_empty(self.out_features, 0))
            weight = Weight(packed, layout)
            bound = self._ready(backend, replace(weight, kept_scales=_scales_of(weight)))
            if layout is not None and replaced:
                self._put_codes(layout)
            self._bound, self._made_of = bound, Snapshot(self)
        return bound

    def _is_fleeting(self) -> bool:
        """Whether its tensors are brought, or computed, for each forward anew."""
        return is_parametrized(self) or any(map(is_offloaded, self.modules()))

    def _ready(self, backend: Reference, weight: Weight) -> Bound:
        return Bound(backend, self._coder(backend), weight, self.bias)

    def _coder(self, backend: Reference) -> Coder:
        if self.stage is None:
            return partial(plain, backend)
        return self.stage.shared(backend, self)

    def unbind(self) -> None:
        """The exact inverse: codes in the order of files again, and no layout."""
        with _BINDING:
            if self.codes.dim() != 2:
                with torch.inference_mode(False):
                    self._put_codes(self._stored_codes())
            if self._bound is not None and self.stage is not None:
                self.stage.unshare(self)
            self._bound = self._made_of = None

    def _put_codes(self, codes: Tensor) -> None:
        """Into the same parameter, which others may hold, unless inference mode made it."""
        if self.codes.is_inference():
            self._parameters["codes"] = _frozen(codes)
        else:
            self.codes.data = codes

    def _traced(self, x: Tensor | AdaLNInput, epilogue: Epilogue) -> Tensor:
        """As bound, for the compiler, which makes ready what it likes."""
        given = x.x if isinstance(x, AdaLNInput) else x
        refuse_other_width(given, self.in_features)
        if not given.numel():
            return given[..., :1].expand(*given.shape[:-1], self.out_features)
        with without_autocast(given):
            backend = backend_for(given) if self._bound is None else self._bound.backend
            code = partial(plain, backend) if self.stage is None else self.stage.coder(backend)
            product = backend.linear(code(x), self._resting(), self.bias, given.dtype, epilogue)
        return product.view(*given.shape[:-1], self.out_features)

    def _resting(self) -> Weight:
        if self._bound is None:
            return Weight(self.packed_weight)
        if self.codes.dim() == 2:
            return Weight(self._weight(self.codes), self._bound.weight.layout)
        return Weight(self._weight(self.codes.new_empty(self.out_features, 0)), self.codes)

    @property
    def activation(self) -> Spec | None:
        """How the codes are rounded that it multiplies, if it is handed any."""
        activation = None if self.stage is None else self.stage.activation
        return None if activation is None else activation.code_spec

    def effective_weight(self) -> Tensor:
        """The matrix this layer multiplies its untransformed, unrounded input with, in float32; a
        codebook is rounded further where it meets bfloat16."""
        weight = self.packed_weight.dequantize()
        transform = None if self.stage is None else self.stage.transform
        if transform is None:
            return weight
        identity = torch.eye(self.in_features, device=weight.device)
        return (transform(identity) @ weight.T).T

    def nbytes(self) -> int:
        """Bytes this layer keeps, its input stage aside."""
        return self.packed_weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def hidden_bytes(self) -> int:
        """Bytes in memory that are no parameter's."""
        layout = None if self._bound is None else self._bound.weight.layout
        return 0 if layout is None or self.codes.dim() != 2 else layout.nbytes

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
        """`.half()` and `.to(dtype)` move what is stored but never change its dtype."""
        self.unbind()
        stored = {
            name: tensor.data for name in STORED if (tensor := getattr(self, name)) is not None
        }
        super()._apply(fn, recurse)
        self.model_dtype = fn(torch.empty(0, dtype=self.model_dtype, device="cpu")).dtype
        for name, before in stored.items():
            after = getattr(self, name)
            if after.dtype != before.dtype:
                after.data = before.to(after.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Whoever offloads weights takes them from here and puts them in the places they had."""
        self.unbind()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination._metadata[prefix[:-1]] = PackedMetadata(destination._metadata[prefix[:-1]])

    def __getstate__(self) -> dict[str, Any]:
        """As stored: a layout belongs to the process, the machine and the backend that made it.
        Scales as bytes, for torch cannot pickle every dtype they have."""
        stored = {"codes": self._stored_codes(), "scales": self.scales.view(torch.uint8)}
        frozen = {name: _frozen(tensor) for name, tensor in stored.items()}
        parameters = {**self._parameters, **frozen}
        return {**super().__getstate__(), "_parameters": parameters, **UNBOUND}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._parameters["scales"] = _frozen(self.scales.view(self.spec.scale.dtype))

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *arguments: Any
    ) -> None:
        self.unbind()
        if f"{prefix}weight" in state_dict:
            errors = arguments[-1]
            errors.append(
                f"{prefix}weight is a full-precision weight and cannot be loaded into a quantized "
                "layer; load it into the model before fewbit.quantize"
            )
        super()._load_from_state_dict(state_dict, prefix, dict(local_metadata), *arguments)


def _frozen(tensor: Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else nn.Parameter(tensor.detach(), requires_grad=False)


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


def _scales_of(weight: Weight) -> Tensor | None:
    return weight.integer_scales() if has_integers(weight.spec) else None
