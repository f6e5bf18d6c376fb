"""A weight packed with few bits: GPTQ, and then every column once more, given all others."""

from __future__ import annotations

from torch import Tensor

from fewbit.formats import QTensor, Spec
from fewbit.rounding.clipping import Fit
from fewbit.rounding.descent import descend
from fewbit.rounding.gptq import gptq
from fewbit.rounding.grid import Grid


def compensated(
    weight: Tensor, moments: Tensor, spec: Spec, fit: Fit, *, damping: float, sweeps: int
) -> QTensor:
    """Scales are fit by errors that weigh as much as the inputs that their columns meet."""
    grid = Grid(spec, weight, fit, moments.diagonal())
    values = gptq(weight, moments, grid, damping=damping).values
    values = descend(weight, moments, values, grid, damping=damping, sweeps=sweeps)
    return QTensor.quantize(values, spec, grid.scales())
