"""How many candidates should a vector have?   python studies/vq4dit_candidates.py"""

from cases import PLAIN, measured
from demo import write_table

CASES = {
    "uniform int2": ("rtn", {"bits": "w2", "adaln": "same"}),
    "plain k-means": ("vq4dit", PLAIN),
    "weighted, row scales": ("vq4dit", {"steps": 0}),
    **{f"n = {count}": ("vq4dit", {"candidates": count}) for count in (1, 2, 3, 4)},
}

rows = []
for name, (recipe, settings) in CASES.items():
    found = measured(recipe, **settings)
    rows.append((name, found.sqnr, found.psnr, found.bits, round(found.seconds)))
write_table(
    "vq4dit_candidates",
    "Candidates of VQ4DiT, 2 bits",
    "The shapes demo, 512 calibration rows, 300 steps for each block. SQNR of the noise prediction "
    "over 128 rows of held-out trajectories; mean PSNR of 16 same-seed pictures against full "
    "precision, which scatters by more than 1 dB. Seconds on two cores that were shared with other "
    "work. n = 1 trains codebooks, scales and biases and no assignments.",
    ("setting", "trajectory SQNR, dB", "picture PSNR, dB", "bits per weight", "seconds"),
    rows,
    plotted=("trajectory SQNR, dB", "picture PSNR, dB"),
)
