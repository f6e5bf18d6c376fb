"""How near do the presets of best come?   python studies/best.py shapes   (or scenes)

Beside them stands what hq-dit makes of the same bits. A killed study goes on from `studies/cache`.
"""

import sys
from pathlib import Path
from typing import Any

from cases import key_of, once
from demo import (
    HELD_OUT_ROWS,
    HELD_OUT_SEED,
    MANNERS,
    bits,
    calibration,
    fidelity,
    pipeline,
    psnr,
    reference,
    write_table,
)

import fewbit
from fewbit.calibration import sample
from fewbit.judge.trajectory import trajectory_fidelity

DEMO = sys.argv[1]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "best balanced": ("best", {"preset": "balanced"}),
    "best small": ("best", {"preset": "small"}),
    "best fp4": ("best", {"preset": "fp4"}),
    "best four": ("best", {"preset": "four"}),
    "best tiny": ("best", {"preset": "tiny"}),
    "best exact": ("best", {"preset": "exact"}),
    "hq-dit w4a8": ("hq-dit", {"bits": "w4a8"}),
    "hq-dit w4a4": ("hq-dit", {"bits": "w4a4"}),
}
HEADER = ("recipe", "bits per weight", "trajectory, dB", "10 steps, dB", "pictures, dB")
FEWER_STEPS = {"steps": 10, "guidance": MANNERS[DEMO]["guidance"]}


def measured(recipe: str, settings: dict[str, Any]) -> list[float]:
    def measure(_: Path) -> list[float]:
        pipe = pipeline(DEMO)
        fewbit.quantize(
            pipe, recipe, calibration=calibration(demo=DEMO), progress=False, **settings
        )
        stored = bits(pipe.transformer, modulation=True)
        other = sample(reference(DEMO), samples=HELD_OUT_ROWS, seed=HELD_OUT_SEED, **FEWER_STEPS)
        elsewhere = trajectory_fidelity(reference(DEMO).transformer, pipe.transformer, other)
        pictures = [psnr(pipe)] if DEMO == "shapes" else []
        return [stored, fidelity(pipe, DEMO).sqnr, elsewhere.sqnr, *pictures]

    found: list[float] = once("best", key_of(recipe, DEMO, settings), measure)
    return found


rows = [(name, *measured(recipe, settings)) for name, (recipe, settings) in CASES.items()]
write_table(
    f"best_{DEMO}",
    f"The presets of best on {DEMO}",
    "128 calibration rows. SQNR of the noise prediction over 128 rows of held-out trajectories, of "
    "as many steps as the calibration and of 10; on shapes, PSNR of 16 pictures of the same seeds. "
    "Bits of a quantized weight with all that is stored for it, sides, directions and the "
    "modulation included.",
    HEADER if DEMO == "shapes" else HEADER[:-1],
    rows,
    plotted=("trajectory, dB", "10 steps, dB"),
)
