"""Does a text-to-image model still draw what it is told?   python studies/fp4dit_scenes.py"""

from typing import Any

from cases import faithful, measured
from demo import write_table

CASES = {
    "w4a8": {"bits": "w4a8"},
    "w4a8, integers": {"bits": "w4a8", "preset": "integer"},
    "w4a8, nearest rounding": {"bits": "w4a8", "steps": 0},
    "w4a6": {},
    "w4a6, integers": {"preset": "integer"},
    "w4a6, formats by role": {"formats": "role"},
    "w4a6, nearest rounding": {"steps": 0},
}
STEPS = 300  # of 2500

exact = 100 * faithful(None)
rows: list[tuple[Any, ...]] = [("full precision", "", "", exact)]
for name, settings in CASES.items():
    given = {"steps": STEPS, **settings}
    found = measured("fp4dit", "scenes", **given)
    rows.append((name, found.sqnr, found.psnr, 100 * faithful("fp4dit", **given)))
write_table(
    "fp4dit_scenes",
    "FP4DiT on captions",
    f"The scenes demo, 512 calibration rows, {STEPS} steps for each block (the default is 2500). "
    "SQNR over 128 rows of held-out trajectories; PSNR of 16 pictures; the share of what 240 new "
    "captions say (sizes, colours, shapes, relation) that is read back from their pictures.",
    ("setting", "trajectory SQNR, dB", "picture PSNR, dB", "faithfulness, %"),
    rows,
    plotted=("trajectory SQNR, dB", "picture PSNR, dB"),
)
