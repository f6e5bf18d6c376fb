"""HQ-DiT on a DiT-XL/2-sized random model: seconds per block, peak memory, quality of the ETA.

python benchmarks/hq_dit.py              all 28 blocks, writes benchmarks/results/hq_dit.json
python benchmarks/hq_dit.py --blocks 3   a model of 3 blocks, and what 28 would take by that
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
from fewbit.engine.workdir import KEY

BLOCKS, ROWS, ETA_AFTER = 28, 128, 3


def main() -> None:
    parser = argparse.ArgumentParser(description="Time HQ-DiT on a DiT-XL/2-sized random model.")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="how many of the 28 blocks")
    parser.add_argument("--bits", default="w4a4")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    model = dit_xl_2(arguments.blocks)
    with tempfile.TemporaryDirectory() as folder:
        fewbit.quantize(
            model,
            "hq-dit",
            bits=arguments.bits,
            calibration=list(dit_rows(ROWS)),
            workdir=folder,
        )
        seconds = _seconds_per_block(Path(folder))
    figures = {
        "blocks": arguments.blocks,
        "rows": ROWS,
        "bits": arguments.bits,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "seconds_per_block": [round(s, 2) for s in seconds],
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        **_whole(seconds),
    }
    print(json.dumps(figures, indent=1))
    print(write_result("hq_dit", figures))


def _seconds_per_block(folder: Path) -> list[float]:
    """By when each block was written."""
    files = [folder / KEY, *sorted(folder.glob("block-*.safetensors"))]
    return [after - before for before, after in pairwise(f.stat().st_mtime for f in files)]


def _whole(seconds: list[float]) -> dict[str, float]:
    """Minutes for all blocks, measured or by the blocks there are; the ETA that was shown."""
    mean = sum(seconds) / len(seconds)
    figures = {"minutes_for_28_blocks": round(mean * BLOCKS / 60, 2)}
    rest = seconds[ETA_AFTER:]
    if rest:
        said = sum(seconds[:ETA_AFTER]) / ETA_AFTER * len(rest)
        figures["eta_after_block_3_over_true"] = round(said / sum(rest), 3)
    return figures


if __name__ == "__main__":
    main()
