"""How much data does HQ-DiT need?   python studies/calibration_size.py"""

from demo import RESULTS, calibration, fidelity, quantized, write_table
from plot import lines

SIZES = (2, 8, 32, 128, 256)

rows = []
for size in SIZES:
    calibration(size)  # sampled beforehand: its time is not the solver's
    pipe, report = quantized("hq-dit", samples=size)
    published = quantized("hq-dit", samples=size, preset="published")[0]
    seconds = sum(report.seconds.values())
    rows.append((size, fidelity(pipe).sqnr, fidelity(published).sqnr, seconds))
    print(*rows[-1], flush=True)
write_table(
    "calibration_size",
    "Calibration-set size",
    "The shapes demo, w4a4, 128 held-out rows. A row is one image at one timestep in one half of "
    "the guidance; it holds 64 tokens. Seconds are those of one thread of a busy machine.",
    ("rows", "trajectory SQNR, dB", "as published, dB", "seconds"),
    rows,
)
lines(
    RESULTS / "calibration_size.svg",
    "Calibration-set size",
    "rows",
    "trajectory SQNR, dB",
    {"hq-dit": [row[:2] for row in rows], "as published": [(row[0], row[2]) for row in rows]},
    log=True,
)
