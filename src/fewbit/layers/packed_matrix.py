"""A matrix that is stored packed, and laid out as a backend wants it while it is bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from threading import RLock
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fewbit.formats import QTensor, Scales, Spec
from fewbit.kernels.choose import backend_on
from fewbit.kernels.precision import is_traced, without_recording
from fewbit.kernels.reference import Reference
from fewbit.kernels.values import Weight, has_integers
from fewbit.layers.bound import Bound, RowsOf, plain
from fewbit.layers.offload import is_offloaded
from fewbit.layers.packed_weight import PackedMetadata
from fewbit.layers.snapshot import Snapshot

UNBOUND = {"_bound": None, "_made_of": None}
_BINDING = RLock()  # codes and layout change places, which no other thread may meet half done
STORED = ("codes", "scales", "outer_scales", "zeros", "choices", "codebook")


class PackedMatrix(nn.Module):
    """What is stored are parameters without a gradient, because libraries that move weights between
    devices, memory and disk move parameters. The first forward binds the matrix: it chooses the
    backend, and lays the codes out as that wants them. Where the codes can be had back from the
    layout, it is what the parameter `codes` then holds, flat, so that a weight is in memory once
    and the form of `codes` alone says which it is. `fast`, which `fewbit.prepare` sets, allows or
    forbids layouts that take more memory than the codes and are kept beside them.
    """

    def __init__(self, weight: QTensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.spec = weight.spec
        self.rows, self.columns = weight.shape
        tensors = weight.tensors()
        self.register_parameter("bias", frozen(bias))  # first: diffusers reads a dtype off it
        for name in STORED:
            self.register_parameter(name, frozen(tensors.get(name)))
        self.fast: bool | None = None  # as the backend thinks best
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
    def activation(self) -> Spec | None:
        """How the codes are rounded that it multiplies, if it is handed any."""
        return None

    def nbytes(self) -> int:
        return self.packed_weight.nbytes

    @property
    def hidden_bytes(self) -> int:
        """Bytes in memory that are no parameter's."""
        layout = None if self._bound is None else self._bound.weight.layout
        return 0 if layout is None or self.codes.dim() != 2 else layout.nbytes

    def bound(self) -> Bound:
        """The matrix made ready to run, again if its tensors were moved or written since."""
        bound, made_of = self._bound, self._made_of
        if bound is not None and made_of is not None and made_of.holds():
            return bound
        with _BINDING:
            bound, made_of = self._bound, self._made_of
            if bound is not None and made_of is not None and made_of.holds():
                return bound  # another thread was faster
            return self._bind()

    def unbind(self) -> None:
        """The exact inverse: codes in the order of files again, and no layout."""
        with _BINDING:
            if self.codes.dim() != 2:
                with torch.inference_mode(False):
                    self._put_codes(self._stored_codes())
            self._bound = self._made_of = None

    def _bind(self) -> Bound:
        self.unbind()
        backend = backend_on(self.scales.device)
        with torch.inference_mode(False), torch.no_grad():
            if self._is_fleeting():
                return self._ready(backend, Weight(self.packed_weight))
            layout = backend.layout(self.packed_weight, self.activation, self.fast)
            packed = self.packed_weight
            replaced = layout is not None and backend.replaces_codes(self.spec, self.activation)
            if layout is not None and replaced:
                packed = self._without_codes()
            weight = Weight(packed, layout)
            bound = self._ready(backend, replace(weight, kept_scales=_scales_of(weight)))
            if layout is not None and replaced:
                self._put_codes(layout)
            self._bound, self._made_of = bound, Snapshot(self)
        return bound

    def _ready(self, backend: Reference, weight: Weight) -> Bound:
        multiply = backend.multiplier(weight, self.bias)
        return Bound(backend, self._coder(backend), weight, multiply)

    def _coder(self, backend: Reference) -> RowsOf:
        return partial(plain, backend)

    def _is_fleeting(self) -> bool:
        """Whether its tensors are brought, or computed, for each forward anew."""
        return is_parametrized(self) or any(map(is_offloaded, self.modules()))

    def _is_traced(self) -> bool:
        """Whether a call must stay in sight of what traces it."""
        if not is_traced():
            return False
        if torch.jit.is_tracing():  # records what is there, not how it is made
            with without_recording():
                self.bound()
        return True

    def _stored_codes(self) -> Tensor:
        if self._bound is None or self.codes.dim() == 2:
            return self.codes
        return self._bound.backend.codes_in(self.codes, self._without_codes())

    def _weight(self, codes: Tensor) -> QTensor:
        scales = Scales(self.scales, self.outer_scales, self.zeros, self.choices, self.codebook)
        return QTensor(codes, scales, self.spec, self.columns)

    def _without_codes(self) -> QTensor:
        return self._weight(self.codes.new_empty(self.rows, 0))

    def _put_codes(self, codes: Tensor) -> None:
        """Into the same parameter, which others may hold, unless inference mode made it."""
        if self.codes.is_inference():
            self._parameters["codes"] = frozen(codes)
        else:
            self.codes.data = codes

    def _resting(self) -> Weight:
        """The weight as it is now, for the compiler, which makes ready what it likes."""
        if self._bound is None:
            return Weight(self.packed_weight)
        if self.codes.dim() == 2:
            return Weight(self._weight(self.codes), self._bound.weight.layout)
        return Weight(self._without_codes(), self.codes)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`.half()` and `.to(dtype)` move what is stored but never change its dtype."""
        self.unbind()
        stored = {
            name: tensor.data for name in STORED if (tensor := getattr(self, name)) is not None
        }
        super()._apply(fn, recurse)
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
        kept = {name: frozen(tensor) for name, tensor in stored.items()}
        parameters = {**self._parameters, **kept}
        return {**super().__getstate__(), "_parameters": parameters, **UNBOUND}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._parameters["scales"] = frozen(self.scales.view(self.spec.scale.dtype))

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


def frozen(tensor: Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else nn.Parameter(tensor.detach(), requires_grad=False)


def _scales_of(weight: Weight) -> Tensor | None:
    return weight.integer_scales() if has_integers(weight.spec) else None
