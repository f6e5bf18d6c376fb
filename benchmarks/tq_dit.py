"""TQ-DiT on a DiT-XL/2-sized random model: gradients, seconds per block, peak memory.

python benchmarks/tq_dit.py              all 28 blocks, writes benchmarks/results/tq_dit.json
python benchmarks/tq_dit.py --blocks 2   a model of 2 blocks, and what 28 would take by that
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
from itertools import pairwise
from pathlib import Path

from environment import write_result
from models import dit_rows, dit_xl_2

import fewbit
from fewbit.engine.workdir import KEY, SURVEY

BLOCKS, ROWS = 28, 64


def main() -> None:
    parser = argparse.ArgumentParser(description="Time TQ-DiT on a DiT-XL/2-sized random model.")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="how many of the 28 blocks")
    parser.add_argument("--bits", default="w8a8")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    model = dit_xl_2(arguments.blocks)
    with tempfile.TemporaryDirectory() as folder:
        fewbit.quantize(
            model, "tq-dit", bits=arguments.bits, calibration=list(dit_rows(ROWS)), workdir=folder
        )
        gradients, *blocks = _seconds(Path(folder))
    mean = sum(blocks) / len(blocks)
    whole = (gradients / arguments.blocks + mean) * BLOCKS / 60
    figures = {
        "blocks": arguments.blocks,
        "rows": ROWS,
        "bits": arguments.bits,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "seconds_of_gradients": round(gradients, 2),
        "seconds_per_block": [round(s, 2) for s in blocks],
        "cpu_seconds": round(sum(os.times()[:2]), 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "minutes_for_28_blocks": round(whole, 2),
    }
    print(json.dumps(figures, indent=1))
    print(write_result("tq_dit", figures))


def _seconds(folder: Path) -> list[float]:
    """Of the gradients of all blocks, then of each block, by when its file was written."""
    blocks = sorted(folder.glob("block-*.safetensors"))
    files = [folder / KEY, folder / SURVEY, *blocks]
    return [after - before for before, after in pairwise(f.stat().st_mtime for f in files)]


if __name__ == "__main__":
    main()
