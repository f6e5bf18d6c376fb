"""The side of a layer: what its weight makes of the directions that its input keeps in int8."""

from __future__ import annotations

import torch
from torch import Tensor

from fewbit.formats import FORMATS, Spec
from fewbit.formats.scale import BF16
from fewbit.kernels.choose import backend_on
from fewbit.kernels.values import NOTHING, Epilogue, QuantizedRows
from fewbit.layers.packed_matrix import PackedMatrix

SIDE = Spec(FORMATS["int8"], "row", BF16)  # how a method stores it


class Side(PackedMatrix):
    """A packed matrix [out, directions]. Whoever brings its tensors for each forward can do so
    where it is called as a module."""

    def forward(
        self, x: QuantizedRows | Tensor, dtype: torch.dtype, epilogue: Epilogue = NOTHING
    ) -> Tensor:
        """Its part of the layer's product, [rows, out]."""
        if not self._is_traced():
            return self.bound().multiply(x, dtype, epilogue)
        return backend_on(self.scales.device).linear(x, self._resting(), None, dtype, epilogue)
