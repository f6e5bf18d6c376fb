"""Coordinate descent on a rounded weight: each column once more, given all others.

GPTQ decides on a column when it knows the errors of those before it. Afterwards the errors of all
are known, and the best values for column k of E = W - Q are those nearest to
Q_k + (E·H)_k / H_kk. No step makes tr(E·H·Eᵀ) larger (QuantEase; Behdin et al., 2023).
"""

from __future__ import annotations

from torch import Tensor

from fewbit.rounding.gptq import Rounder

BLOCK = 64  # columns whose corrections are spread by one matmul


def descend(
    weight: Tensor,
    hessian: Tensor,
    values: Tensor,
    rounder: Rounder,
    *,
    damping: float = 0.01,
    sweeps: int = 1,
) -> Tensor:
    """Values that `rounder`, which has fixed its scales, can give; no worse than `values`."""
    hessian = hessian.to(values)
    diagonal = hessian.diagonal()
    hessian = hessian + (damping * diagonal.mean()).expand_as(diagonal).diag()
    columns = values.T.clone()  # [in, out]: a column is contiguous
    product = hessian @ (weight.T - columns)  # (E·H)ᵀ
    for _ in range(sweeps):
        for start in range(0, len(columns), BLOCK):
            _visit(slice(start, start + BLOCK), columns, product, hessian, rounder)
    return columns.T.contiguous()


def _visit(
    block: slice, columns: Tensor, product: Tensor, hessian: Tensor, rounder: Rounder
) -> None:
    """Round the columns of one block anew; the product follows."""
    inside, here = hessian[block, block], product[block].clone()
    before = columns[block].clone()
    for k in range(len(before)):
        if inside[k, k] > 0:  # else nothing that was seen tells one value from another
            at = block.start + k
            columns[at] = rounder.round(columns[at] + here[k] / inside[k, k], at)
            here.addr_(inside[:, k], before[k] - columns[at])
    product.addmm_(hessian[:, block], before - columns[block])
