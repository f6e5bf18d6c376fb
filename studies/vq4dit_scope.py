"""Block by block or the whole model at once?   python studies/vq4dit_scope.py

A step of the whole model costs as much as one step of every block, so equal steps are equal work.
"""

from cases import measured
from demo import write_table

CASES = {
    "block by block": {},
    "exact inputs": {"propagate": False},
    "whole model": {"scope": "model"},
    "block by block, then tuned": {"tuning": 200},
}

rows = []
for name, settings in CASES.items():
    found = measured("vq4dit", **settings)
    rows.append((name, found.sqnr, found.psnr, round(found.seconds)))
write_table(
    "vq4dit_scope",
    "What VQ4DiT is trained on, 2 bits",
    "The shapes demo, 512 calibration rows, 300 steps for each block or of the whole model (which "
    "is the published form and runs the full-precision model beside it), 200 steps of tuning on "
    "the model's output. SQNR over 128 rows of held-out trajectories; PSNR of 16 pictures. Seconds "
    "on two cores that were shared with other work.",
    ("setting", "trajectory SQNR, dB", "picture PSNR, dB", "seconds"),
    rows,
    plotted=("trajectory SQNR, dB", "picture PSNR, dB"),
)
