"""One block as wide as DiT-XL/2's, 2x256 tokens, on each backend beside eager torch.

python benchmarks/backends.py [--threads 1] [--rounds 7]    writes benchmarks/results/backends.json
Arms take turns in one process, each on two blocks of its own so that weights come from memory as in
a model; a figure is the median of the rounds, in milliseconds of thread time and of wall time.
Weights and inputs are random; the method is plain rounding after a Hadamard rotation, w4a4, adaLN
int8. Ours run with `QuickAttention` and `QuickGelu`, as `generate` does; modulations are computed
anew each time.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from environment import write_result
from models import dit_xl_2
from torch import Tensor, nn

from fewbit.activation_function import QuickGelu
from fewbit.activations.dynamic import Dynamic
from fewbit.quick_attention import QuickAttention
from fewbit.decibel import sqnr
from fewbit.formats import FORMATS, QTensor, Spec
from fewbit.input_stage import InputStage
from fewbit.kernels.choose import BACKENDS, VARIABLE
from fewbit.linear import QLinear
from fewbit.transforms.hadamard import Hadamard, HadamardTransform

GROUPS = (
    ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    ("attn1.to_out.0",),
    ("ff.net.0.proj",),
    ("ff.net.2",),
)
ADALN = "norm1.linear"
Blocks = list[nn.Module]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    arms = _arms()
    times = _measure(arms, options.rounds)
    figures = {
        "threads": options.threads,
        "rounds": options.rounds,
        "milliseconds": times,
        "sqnr_to_fp32_db": _errors(arms),
    }
    print(json.dumps(figures, indent=1))
    print(write_result("backends", figures))


def _arms() -> dict[str, tuple[Blocks, torch.dtype, str | None]]:
    """Name -> blocks, dtype, backend."""
    plain: Blocks = list(dit_xl_2(2).transformer_blocks)
    arms: dict[str, tuple[Blocks, torch.dtype, str | None]] = {
        "eager fp32": (plain, torch.float32, None),
        "eager bf16": ([copy.deepcopy(one).bfloat16() for one in plain], torch.bfloat16, None),
    }
    here = [b.name for b in BACKENDS if b.why_not(torch.device("cpu")) is None]
    for backend in here:
        for fast in (False, True) if backend == "torch" else (False,):
            name = f"w4a4 {backend}{' fast' if fast else ''}"
            blocks = [_quantized(one, fast) for one in plain]
            arms[f"{name}, bf16"] = blocks, torch.bfloat16, backend
            if not fast:
                arms[f"{name}, fp32"] = (
                    [copy.deepcopy(b).float() for b in blocks],
                    torch.float32,
                    backend,
                )
    return arms


def _quantized(block: nn.Module, fast: bool) -> nn.Module:
    block = copy.deepcopy(block)
    e2m1, int8 = (Spec(FORMATS[name]) for name in ("e2m1", "int8"))
    for group in GROUPS:
        width = block.get_submodule(group[0]).in_features
        rotation = HadamardTransform(Hadamard.for_width(width, 0, block="auto"))
        stage = InputStage(rotation, Dynamic(e2m1))
        for name in group:
            linear = block.get_submodule(name)
            packed = QTensor.quantize(rotation.weight(linear.weight), e2m1)
            block.set_submodule(name, QLinear(packed, linear.bias, stage))
    adaln = block.get_submodule(ADALN)
    block.set_submodule(ADALN, QLinear(QTensor.quantize(adaln.weight, int8), adaln.bias, None))
    for module in block.modules():
        if isinstance(module, QLinear):
            module.fast = fast
    return block.bfloat16()


def _measure(
    arms: dict[str, tuple[Blocks, torch.dtype, str | None]], rounds: int
) -> dict[str, dict[str, float]]:
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, (blocks, dtype, backend) in arms.items():
            if backend == "reference" and turn > 1:
                continue
            block = blocks[turn % len(blocks)]
            x = _tokens(dtype)
            thread, wall = _clocked(lambda block=block, x=x: _run(block, x), backend)
            if turn:
                taken[name].append((thread, wall))
    return {
        name: {
            "thread": round(statistics.median(t for t, _ in pairs), 2),
            "wall": round(statistics.median(w for _, w in pairs), 2),
            "wall_least": round(min(w for _, w in pairs), 2),
        }
        for name, pairs in taken.items()
    }


def _clocked(work: Callable[[], Tensor], backend: str | None) -> tuple[float, float]:
    with _forced(backend):
        wall, thread = time.perf_counter(), time.thread_time()
        work()
        return 1e3 * (time.thread_time() - thread), 1e3 * (time.perf_counter() - wall)


def _forced(backend: str | None) -> AbstractContextManager[object]:
    if backend is None:
        return nullcontext()
    os.environ[VARIABLE] = backend
    quick = ExitStack()
    quick.enter_context(QuickAttention())
    quick.enter_context(QuickGelu())
    return quick


def _tokens(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 256, 1152, generator=generator).to(dtype)


def _run(block: nn.Module, x: Tensor) -> Tensor:
    labels, steps = torch.tensor([3, 1000]), torch.tensor([500, 500])
    out: Tensor = block(x, timestep=steps, class_labels=labels)
    return out


def _errors(arms: dict[str, tuple[Blocks, torch.dtype, str | None]]) -> dict[str, float]:
    exact = _run(arms["eager fp32"][0][0], _tokens(torch.float32))
    errors = {}
    for name, (blocks, dtype, backend) in arms.items():
        if backend is not None:
            with _forced(backend):
                errors[name] = round(sqnr(exact, _run(blocks[0], _tokens(dtype))), 3)
    return errors


if __name__ == "__main__":
    main()
