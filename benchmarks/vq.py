"""VQ4DiT at the size of DiT-XL/2: seconds and memory of k-means, and of one block's calibration.

python benchmarks/vq.py               one block's layers and 20 steps, the rest by arithmetic
python benchmarks/vq.py --blocks 28   k-means of all blocks
python benchmarks/vq.py --steps 300   one block's calibration in full
"""

from __future__ import annotations

import argparse
import json
import os
import resource
from typing import Any

import torch
from environment import write_result
from models import dit_rows, dit_xl_2
from watch import Watch

import fewbit
from fewbit.formats import Spec
from fewbit.methods import vq4dit
from fewbit.rounding.vector import vector_quantize

BLOCKS, ROWS = 28, 128
SHAPES = {"qkv": (3456, 1152), "proj": (1152, 1152), "fc1": (4608, 1152), "fc2": (1152, 4608),
          "adaLN": (6912, 1152)}  # fmt: skip
SPEC = Spec.parse("vq256x4/row/fp16")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time VQ4DiT at the size of DiT-XL/2.")
    parser.add_argument("--blocks", type=int, default=1, help="whose layers are clustered")
    parser.add_argument("--steps", type=int, default=20, help="of one block's calibration")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    figures = {
        "load_before": load,
        "k_means": k_means(arguments.blocks),
        "calibration": calibration(arguments.steps),
        "size": size(),
        "load_after": os.getloadavg()[0],
    }
    print(json.dumps(figures, indent=1))
    print(write_result("vq", figures))


def k_means(blocks: int) -> dict[str, Any]:
    """Of each kind of layer, weights normal and counted by moments of their inputs."""
    random = torch.Generator().manual_seed(0)
    watches = {name: Watch() for name in SHAPES}
    for _ in range(blocks):
        for name, (out, columns) in SHAPES.items():
            weight = torch.randn(out, columns, generator=random)
            moments = torch.rand(columns, generator=random) + 0.1
            with watches[name].running():
                vector_quantize(weight, SPEC, 0, moments)
    share = BLOCKS / blocks / 60
    return {
        "blocks_timed": blocks,
        "processor_seconds": {name: round(w.processor / blocks, 2) for name, w in watches.items()},
        "minutes_for_28_blocks": round(share * sum(w.clock for w in watches.values()), 2),
        "processor_minutes": round(share * sum(w.processor for w in watches.values()), 2),
    }


def calibration(steps: int) -> dict[str, Any]:
    """Of a model of one block: with that many steps, and what the default would take by that."""
    default = vq4dit.Settings().steps
    training, whole = Watch(), Watch()
    vq4dit.train = training.running()(vq4dit.train)  # type: ignore[attr-defined]
    model, data = dit_xl_2(1), list(dit_rows(ROWS))
    with whole.running():
        fewbit.quantize(model, "vq4dit", calibration=data, steps=steps, progress=False)

    def block(every: float, trained: float) -> float:
        return (every - trained + trained / steps * default) / 60

    clock = block(whole.clock, training.clock)
    processor = block(whole.processor, training.processor)
    return {
        "rows": ROWS,
        "steps": steps,
        "default_steps": default,
        "seconds_for_a_step": round(training.clock / steps, 2),
        "processor_seconds_for_a_step": round(training.processor / steps, 2),
        "minutes_for_a_block": round(clock, 1),
        "processor_minutes_for_a_block": round(processor, 1),
        "hours_for_28_blocks": round(BLOCKS * clock / 60, 1),
        "processor_hours_for_28_blocks": round(BLOCKS * processor / 60, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def size() -> dict[str, float]:
    """Of all block weights, as the paper counts them, in MiB; published: 2553.35 and 162.08."""
    weights = BLOCKS * sum(out * columns for out, columns in SHAPES.values())
    packed = BLOCKS * sum(SPEC.bytes(*shape) for shape in SHAPES.values())
    biases = 4 * BLOCKS * sum(out for out, _ in SHAPES.values())
    return {
        "float32_mib": round((4 * weights + biases) / 2**20, 2),
        "packed_mib": round((packed + biases) / 2**20, 2),
        "ratio": round((4 * weights + biases) / (packed + biases), 2),
        "bits_per_weight": round(8 * packed / weights, 4),
    }


if __name__ == "__main__":
    main()
