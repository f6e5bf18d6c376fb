"""What does each format lose of a normal or Laplace operand?   python studies/operands.py"""

import torch
from demo import write_table
from torch import Tensor

from fewbit.engine.decibel import sqnr
from fewbit.formats import Spec
from fewbit.rounding.clipping import least_error
from fewbit.rounding.grid import Grid, round_to_nearest

ROWS, COLUMNS = 128, 1152
FORMATS = ("e2m1", "e1m2", "book4", "book3", "book2")
SPANS = ("row/fp32", "g64/factor", "g32/factor", "g16/factor", "g64/fp32", "g32/fp32", "g16/fp32")


def decibel(operand: Tensor, spec: Spec) -> float:
    grid = Grid(spec, operand, least_error)
    return float(sqnr(operand, round_to_nearest(operand, grid).dequantize()))


def main() -> None:
    torch.manual_seed(0)
    operands = {
        "normal": torch.randn(ROWS, COLUMNS),
        "Laplace": torch.distributions.Laplace(0.0, 1.0).sample((ROWS, COLUMNS)),
    }
    rows = [
        (f"{fmt}/{span}", *(decibel(x, Spec.parse(f"{fmt}/{span}")) for x in operands.values()))
        for fmt in FORMATS
        for span in SPANS
    ]
    write_table(
        "operands",
        "Formats on one operand",
        f"{ROWS} rows of {COLUMNS} random numbers, rounded to nearest, each scale the best of "
        "those tried. A scale of a group is a byte where it is a factor, and else four of them.",
        ("spec", *(f"{name}, dB" for name in operands)),
        rows,
        plotted=tuple(f"{name}, dB" for name in operands),
    )


if __name__ == "__main__":
    main()
