"""What does more time for calibration buy?   python studies/best_effort.py

Presets of best as a user gets them, and what `fast` and `max` make of one. A killed study
goes on from `studies/cache`.
"""

from pathlib import Path

from cases import key_of, once
from demo import bits, fidelity, pipeline, write_table

import fewbit

PRESETS = ("balanced+fast", "balanced", "balanced+max", "four", "tiny")
DEMOS = ("shapes", "scenes")


def measured(demo: str, preset: str) -> list[float]:
    def measure(_: Path) -> list[float]:
        pipe = pipeline(demo)
        fewbit.quantize(pipe, "best", preset=preset, progress=False)
        return [fidelity(pipe, demo).sqnr, bits(pipe.transformer, modulation=True)]

    found: list[float] = once("effort", key_of("best", demo, {"preset": preset}), measure)
    return found


write_table(
    "best_effort",
    "Time for calibration, presets of best",
    "Each preset draws the calibration rows that it asks for: `fast` 64, `max` 1,024, others 512. "
    "SQNR of the noise prediction over 128 rows of held-out trajectories; bits of a quantized "
    "weight, the modulation included.",
    ("case", "trajectory SQNR, dB", "bits per weight"),
    [(f"{demo}, {preset}", *measured(demo, preset)) for demo in DEMOS for preset in PRESETS],
    plotted=("trajectory SQNR, dB",),
)
