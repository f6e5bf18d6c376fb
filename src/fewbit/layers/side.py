"""The side of a layer: what its packed weight makes of the directions that its input keeps in int8.

Nothing of it is stored, for the weight and the directions say it all. Both are whole numbers times
few scales, so its sums are as good as exact in double precision, and every machine finds the same.
"""

from __future__ import annotations

from fewbit.formats import FORMATS, QTensor, Spec
from fewbit.formats.scale import BF16
from fewbit.transforms.principal import Principal

SIDE = Spec(FORMATS["int8"], "row", BF16)


def side_of(weight: QTensor, principal: Principal) -> QTensor:
    """W·Vᵀ [out, directions] in int8, one scale for each row."""
    return QTensor.quantize(principal(weight.dequantize().double()).float(), SIDE)
