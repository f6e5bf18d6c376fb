"""How near do other systems come to a float model, and fewbit at as many bytes?

.venv-peers/bin/python benchmarks/peers_quality.py shapes   writes peers_quality-shapes.json
.venv-peers/bin/python benchmarks/peers_quality.py scenes   the same of the other demo

`make peers` sets up the environment. All arms have the same weights, the same 128 calibration rows
if they use any, and the same 128 rows of held-out trajectories. A killed run goes on from what is
in the file, as long as fewbit's commit is the same.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peers
from environment import RESULTS, commit, write_result
from torch import nn

import fewbit
from fewbit.judge.trajectory import trajectory_fidelity

sys.path.append(str(Path(__file__).parents[1] / "studies"))
from demo import bits, calibration, held_out, pipeline, reference

BATCH = 8
Make = Callable[[nn.Module, peers.Layers, peers.Rows], nn.Module]
CONVROT, W4A8 = "TensorCoreConvRotW4A4Layout", "AsymW4A8Int8Layout"
SVD: dict[str, Any] = {"use_svd": True, "use_hadamard": True}
PEERS: dict[str, dict[str, tuple[str, Make]]] = {
    "w4a4": {
        "OrbitQuant": ("orbitquant", partial(peers.orbitquant, weights=4, inputs=4)),
        "OrbitQuant, GPTQ": (
            "orbitquant",
            partial(peers.orbitquant, weights=4, inputs=4, gptq=True),
        ),
        "ConvRot W4A4": ("comfy-kitchen", partial(peers.comfy, layout=CONVROT)),
        "NVFP4": ("comfy-kitchen", partial(peers.comfy, layout=peers.NVFP4)),
    },
    "w4a8": {
        "W4A8": ("comfy-kitchen", partial(peers.comfy, layout=W4A8)),
        "OrbitQuant, GPTQ": (
            "orbitquant",
            partial(peers.orbitquant, weights=4, inputs=8, gptq=True),
        ),
        "int4": ("sdnq", partial(peers.sdnq, weights="int4", use_hadamard=True)),
        "int4, SVD": ("sdnq", partial(peers.sdnq, weights="int4", **SVD)),
        "uint4, SVD": ("sdnq", partial(peers.sdnq, weights="uint4", **SVD)),
        "INT4_SYM, scale estimation, GPTQ": ("nncf", peers.nncf),
        "INT4_SYM": ("nncf", partial(peers.nncf, calibrated=False)),
    },
    "w3a8": {
        "OrbitQuant, GPTQ": (
            "orbitquant",
            partial(peers.orbitquant, weights=3, inputs=8, gptq=True),
        ),
        "uint3": ("sdnq", partial(peers.sdnq, weights="uint3", use_hadamard=True)),
    },
    "w2a8": {
        "OrbitQuant, GPTQ": (
            "orbitquant",
            partial(peers.orbitquant, weights=2, inputs=8, gptq=True),
        ),
        "uint2": ("sdnq", partial(peers.sdnq, weights="uint2", use_hadamard=True)),
    },
}
OURS = {"w4a4": "four", "w4a8": "balanced", "w3a8": "small", "w2a8": "tiny"}


def main(demo: str) -> None:
    name = f"peers_quality-{demo}"
    found = _kept(name)
    for label, measure in _arms(demo):
        if label not in found:
            found[label] = measure()
            print(label, found[label], flush=True)
            write_result(name, {"demo": demo, "arms": found})


def _arms(demo: str) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    for width, arms in PEERS.items():
        for setting, (package, make) in arms.items():
            label = f"{width}: {package} {version(package)}, {setting}"
            yield label, partial(_of_peer, demo, make)
        yield f"{width}: fewbit, best {OURS[width]}", partial(_of_best, demo, OURS[width])


def _kept(name: str) -> dict[str, Any]:
    file = RESULTS / f"{name}.json"
    content = json.loads(file.read_text()) if file.exists() else None
    same = content is not None and content["environment"]["commit"] == commit()
    return content["figures"]["arms"] if content is not None and same else {}


def _of_peer(demo: str, make: Make) -> dict[str, float]:
    exact, rows = reference(demo).transformer, calibration(demo=demo)
    layers = peers.Layers.of(exact)
    weights = sum(exact.get_submodule(name).weight.numel() for name in layers.all)
    calls = [rows.take(part) for part in rows.parts(BATCH)]
    model = make(copy.deepcopy(exact).eval(), layers, calls)
    return _figures(demo, model, 8 * peers.weight_bytes(model, layers) / weights)


def _of_best(demo: str, preset: str) -> dict[str, float]:
    pipe = pipeline(demo)
    fewbit.quantize(pipe, "best", preset=preset, calibration=calibration(demo=demo), progress=False)
    return _figures(demo, pipe.transformer, bits(pipe.transformer, modulation=True))


def _figures(demo: str, model: nn.Module, bits_per_weight: float) -> dict[str, float]:
    near = trajectory_fidelity(reference(demo).transformer, model, held_out(demo)).sqnr
    return {"trajectory_db": round(near, 2), "bits_per_weight": round(bits_per_weight, 2)}


if __name__ == "__main__":
    main(sys.argv[1])
