"""QLinear, what stands where nn.Linear stood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.formats import QTensor, Scales, Spec
from fewbit.input_stage import InputStage
from fewbit.kernels.choose import backend_for, modulated
from fewbit.kernels.coded import (
    NOTHING,
    After,
    Coded,
    Modulated,
    Weight,
    has_integers,
    refuse_other_width,
)
from fewbit.kernels.modes import unasked
from fewbit.kernels.precision import as_written
from fewbit.kernels.reference import Reference

STORED = ("codes", "scales", "outer_scales", "zeros", "choices", "codebook")


class QLinear(nn.Module):
    """A linear layer whose weight rests packed; the result has the dtype of the input.

    A backend may want the codes in an order of its own. That `layout` is made when it is first
    used; where the codes can be had back from it, it takes their place, so that a weight is in
    memory once. `fast`, which `fewbit.prepare` sets, also
    allows layouts that take more memory than the codes.
    """

    def __init__(self, weight: QTensor, bias: Tensor | None, stage: InputStage | None) -> None:
        super().__init__()
        self.spec = weight.spec
        self.out_features, self.in_features = weight.shape
        tensors = weight.tensors()
        for name in STORED:
            self.register_buffer(name, tensors.get(name))
        self.register_buffer("layout", None, persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.stage = stage
        self.fast = False
        self._maker: Reference | None = None  # of a layout that stands in for the codes
        self._made: tuple[object, ...] = ()  # by and of what `_laid` was made
        self._laid: Weight | None = None

    codes: Tensor
    scales: Tensor
    outer_scales: Tensor | None
    zeros: Tensor | None
    choices: Tensor | None
    codebook: Tensor | None
    layout: Tensor | None

    @property
    def packed_weight(self) -> QTensor:
        """As it is stored, wherever its codes are now."""
        if self._maker is None or self.layout is None:
            return self._weight(self.codes)
        return self._weight(self._maker.codes_in(self.layout, self.spec))

    def _weight(self, codes: Tensor) -> QTensor:
        scales = Scales(self.scales, self.outer_scales, self.zeros, self.choices, self.codebook)
        return QTensor(codes, scales, self.spec, self.in_features)

    def forward(self, x: Tensor | Modulated, after: After = NOTHING) -> Tensor:
        given = x.x if isinstance(x, Modulated) else x
        refuse_other_width(given, self.in_features)
        if not given.numel():
            return given[..., :1].expand(*given.shape[:-1], self.out_features)
        with unasked(), as_written(given):
            staged = _modulated(x) if self.stage is None else self.stage(x, reader=self)
            rows = staged if isinstance(staged, Coded) else staged.reshape(-1, self.in_features)
            backend = backend_for(given)
            product = backend.linear(rows, self._laid_out(backend), self.bias, given.dtype, after)
            return product.view(*given.shape[:-1], self.out_features)

    def _laid_out(self, backend: Reference) -> Weight:
        """The weight as the backend wants it, made again if the codes or the backend changed."""
        if torch.compiler.is_compiling():
            if not self._made or self._made[0] != backend.name:
                return Weight(self.packed_weight)
            return Weight(self._weight(self.codes), self.layout)
        if self._laid is None or self._made != self._made_of(backend):
            self._lay_out(backend)
            weight = Weight(self._weight(self.codes), self.layout)
            self._laid = replace(weight, kept_scales=_scales_of(weight))
        return self._laid

    def _lay_out(self, backend: Reference) -> None:
        self.as_stored()
        with torch.inference_mode(False):
            self.layout = backend.layout(self.packed_weight, self.activation, self.fast)
            if self.layout is not None and backend.replaces_codes(self.spec):
                self._maker, self.codes = backend, self.codes.new_empty(self.out_features, 0)
        self._made = self._made_of(backend)

    def _made_of(self, backend: Reference) -> tuple[object, ...]:
        given = self.codes, self.scales
        return backend.name, self.fast, *((t.data_ptr(), _version(t)) for t in given)

    @property
    def activation(self) -> Spec | None:
        """How the codes are rounded that it multiplies, if it is handed any."""
        activation = None if self.stage is None else self.stage.activation
        return None if activation is None else activation.handed_on

    def as_stored(self) -> None:
        """Codes in their own place again, and no layout."""
        if self._maker is not None and self.codes.numel() == 0:
            self.codes = self.packed_weight.packed
        self.layout, self._maker, self._made, self._laid = None, None, (), None

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
        self.as_stored()
        stored = {name: self._buffers[name] for name in STORED}
        super()._apply(fn, recurse)
        for name, before in stored.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}codes"] = self.packed_weight.packed

    def __getstate__(self) -> dict[str, Any]:
        """As stored: a layout belongs to the process, the machine and the backend that made it.
        Scales as bytes, for torch cannot pickle every dtype they have."""
        stored = {"codes": self.packed_weight.packed, "scales": self.scales.view(torch.uint8)}
        buffers = {**self._buffers, **stored, "layout": None}
        bound = {"_maker": None, "_made": (), "_laid": None}
        return {**super().__getstate__(), "_buffers": buffers, **bound}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.scales = self.scales.view(self.spec.scale.dtype)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.as_stored()
        super()._load_from_state_dict(*arguments)


def _modulated(x: Tensor | Modulated) -> Tensor:
    """As a model in bfloat16 hands it to its layers, whose products are quick; float16 would lose
    large numbers."""
    rows = modulated(x)
    halves = isinstance(x, Modulated) and x.x.dtype == torch.bfloat16
    return rows.bfloat16() if halves else rows


def _scales_of(weight: Weight) -> Tensor | None:
    return weight.integer_scales() if has_integers(weight.spec) else None


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
