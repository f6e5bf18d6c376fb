"""Does best stand outliers?   python studies/outliers.py

Channels of the shapes demo are made louder by a factor, and the weights that read them quieter: the
model computes what it did, and the fidelity is that to the plain model. A killed study goes on from
`studies/cache`.
"""

from pathlib import Path
from typing import Any

from cases import key_of, once
from demo import calibration, fidelity, pipeline, write_table

import fewbit
from fewbit.demo import with_outliers

FACTORS = (1, 8, 100)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "best balanced": ("best", {"preset": "balanced"}),
    "best four": ("best", {"preset": "four"}),
    "hq-dit w4a8": ("hq-dit", {"bits": "w4a8"}),
}


def measured(recipe: str, settings: dict[str, Any], factor: int) -> float:
    """Decibel of held-out trajectories."""

    def measure(_: Path) -> float:
        pipe = pipeline()
        with_outliers(pipe.transformer, float(factor), channels=4, seed=0)
        fewbit.quantize(pipe, recipe, calibration=calibration(), progress=False, **settings)
        return fidelity(pipe).sqnr

    found: float = once("outliers", [key_of(recipe, "shapes", settings), factor], measure)
    return found


rows = [
    (name, *(measured(recipe, settings, factor) for factor in FACTORS))
    for name, (recipe, settings) in CASES.items()
]
HEADER = ("recipe", *(f"times {factor}, dB" for factor in FACTORS))
write_table(
    "outliers",
    "Outliers",
    "The shapes demo, four channels of each input made louder by a factor while the model computes "
    "the same; 128 calibration rows. SQNR of the noise prediction over 128 rows of held-out "
    "trajectories of the plain model.",
    HEADER,
    rows,
    plotted=HEADER[1:],
)
