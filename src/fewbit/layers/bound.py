"""A quantized layer made ready to run: backend, layout, scales and input coder, chosen once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fewbit.kernels.precision import without_autocast, without_function_modes
from fewbit.kernels.reference import Coder, Reference
from fewbit.kernels.values import NOTHING, AdaLNInput, Epilogue, Weight, refuse_other_width

READ = ("codes", "scales", "bias")  # what was made ready, by their names in a layer


class Bound:
    """One callable for a layer whose weight lies where it lay when this was made."""

    def __init__(
        self,
        backend: Reference,
        code: Coder,
        weight: Weight,
        parameters: Mapping[str, Tensor | None],
    ) -> None:
        self.backend, self.code, self.weight = backend, code, weight
        self.shape = weight.packed.shape
        self.multiply = backend.multiplier(weight, parameters["bias"])
        self.made_of = [(name, *_place(parameters[name])) for name in READ]
        self.kind = weight.packed.packed.device.type

    def is_current(self, parameters: Mapping[str, Tensor | None]) -> bool:
        """Whether nobody has moved or written what this was made of."""
        for name, pointer, version in self.made_of:
            tensor = parameters[name]
            if (None if tensor is None else tensor.data_ptr()) != pointer:
                return False
            if tensor is not None and not tensor.is_inference() and tensor._version != version:
                return False
        return True

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


def _place(tensor: Tensor | None) -> tuple[int | None, int | None]:
    if tensor is None:
        return None, None
    return tensor.data_ptr(), None if tensor.is_inference() else tensor._version
