"""What a structure that is found costs: seconds, and dB beside one that was written by hand.

python benchmarks/discovery.py       writes benchmarks/results/discovery.json

Seconds are those of a model as deep as one of 12 billion parameters: width is tiny, for what counts
is the number of layers. The demos are quantized by hq-dit with the lines of their families, and
with the spec that one forward shows; the SQNR is that of the noise prediction over 128 rows of
held-out trajectories.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from environment import write_result

import fewbit
from fewbit.calibration import CalibrationSet, sample
from fewbit.demo import load
from fewbit.judge.trajectory import trajectory_fidelity
from fewbit.models import ModelSpec
from fewbit.models.discover import discover
from fewbit.models.guess import guess

MANNERS = {"shapes": {"steps": 25, "guidance": 2.5}, "scenes": {"steps": 20, "guidance": 4.5}}
ROWS, CALIBRATION_SEED, HELD_OUT_SEED = 128, 0, 1000

DEPTH = {"num_layers": 19, "num_single_layers": 38}
WIDTH = {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 8)}
SIZES = {"in_channels": 4, "joint_attention_dim": 24, "pooled_projection_dim": 8}
TEXT, IMAGE = 8, 16  # tokens


def main() -> None:
    figures = {
        "load_before": os.getloadavg()[0],
        **seconds(),
        "hq_dit_db": {name: decibels(name) for name in MANNERS},
        "load_after": os.getloadavg()[0],
    }
    print(json.dumps(figures, indent=1))
    print(write_result("discovery", figures))


def decibels(demo: str) -> dict[str, float]:
    data, held_out = (
        sample(load(demo), samples=ROWS, seed=seed, **MANNERS[demo])
        for seed in (CALIBRATION_SEED, HELD_OUT_SEED)
    )
    found = discover(load(demo).transformer, next(data.batches(1)))
    return {
        "family": _decibels(demo, None, data, held_out),
        "found": _decibels(demo, found, data, held_out),
    }


def _decibels(
    demo: str, spec: ModelSpec | None, data: CalibrationSet, held_out: CalibrationSet
) -> float:
    pipe = load(demo)
    fewbit.quantize(pipe, "hq-dit", calibration=data, spec=spec, progress=False)
    exact = load(demo).transformer
    return round(trajectory_fidelity(exact, pipe.transformer, held_out).sqnr, 2)


def seconds() -> dict[str, Any]:
    model = FluxTransformer2DModel(**DEPTH, **WIDTH, **SIZES).eval()
    call = {
        "hidden_states": torch.randn(1, IMAGE, 4),
        "encoder_hidden_states": torch.randn(1, TEXT, 24),
        "pooled_projections": torch.randn(1, 8),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(IMAGE, 3),
        "txt_ids": torch.zeros(TEXT, 3),
    }
    took = {"one forward": _timed(discover, model, call), "names": _timed(guess, model)}
    linears = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    return {"linears": linears, **DEPTH, "seconds": took}


def _timed(find, *given) -> float:
    began = time.perf_counter()
    find(*given)
    return round(time.perf_counter() - began, 2)


if __name__ == "__main__":
    main()
