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
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from environment import RESULTS, commit, write_result
from torch import Tensor, nn

import fewbit
from fewbit.bench.peers import comfy, openvino
from fewbit.bench.peers.graph import Call
from fewbit.bench.peers.layers import Layers
from fewbit.bench.peers.orbitquant import orbitquant
from fewbit.bench.peers.sdnq import SVD, sdnq
from fewbit.judge.trajectory import trajectory_fidelity

sys.path.append(str(Path(__file__).parents[1] / "studies"))
from demo import bits, calibration, held_out, pipeline, reference

BATCH = 8
Make = Callable[[nn.Module, Layers, Sequence[Call]], nn.Module]


def _without_data(make: Callable[..., nn.Module], **settings: Any) -> Make:
    return lambda model, layers, _: make(model, layers, **settings)


def _by_gptq(weights: int, inputs: int) -> Make:
    return lambda model, layers, calls: orbitquant(model, layers, weights, inputs, gptq=calls)


def _by_nncf(model: nn.Module, layers: Layers, calls: Sequence[Call]) -> nn.Module:
    """With all that it can do with data. OpenVINO, which runs it, rounds inputs to int8."""
    import nncf

    def rounded(graph: Any, arrays: openvino.Arrays) -> Any:
        data = nncf.Dataset(arrays)
        return openvino.in_int4(graph, layers.all, dataset=data, scale_estimation=True, gptq=True)

    return openvino.InOpenVino(model, calls, rounded, precision="f32")


def _by_nncf_without_data(model: nn.Module, layers: Layers, calls: Sequence[Call]) -> nn.Module:
    def rounded(graph: Any, _: openvino.Arrays) -> Any:
        return openvino.in_int4(graph, layers.all)

    return openvino.InOpenVino(model, calls, rounded, precision="f32")


PEERS: dict[str, dict[str, tuple[str, Make]]] = {
    "w4a4": {
        "OrbitQuant": ("orbitquant", _without_data(orbitquant, weights=4, inputs=4)),
        "OrbitQuant, GPTQ": ("orbitquant", _by_gptq(4, 4)),
        "ConvRot W4A4": ("comfy-kitchen", _without_data(comfy.comfy, layout=comfy.CONVROT)),
        "NVFP4": ("comfy-kitchen", _without_data(comfy.comfy, layout=comfy.NVFP4)),
    },
    "w4a8": {
        "W4A8": ("comfy-kitchen", _without_data(comfy.comfy, layout=comfy.W4A8)),
        "OrbitQuant, GPTQ": ("orbitquant", _by_gptq(4, 8)),
        "int4": ("sdnq", _without_data(sdnq, weights="int4", use_hadamard=True)),
        "int4, SVD": ("sdnq", _without_data(sdnq, weights="int4", **SVD)),
        "uint4, SVD": ("sdnq", _without_data(sdnq, weights="uint4", **SVD)),
        "INT4_SYM, scale estimation, GPTQ": ("nncf", _by_nncf),
        "INT4_SYM": ("nncf", _by_nncf_without_data),
    },
    "w3a8": {
        "OrbitQuant, GPTQ": ("orbitquant", _by_gptq(3, 8)),
        "uint3": ("sdnq", _without_data(sdnq, weights="uint3", use_hadamard=True)),
    },
    "w2a8": {
        "OrbitQuant, GPTQ": ("orbitquant", _by_gptq(2, 8)),
        "uint2": ("sdnq", _without_data(sdnq, weights="uint2", use_hadamard=True)),
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
    layers = Layers.of(exact)
    weights = sum(exact.get_submodule(name).weight.numel() for name in layers.all)
    calls = [rows.take(part) for part in rows.parts(BATCH)]
    model = make(copy.deepcopy(exact).eval(), layers, calls)
    return _figures(demo, model, 8 * _weight_bytes(model, layers) / weights)


def _of_best(demo: str, preset: str) -> dict[str, float]:
    pipe = pipeline(demo)
    fewbit.quantize(pipe, "best", preset=preset, calibration=calibration(demo=demo), progress=False)
    return _figures(demo, pipe.transformer, bits(pipe.transformer, modulation=True))


def _figures(demo: str, model: nn.Module, bits_per_weight: float) -> dict[str, float]:
    near = trajectory_fidelity(reference(demo).transformer, model, held_out(demo)).sqnr
    return {"trajectory_db": round(near, 2), "bits_per_weight": round(bits_per_weight, 2)}


def _weight_bytes(model: nn.Module, layers: Layers) -> int:
    """Of everything that these layers hold, but for their biases."""
    if isinstance(model, openvino.InOpenVino):
        return model.weight_bytes(layers.all)
    held = [model.get_submodule(name) for name in layers.all]
    return sum(
        part.nbytes
        for layer in held
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]
        if name.split(".")[-1] != "bias"
        for part in _parts(tensor)
    )


def _parts(tensor: Tensor) -> list[Tensor]:
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


if __name__ == "__main__":
    main(sys.argv[1])
