"""What stands for a packed weight where somebody expects a matrix: it says what it is, and no more.

A copy of state dicts that is not strict would leave the layers of the other model as they are,
random, without a word; so what a quantized layer puts into a state dict can tell.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Self

import torch
from torch import Tensor

from fewbit.errors import BadArgument

ASSIGNING = "assign_to_params_buffers"  # what torch asks the metadata of every layer it loads


class PackedWeight(Tensor):
    """A tensor with a shape, a dtype and a device, whose numbers nobody may touch."""

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @classmethod
    def of(cls, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Self:
        make: Any = Tensor._make_wrapper_subclass
        weight: Self = make(cls, (rows, columns), dtype=dtype, device=device)
        return weight

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if operation is torch.ops.aten.detach.default:  # what `.data` is
            return args[0]
        raise BadArgument(
            f"{operation} was given the weight of a quantized layer, which is stored packed; "
            "allowed: its shape, dtype and device, or fewbit.dequantize(model) beforehand"
        )

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PackedWeight({list(self.shape)}, {self.dtype}, {self.device})"


class PackedMetadata(dict[str, Any]):
    """The metadata of a quantized layer in a state dict; no other kind of layer may load it."""

    def get(self, key: str, default: Any = None) -> Any:
        if key == ASSIGNING:
            raise BadArgument(
                "the packed weight of a quantized layer cannot be loaded into a layer of full "
                "precision; allowed: fewbit.dequantize(model) on the source, or on a copy of it, "
                "beforehand"
            )
        return super().get(key, default)

    def __reduce__(self) -> tuple[Any, ...]:
        """In files it is a plain table, which needs nothing of fewbit to be read."""
        return OrderedDict, (list(self.items()),)
