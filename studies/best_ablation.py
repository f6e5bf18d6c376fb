"""What does each ingredient of best bring?   python studies/best_ablation.py w4a8

Each is left out alone; also w4a4, w3a8 and nvfp4. A killed study goes on from `studies/cache`.
"""

import sys
from pathlib import Path
from typing import Any

from cases import key_of, once
from demo import fidelity, quantized, write_table

CASES: dict[str, dict[str, Any]] = {
    "best": {},
    "no transforms": {"transform": "none"},
    "no compensation": {"compensate": False},
    "no bias": {"bias": False},
    "timesteps weighed": {"emphasis": 1.0},
    "no clip": {"clip": False},
    "no descent": {"sweeps": 0},
    "adaLN int8": {"adaln": "int8"},
}
BUDGETS = {"w4a4": 4.7, "w4a8": 4.5, "w3a8": 3.5}  # what the uniform bits come to
OF_FEW_BITS: dict[str, dict[str, Any]] = {  # of inputs
    "no centre": {"centre": False},
    "no directions": {"directions": 0},
}


def measured(**settings: Any) -> list[float]:
    """Trajectory SQNR, and bits of a quantized weight."""

    def measure(_: Path) -> list[float]:
        pipe, report = quantized("best", **settings)
        weights = sum(one.bytes_before for one in report.layers)
        bits = sum(one.bits_per_weight * one.bytes_before for one in report.layers) / weights
        return [fidelity(pipe).sqnr, bits]

    found: list[float] = once("ablation", key_of("best", "shapes", settings), measure)
    return found


bits = sys.argv[1]
cases = {**CASES, **(OF_FEW_BITS if bits in ("w4a4", "nvfp4") else {})}
if bits in BUDGETS:
    cases["bits by layer"] = {"bits_per_weight": BUDGETS[bits]}
rows = [(name, *measured(bits=bits, **settings)) for name, settings in cases.items()]
write_table(
    f"best_ablation_{bits}",
    f"Ingredients of best, {bits}",
    "The shapes demo, 128 calibration rows, one ingredient left out or changed at a time. SQNR of "
    "the noise prediction over 128 rows of held-out trajectories; bits of a quantized weight, "
    "scales included.",
    ("setting", "trajectory SQNR, dB", "bits per weight"),
    rows,
    plotted=("trajectory SQNR, dB",),
)
