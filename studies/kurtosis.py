"""How far from normal are activations, rotated and not?   python studies/kurtosis.py"""

from typing import Any

import torch
from demo import held_out, reference, write_table
from torch import Tensor

from fewbit.calibration import BlockStream
from fewbit.transforms.hadamard import Hadamard

LAYERS = {
    "attn1.to_q": "qkv",
    "attn1.to_out.0": "attention out",
    "ff.net.0.proj": "fc1",
    "ff.net.2": "fc2",
}
HEAD = 48


def shape(x: Tensor) -> tuple[float, float]:
    """Skewness and excess kurtosis of all values, each token by its own scale: that is what a
    token's one quantization scale sees."""
    x = x / x.square().mean(1, keepdim=True).sqrt()
    centred = x - x.mean()
    deviation = centred.square().mean().sqrt()
    skewness, kurtosis = ((centred / deviation).pow(n).mean().item() for n in (3, 4))
    return skewness, kurtosis - 3


def inputs(step: Any) -> dict[str, Tensor]:
    heard: dict[str, list[Tensor]] = {path: [] for path in LAYERS}
    step.layer_inputs(tuple(LAYERS), lambda one: heard[one.name].append(one.x.flatten(0, -2)))
    return {path: torch.cat(parts) for path, parts in heard.items()}


network = reference().transformer
stream = BlockStream(network, list(network.transformer_blocks), held_out())
rows = []
for step in stream.steps():
    for path, x in inputs(step).items():
        block = HEAD if path == "attn1.to_out.0" else None
        rotated = Hadamard(x.shape[1], block, seed=0).input(x)
        rows.append((f"{step.index} {LAYERS[path]}", *shape(x), *shape(rotated)))
write_table(
    "kurtosis",
    "Kurtosis and skewness of activations, before and after the rotation",
    "The shapes demo, 128 rows of held-out trajectories; excess kurtosis, 0 for a normal "
    "distribution. Every token is divided by its own root mean square first.",
    ("input of", "skewness", "kurtosis", "skewness rotated", "kurtosis rotated"),
    rows,
    plotted=("kurtosis", "kurtosis rotated"),
)
