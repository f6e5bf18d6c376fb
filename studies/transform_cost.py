"""What does the online rotation cost, and bring?   python studies/transform_cost.py

Time is that of the plain torch definitions on this machine; faster kernels change both sides.
"""

import statistics
import time
from collections.abc import Callable

import torch
from demo import RESULTS, fidelity, quantized, write_table
from plot import lines

from fewbit.transforms.hadamard import Hadamard, HadamardTransform

BLOCKS = (12, 24, 48, 96, 192)
TOKENS, WIDTHS = 2048, (192, 768)


def milliseconds(call: Callable[[], object], repeats: int = 9) -> float:
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def rotation_time(block: int) -> float:
    """Of the inputs of qkv, fc1 (both of width 192) and fc2 (768) of one block."""
    total = 0.0
    for width, times in zip(WIDTHS, (2, 1), strict=True):
        x = torch.randn(TOKENS, width)
        rotate = HadamardTransform(Hadamard(width, block, seed=0))
        total += times * milliseconds(lambda x=x, rotate=rotate: rotate(x))  # type: ignore[misc]
    return total


def product_time() -> float:
    """Of the same block's linears in float32."""
    shapes = ((192, 576), (192, 192), (192, 768), (768, 192))
    pairs = [(torch.randn(TOKENS, i), torch.randn(o, i)) for i, o in shapes]
    return sum(milliseconds(lambda x=x, w=w: x @ w.T) for x, w in pairs)  # type: ignore[misc]


without = fidelity(quantized("hq-dit", preset="published", hadamard=False)[0]).sqnr
products = product_time()
rows: list[tuple[object, ...]] = [("none", without, 0.0, 0.0)]
for block in BLOCKS:
    took = rotation_time(block)
    db = fidelity(quantized("hq-dit", preset="published", block=block)[0]).sqnr
    rows.append((block, db, took, 100 * took / products))
    print(*rows[-1], flush=True)
write_table(
    "transform_cost",
    "Cost of the online rotation against its gain",
    f"The shapes demo, w4a4, 128 calibration rows, 128 held-out rows. Milliseconds of one DiT "
    f"block's rotations for {TOKENS} tokens on {torch.get_num_threads()} thread(s) of a busy "
    "machine, and their share of its matrix products in float32.",
    ("rotation by blocks of", "trajectory SQNR, dB", "ms", "% of the products"),
    rows,
)
lines(
    RESULTS / "transform_cost.svg",
    "Rotation by blocks",
    "block size",
    "trajectory SQNR, dB",
    {
        "rotated": [(float(str(row[0])), float(str(row[1]))) for row in rows[1:]],
        "not rotated": [(block, without) for block in BLOCKS],
    },
    log=True,
)
