"""What does each number of bits cost, and are the pictures still right?

python studies/vq4dit_bits.py
"""

from pathlib import Path

from cases import PLAIN, judged, measured
from demo import RESULTS, write_table

CASES = {
    "uniform int2": ("rtn", {"bits": "w2", "adaln": "same"}),
    "plain k-means, 2 bits": ("vq4dit", PLAIN),
    "vq4dit, 1.5 bits": ("vq4dit", {"bits": "w1.5"}),
    "vq4dit, 2 bits": ("vq4dit", {}),
    "vq4dit, 2 bits, tuned": ("vq4dit", {"tuning": 200}),
    "vq4dit, 3 bits": ("vq4dit", {"bits": "w3"}),
    "plain e2m1, 4 bits": ("rtn", {"bits": "w4a16", "adaln": "same"}),
    "vq4dit, 4 bits": ("vq4dit", {"bits": "w4"}),
}
SHOWN = ("uniform int2", "plain k-means, 2 bits", "vq4dit, 2 bits")


def grid(name: str) -> Path:
    words = "".join(letter if letter.isalnum() else "-" for letter in name)
    return RESULTS / f"vq4dit_bits_{words.replace('--', '-')}.png"


rows = []
for name, (recipe, settings) in CASES.items():
    found = measured(recipe, **settings)
    share = judged(recipe, grid(name) if name in SHOWN else None, **settings)
    rows.append((name, found.bits, found.sqnr, found.psnr, f"{share:.1%}"))
shown = "\n".join(f"{name}:\n\n![{name}]({grid(name).name})\n" for name in SHOWN)
write_table(
    "vq4dit_bits",
    "VQ4DiT at several bits",
    "The shapes demo, 512 calibration rows, 300 steps for each block, all layers of the blocks "
    "(also the modulation). SQNR over 128 rows of held-out trajectories; PSNR of 16 pictures; the "
    "share of 240 guided pictures that the demo's classifier recognises (full precision: 97 %)."
    f"\n\n{shown}",
    ("setting", "bits per weight", "trajectory SQNR, dB", "picture PSNR, dB", "recognised"),
    rows,
    plotted=("trajectory SQNR, dB", "picture PSNR, dB"),
)
