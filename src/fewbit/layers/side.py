"""The side of a layer: what its weight makes of the directions that its input keeps in int8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewbit.formats import FORMATS, Spec
from fewbit.kernels.choose import backend_on
from fewbit.kernels.reference import Multiplier
from fewbit.kernels.values import NOTHING, Epilogue, QuantizedRows, SplitRows
from fewbit.layers.packed_matrix import PackedMatrix

SIDE = Spec(FORMATS["int8"])  # how a method stores it


class Side(PackedMatrix):
    """A packed matrix [out, directions]. It is called as a module, so that whoever brings its
    tensors for a forward can do so."""

    def forward(self, codes: QuantizedRows) -> Tensor:
        """Its part of the layer's product, float32 [rows, out]."""
        if not self._is_traced():
            return self.bound().multiply(codes, torch.float32, NOTHING)
        backend = backend_on(self.scales.device)
        return backend.linear(codes, self._resting(), None, torch.float32)


class WithSide:
    """The product of a layer whose input comes in two parts; the side is added before the rest of
    the epilogue."""

    def __init__(self, multiply: Multiplier, side: Side) -> None:
        self.multiply, self.side = multiply, side

    def __call__(self, x: SplitRows, dtype: torch.dtype, epilogue: Epilogue) -> Tensor:
        part: Any = self.side(x.side)
        return self.multiply(x.main, dtype, epilogue.plus(part))
