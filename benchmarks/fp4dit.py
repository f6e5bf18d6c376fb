"""FP4DiT: seconds of a block of the demo, and of a block of DiT-XL/2's size with its memory.

python benchmarks/fp4dit.py               20 steps of the large one, and what 500 would take by that
python benchmarks/fp4dit.py --steps 500   all of them
"""

from __future__ import annotations

import argparse
import json
import os
import resource
from typing import Any

from environment import write_result
from models import dit_rows, dit_xl_2
from watch import Watch

import fewbit
from fewbit.calibration import sample
from fewbit.demo import load
from fewbit.methods import fp4dit

BLOCKS, ROWS, WANTED = 28, 512, 500
DEMO = {"steps": 25, "guidance": 2.5}  # of its sampling


def main() -> None:
    parser = argparse.ArgumentParser(description="Time FP4DiT's training of a block.")
    parser.add_argument("--steps", type=int, default=20, help="of the large block")
    arguments = parser.parse_args()
    busy = os.getloadavg()[0]
    figures = {
        "load_before": busy,
        "demo": demo(),
        "dit_xl_2": large(arguments.steps),
        "load_after": os.getloadavg()[0],
    }
    print(json.dumps(figures, indent=1))
    print(write_result("fp4dit", figures))


def demo() -> dict[str, Any]:
    """One of its blocks, as the recipe is by default."""
    pipe = load("shapes")
    pipe.set_progress_bar_config(disable=True)
    rows = sample(pipe, samples=ROWS, **DEMO)
    model, watch = pipe.transformer, Watch()
    model.transformer_blocks = model.transformer_blocks[:1]
    with watch.running():
        fewbit.quantize(model, "fp4dit", calibration=rows, progress=False)
    return {
        "rows": ROWS,
        "steps": fp4dit.Settings().steps,
        "seconds_for_a_block": round(watch.clock, 1),
        "processor_seconds": round(watch.processor, 1),
    }


def large(steps: int) -> dict[str, Any]:
    """A model of one block; its peak, and that with the weights of all blocks."""
    training, whole = Watch(), Watch()
    fp4dit.train = training.running()(fp4dit.train)  # type: ignore[attr-defined]
    model, data = dit_xl_2(1), list(dit_rows(ROWS))
    others = (BLOCKS - 1) * sum(p.nbytes for p in model.transformer_blocks[0].parameters())
    with whole.running():
        fewbit.quantize(model, "fp4dit", calibration=data, steps=steps, progress=False)
    beside = whole.clock - training.clock
    block = beside + training.clock / steps * WANTED
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "rows": ROWS,
        "steps": steps,
        "seconds_for_a_step": round(training.clock / steps, 2),
        "processor_seconds_for_a_step": round(training.processor / steps, 2),
        "seconds_beside_the_steps": round(beside, 1),
        f"seconds_for_a_block_of_{WANTED}_steps": round(block),
        "hours_for_28_blocks": round(BLOCKS * block / 3600, 1),
        "peak_gib": round(peak, 2),
        "peak_gib_with_all_blocks": round(peak + others / 2**30, 2),
    }


if __name__ == "__main__":
    main()
