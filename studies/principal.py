"""What do directions kept in int8 bring, at four bits?   python studies/principal.py"""

from demo import bits, calibration, fidelity, pipeline, write_table

import fewbit

RANKS = (0, 8, 16, 32)
HEADER = ("directions", "shapes, dB", "bits a weight", "scenes, dB", "bits a weight")


def measured(demo: str, rank: int) -> tuple[float, float]:
    """Decibel of held-out trajectories, and bits."""
    pipe, rows = pipeline(demo), calibration(demo=demo)
    fewbit.quantize(pipe, "hq-dit", calibration=rows, progress=False, directions=rank)
    return fidelity(pipe, demo).sqnr, bits(pipe.transformer)


rows = []
for rank in RANKS:
    rows.append((str(rank), *measured("shapes", rank), *measured("scenes", rank)))
    print(*rows[-1], flush=True)
write_table(
    "principal",
    "Directions kept in int8, w4a4",
    "hq-dit with its defaults and one scale for each token. SQNR of the noise prediction over 128 "
    "rows of held-out trajectories. Bits count codes, scales, sides and directions of all layers "
    "but the modulation.",
    HEADER,
    rows,
    plotted=("shapes, dB", "scenes, dB"),
)
