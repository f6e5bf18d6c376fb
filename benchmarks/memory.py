"""Resident weights of a DiT-XL/2 with random weights at w4a4, after a step has laid them out.

python benchmarks/memory.py      writes benchmarks/results/memory.json
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from environment import write_result
from torch import nn

import fewbit
from fewbit.bench.footprint import resident_bytes
from fewbit.bench.subject import Subject, in_dtype, open_subject
from fewbit.kernels.choose import choose

MODULATIONS = ("int8", "same")  # adaLN's weights: in 8 bits, the default, or in 4 like all others


@torch.no_grad()
def main() -> None:
    device = torch.device("cpu")
    subject = open_subject("dit-xl-2", 1, device)
    full = resident_bytes(subject.extended(copy.deepcopy(subject.network), subject.repeats))
    figures: dict[str, Any] = {"backend": choose(device).backend.name, "fp32_bytes": full}
    for adaln in MODULATIONS:
        found = _resident(subject, adaln)
        figures[f"adaln {adaln}"] = {"bytes": found, "times_less": round(full / found, 2)}
    print(figures)
    print(write_result("memory", figures))


def _resident(subject: Subject, adaln: str) -> int:
    network = copy.deepcopy(subject.network)
    fewbit.quantize(network, "rtn", bits="w4a4", adaln=adaln, progress=False)
    nn.Module.to(network, torch.bfloat16)  # what is kept
    network = subject.extended(network, subject.repeats)
    network(**in_dtype(subject.inputs, torch.bfloat16))
    return resident_bytes(network)


if __name__ == "__main__":
    main()
