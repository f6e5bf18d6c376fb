"""What should a side branch of int8 carry, beside four bits?   python studies/side_branch.py

Directions of the input leave nothing of themselves to the four bits, and all readers of an input
share them. A branch of low rank takes a part of the weight away instead, and reads the whole input:
the four bits of the input then err into what is left of the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from statistics import fmean
from typing import Any

import torch
from demo import calibration, reference, write_table
from torch import Tensor

from fewbit.formats import FORMATS, Spec
from fewbit.formats.scale import SCALES
from fewbit.models.spec import Role
from fewbit.models.structure import describe
from fewbit.transforms.hadamard import Hadamard

RANKS = (8, 16, 32)
WEIGHT = Spec(FORMATS["book4"], 32, SCALES["fp16"])
INPUT = Spec(FORMATS["book4"], 32, SCALES["factor"])
INT8 = Spec(FORMATS["int8"])
EVERY = 4  # so many rows of an input, one is looked at
RIDGE = 1e-4
Arm = Callable[[Tensor, Tensor, int], Tensor]


def four_bits(x: Tensor, weight: Tensor, rank: int = 0) -> Tensor:
    """Both rotated and rounded, and their product."""
    turn = Hadamard.for_width(x.shape[1], 0, block="auto")
    return INPUT.round(turn.input(x)) @ WEIGHT.round(turn.weight(weight)).T


def directions(x: Tensor, weight: Tensor, rank: int) -> Tensor:
    strongest = torch.linalg.eigh(x.T @ x).eigenvectors[:, -rank:]
    side = INT8.round(x @ strongest)
    return four_bits(x - side @ strongest.T, weight) + side @ INT8.round(weight @ strongest).T


def low_rank(x: Tensor, weight: Tensor, rank: int) -> Tensor:
    return _branch(x, weight, torch.eye(x.shape[1]), rank)


def weighted_low_rank(x: Tensor, weight: Tensor, rank: int) -> Tensor:
    """What counts of the weight is what the inputs make of it."""
    moments = x.T @ x / len(x) + RIDGE * x.square().mean() * torch.eye(x.shape[1])
    return _branch(x, weight, torch.linalg.cholesky(moments), rank)


def _branch(x: Tensor, weight: Tensor, measure: Tensor, rank: int) -> Tensor:
    """W·L is cut to its rank; the part is (U S)(Vᵀ L⁻¹), and both factors are int8."""
    u, s, vt = torch.linalg.svd(weight @ measure, full_matrices=False)
    down = INT8.round(torch.linalg.solve(measure.T, vt[:rank].T).T.contiguous())
    up = INT8.round(u[:, :rank] * s[:rank])
    side = INT8.round(INT8.round(x) @ down.T)
    return four_bits(x, weight - up @ down) + side @ up.T


def inputs(demo: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each group of linears that read one tensor: some rows of it, and all their weights."""
    model, rows = reference(demo).transformer, calibration(demo=demo)
    structure = describe(model)
    blocks = range(len(structure.blocks))
    roles = {layer.name: layer.role for block in blocks for layer in structure.quantizable(block)}
    groups = [group for block in blocks for group in structure.shared_inputs(block)]
    groups = [group for group in groups if roles[group[0]] is not Role.ADALN]
    seen: dict[str, list[Tensor]] = {group[0]: [] for group in groups}

    def keep(name: str) -> Any:
        return lambda _, given: seen[name].append(given[0].flatten(0, -2)[::EVERY])

    with ExitStack() as hooks, torch.no_grad():
        for name in seen:
            hook = model.get_submodule(name).register_forward_pre_hook(keep(name))
            hooks.callback(hook.remove)
        for part in rows.parts(16):
            model(**rows.take(part))
    for group in groups:
        weights = [model.get_submodule(name).weight.detach() for name in group]
        yield torch.cat(seen[group[0]]), torch.cat(weights)


def decibel(arm: Arm, x: Tensor, weight: Tensor, rank: int) -> float:
    exact = x @ weight.T
    return float(
        10 * (exact.square().sum() / (exact - arm(x, weight, rank)).square().sum()).log10()
    )


ARMS: dict[str, Arm] = {
    "directions": directions,
    "low rank": low_rank,
    "low rank of what counts": weighted_low_rank,
}
HEADER = ("int8 beside", *(f"{demo}, dB" for demo in ("shapes", "scenes")))
given = {demo: list(inputs(demo)) for demo in ("shapes", "scenes")}


def row(name: str, arm: Arm, rank: int) -> tuple[str, float, float]:
    shapes, scenes = (
        fmean(decibel(arm, x, weight, rank) for x, weight in pairs) for pairs in given.values()
    )
    print(name, shapes, scenes, flush=True)
    return name, shapes, scenes


rows = [row("nothing", four_bits, 0)]
rows += [row(f"{name}, {rank}", arm, rank) for rank in RANKS for name, arm in ARMS.items()]
write_table(
    "side_branch",
    "What a side branch of int8 carries, w4a4",
    "Each input of each block alone, on its calibration rows: weights and inputs rotated and "
    "rounded plainly to book4 in groups of 32, and beside them int8. The mean over inputs of the "
    "SQNR of the products. Here the side of the directions is made of the exact weight; a "
    "rank of a branch costs 8 bits for each row and each column.",
    HEADER,
    rows,
    plotted=HEADER[1:],
)
