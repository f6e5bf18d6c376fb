"""A quantized layer made ready to run: backend, layout, scales and input coder, chosen once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewbit.kernels.precision import without_autocast, without_function_modes
from fewbit.kernels.reference import Reference
from fewbit.kernels.values import (
    NOTHING,
    AdaLNInput,
    Epilogue,
    QuantizedRows,
    SplitRows,
    Weight,
    refuse_other_width,
)

RowsOf = Callable[[Tensor | AdaLNInput], QuantizedRows | Tensor | SplitRows]


class Bound:
    """One callable for a layer whose weight lies where it lay when this was made."""

    def __init__(
        self,
        backend: Reference,
        code: RowsOf,
        weight: Weight,
        multiply: Callable[[Any, torch.dtype, Epilogue], Tensor],
        beside: Weight | None = None,
    ) -> None:
        self.backend, self.code, self.weight, self.multiply = backend, code, weight, multiply
        self.beside = beside  # what multiplies the directions that the input keeps apart
        self.shape = weight.packed.shape
        self.kind = weight.packed.packed.device.type

    def __call__(self, x: Tensor | AdaLNInput, epilogue: Epilogue = NOTHING) -> Tensor:
        given = x.x if isinstance(x, AdaLNInput) else x
        rows, columns = self.shape
        if given.shape[-1:] != (columns,):
            refuse_other_width(given, columns)
        if not given.numel():
            return given[..., :1].expand(*given.shape[:-1], rows)
        if torch.is_autocast_enabled(self.kind) or torch._C._len_torch_function_stack():
            with without_function_modes(), without_autocast(given):
                product = self.multiply(self.code(x), given.dtype, epilogue)
        else:
            product = self.multiply(self.code(x), given.dtype, epilogue)
        return product.view(*given.shape[:-1], rows)


def plain(backend: Reference, x: Tensor | AdaLNInput) -> Tensor:
    """Rows as a model in bfloat16 hands them to its layers, whose products are quick; float16 would
    lose large numbers."""
    rows = backend.rows(x)
    halves = isinstance(x, AdaLNInput) and x.x.dtype == torch.bfloat16
    return rows.bfloat16() if halves else rows
