"""Where does TQ-DiT lose against steps per token at run time?   python studies/tq_dit_gap.py

Of every static quantizer, on rows it has never seen: the error of its input, what part of that is
clipping, and the error that a step for every token (and head) would have made of the same values.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from demo import RESULTS, fidelity, held_out, quantized, write_table
from plot import bars
from torch import Tensor

from fewbit.activations.multi_region import MultiRegion
from fewbit.activations.static import Static
from fewbit.engine.decibel import ratio_db
from fewbit.formats import Spec
from fewbit.kernels.choose import VARIABLE
from fewbit.layers.linear import QLinear, quantized_layers

THIRDS = ("last", "middle", "first")  # of the way from noise to picture, by timestep
EDGE = 1.0  # steps: what lies farther off its level was clipped

Sums = defaultdict[tuple[str, str], Tensor]  # signal, error, clipped error, error by token


@contextmanager
def listening(model: Any, sums: Sums, third: list[str]) -> Iterator[None]:
    """Quantizers are heard when they are called, as those in front of a product are not: it takes
    their codes. They are called once more, with the layer's input."""
    parts = {n: m for n, m in model.named_modules() if isinstance(m, Static | MultiRegion)}
    hooks = [m.register_forward_hook(partial(hear, n, sums, third)) for n, m in parts.items()]
    staged = [one for one in quantized_layers(model).values() if one.stage is not None]
    hooks += [layer.register_forward_pre_hook(call_quantizer) for layer in staged]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def call_quantizer(layer: QLinear, args: tuple[Tensor, ...]) -> None:
    transform, activation = layer.stage.transform, layer.stage.activation
    if isinstance(activation, Static | MultiRegion):
        activation(args[0] if transform is None else transform(args[0]))


def hear(name: str, sums: Sums, third: list[str], part: Any, args: Any, output: Tensor) -> None:
    x = args[0].float()
    rows = x.reshape(-1, x.shape[-1])
    token = Spec.parse(f"int{part.spec.format.bits}/row/fp32").round(rows)
    error = (output - x).square()
    largest = part.steps.amax()  # of any time: no rounding error is larger
    clipped = error[(output - x).abs() > EDGE * largest].sum()
    found = (x.square().sum(), error.sum(), clipped, (token - rows).square().sum())
    sums[name, third[0]] = sums[name, third[0]] + torch.stack(found).double()


def role_of(name: str) -> str:
    """`transformer_blocks.3.attn1.to_q.stage.activation` -> `attn1.to_q`, operands by name."""
    path = name.split(".", 2)[2]
    return path.removesuffix(".stage.activation").replace("matmuls.", "")


os.environ[VARIABLE] = "reference"  # which rounds attention weights by a call as well
bits = sys.argv[1] if len(sys.argv) > 1 else "w8a8"
pipe, _ = quantized("tq-dit", samples=320, bits=bits)
data, times = held_out(), held_out().timesteps()
assert times is not None
sums: Sums = defaultdict(lambda: torch.zeros(4, dtype=torch.float64))
third = [""]
with listening(pipe.transformer, sums, third), torch.no_grad():
    for number, name in enumerate(THIRDS):
        chosen = ((times // (times.max() / 3 + 1)).long() == number).nonzero()[:, 0].tolist()
        third[0] = name
        for start in range(0, len(chosen), 16):
            pipe.transformer(**data.take(chosen[start : start + 16]))
roles = list(dict.fromkeys(role_of(name) for name, _ in sums))
rows = []
for role in roles:
    for when in THIRDS:
        mine = {name: sums[name, when] for name, at in sums if at == when and role_of(name) == role}
        signal, error, clipped, token = (float(x) for x in sum(mine.values()))
        worst = min(mine, key=lambda name: ratio_db(float(mine[name][0]), float(mine[name][1])))
        worst_db = ratio_db(float(mine[worst][0]), float(mine[worst][1]))
        row = (role, when, ratio_db(signal, error), ratio_db(signal, token))
        rows.append((*row, 100 * clipped / error, f"block {worst.split('.')[1]}: {worst_db:.1f}"))
write_table(
    f"tq_dit_gap_{bits}",
    f"Static against dynamic steps, {bits}",
    "The shapes demo, default settings, over 128 rows of held-out trajectories, by thirds of the "
    "way (`last` is nearest to the picture). dB of the input or operand itself as rounded by its "
    "static steps, and as it would be by a step for each token (each head of it) measured at run "
    "time; the share of the static error that is certainly clipping; the worst block. The noise "
    f"prediction of all together: {fidelity(pipe).sqnr:.2f} dB.",
    ("what", "when", "static, dB", "per token, dB", "clipped, %", "worst"),
    rows,
)
last = [row for row in rows if row[1] == "last"]
bars(
    RESULTS / f"tq_dit_gap_{bits}.svg",
    f"Static against dynamic steps, {bits}, last third",
    "dB",
    [row[0] for row in last],
    {"static": [row[2] for row in last], "per token": [row[3] for row in last]},
)
