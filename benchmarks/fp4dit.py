"""FP4DiT at the size of DiT-XL/2: seconds of a training step and memory, for one block.

python benchmarks/fp4dit.py               20 steps, and what 500 would take by that
python benchmarks/fp4dit.py --steps 500   all of them
"""

from __future__ import annotations

import argparse
import json
import os
import resource

from environment import write_result
from models import dit_rows, dit_xl_2
from watch import Watch

import fewbit
from fewbit.methods import fp4dit

BLOCKS, ROWS, WANTED = 28, 128, 500


def main() -> None:
    parser = argparse.ArgumentParser(description="Time FP4DiT at the size of DiT-XL/2.")
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    load = os.getloadavg()[0]
    training, whole = Watch(), Watch()
    fp4dit.train = training.running()(fp4dit.train)  # type: ignore[attr-defined]
    model, data = dit_xl_2(1), list(dit_rows(ROWS))
    with whole.running():
        fewbit.quantize(model, "fp4dit", calibration=data, steps=steps, progress=False)
    beside = whole.clock - training.clock
    block = beside + training.clock / steps * WANTED
    figures = {
        "rows": ROWS,
        "steps": steps,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "seconds_for_a_step": round(training.clock / steps, 2),
        "processor_seconds_for_a_step": round(training.processor / steps, 2),
        "seconds_beside_the_steps": round(beside, 1),
        f"seconds_for_a_block_of_{WANTED}_steps": round(block),
        "hours_for_28_blocks": round(BLOCKS * block / 3600, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    print(json.dumps(figures, indent=1))
    print(write_result("fp4dit", figures))


if __name__ == "__main__":
    main()
