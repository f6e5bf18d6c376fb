"""Products and row kernels beside torch's own, on one core: `python benchmarks/gemm.py`.

All arms of a table take turns and are timed by the thread's own CPU time, medians of the rounds;
the peak of the core is measured in the same turns. `FEWBIT_ISA=avx2` gives the other table.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from environment import write_result
from torch import Tensor
from torch.nn import functional as F

from fewbit.activations.centred import Centred
from fewbit.activations.dynamic import Dynamic
from fewbit.formats import FORMATS, MXFP4, NVFP4, NVFP4_TOKEN, QTensor, Spec
from fewbit.kernels.choose import backend_named
from fewbit.kernels.native import ops as native
from fewbit.kernels.values import NOTHING, Weight
from fewbit.transforms.hadamard import Hadamard, HadamardTransform

TOKENS = 512
LAYERS = ((1152, 3456), (1152, 1152), (1152, 4608), (4608, 1152))  # DiT-XL/2
ROUNDS = 9
PEAKS = {"vpdpbusd": 128, "vdpbf16ps": 64, "vfmadd231ps": 32}
FORMAT = FORMATS["e2m1"]
GROUPED = {  # weights and inputs in groups
    "nvfp4": (NVFP4, Dynamic(NVFP4_TOKEN)),
    "mxfp4": (MXFP4, Dynamic(MXFP4)),
    "best w4a4": (Spec.parse("book4/g32/fp16"), Centred(Spec.parse("book4/g32/factor"))),
}

Arms = dict[str, Callable[[], Any]]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        peaks = {name: _peak(name, Path(folder)) for name in PEAKS}
        figures: dict[str, Any] = {"isa": native.isa(), "tokens": TOKENS, "unit": "ms"}
        for k, n in LAYERS:
            arms = {**_products(k, n), **_grouped(k, n)}
            if peaks["vpdpbusd"] is not None:
                arms["peak"] = peaks["vpdpbusd"]
            figures[f"{k} x {n}"] = _table(f"{k} x {n}", arms, 2e-6 * TOKENS * k * n)
        figures["rows"] = _table("row kernels", _rows())
        figures["attention"] = _table("attention 2 x 16 heads x 256 x 72", _attention())
        figures["peaks, GOP/s"] = {name: run() for name, run in peaks.items() if run is not None}
    print(figures["peaks, GOP/s"])
    print(write_result(f"gemm-{native.isa()}", figures))


def _products(k: int, n: int) -> Arms:
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    levels = (FORMAT.decode(codes) / FORMAT.step).to(torch.int8)
    packed, unpacked = native.pack_codes(codes, FORMAT), native.pack_levels(levels)
    x, bias, scale = torch.randn(TOKENS, k), torch.randn(n), torch.rand(n, 1)
    inputs, by_row = native.quantize_rows(x, FORMAT)
    weight, columns = levels.float() * scale, levels.T.contiguous()
    half = [t.bfloat16() for t in (x, weight, bias)]
    return {
        "ours, 4-bit": lambda: native.linear(inputs, by_row, packed, scale, bias),
        "ours, 4-bit + gelu": lambda: native.linear(inputs, by_row, packed, scale, bias, gelu=True),
        "ours, 8-bit": lambda: native.linear(inputs, by_row, unpacked, scale, bias),
        "_int_mm + epilogue": lambda: _int_mm(inputs, columns, by_row, scale, bias),
        "F.linear bf16": lambda: F.linear(*half),
        "F.linear fp32": lambda: F.linear(x, weight, bias),
        "ours, 4-bit x float": lambda: native.float_linear(x, packed, scale, bias),
    }


def _grouped(k: int, n: int) -> Arms:
    """Two images; around a mean, with its product."""
    backend, x, arms = backend_named("native"), torch.randn(2, TOKENS // 2, k), {}
    for name, (spec, activation) in GROUPED.items():
        packed = QTensor.quantize(torch.randn(n, k), spec)
        weight = Weight(packed, backend.layout(packed, activation.spec, False))
        product, coded = backend.multiplier(weight, torch.randn(n)), activation.coder(backend, None)
        arms[f"ours, {name}"] = partial(product, coded(x), torch.float32, NOTHING)
    return arms


def _int_mm(codes: Tensor, columns: Tensor, by_row: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return torch._int_mm(codes, columns).float().mul_(by_row).mul_(scale.T).add_(bias)


def _rows() -> Arms:
    arms: Arms = {}
    for k in (1152, 4608):
        x, hadamard = torch.randn(TOKENS, k), Hadamard(k, None, 0)
        rotation = HadamardTransform(hadamard).rotation
        arms[f"quantize {k}"] = lambda x=x: native.quantize_rows(x, FORMAT)
        arms[f"hadamard + quantize {k}"] = lambda x=x, r=rotation: native.hadamard_quantize_rows(
            x, r, FORMAT
        )
        arms[f"torch hadamard alone {k}"] = lambda x=x, h=hadamard: h.input(x)
        for name, (_, activation) in GROUPED.items():
            coder = activation.coder(backend_named("native"), None)
            arms[f"quantize {name} {k}"] = partial(coder, x.view(2, TOKENS // 2, k))
    x, (shift, scale) = torch.randn(2, TOKENS // 2, 1152), torch.randn(2, 2, 1152)
    rotation = HadamardTransform(Hadamard(1152, None, 0)).rotation
    arms["norm + modulate"] = lambda: native.layer_norm_modulate(x, shift, scale, 1e-6)
    arms["norm + modulate + hadamard + quantize"] = lambda: native.modulate_quantize_rows(
        x, shift, scale, 1e-6, FORMAT, rotation
    )
    arms["torch norm + modulate"] = lambda: (
        F.layer_norm(x, (1152,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    )
    wide = torch.randn(TOKENS, 4608).bfloat16()
    arms["gelu bf16 4608"] = lambda: native.gelu(wide)
    arms["torch gelu bf16 4608"] = lambda: F.gelu(wide, approximate="tanh")
    return {**arms, **_modulations()}


def _modulations() -> Arms:
    """adaLN, two rows; 12 weights in turn, so that they come from memory as in a model."""
    codes = torch.randint(0, 16, (6912, 1152), dtype=torch.uint8)
    packed = [native.pack_codes(codes, FORMAT) for _ in range(12)]
    weights = [torch.randn(6912, 1152, dtype=torch.bfloat16) for _ in range(12)]
    x, scale, turn = torch.randn(2, 1152), torch.rand(6912, 1), iter(range(10**9))
    half = x.bfloat16()
    return {
        "adaLN 4-bit": lambda: native.float_linear(x, packed[next(turn) % 12], scale),
        "adaLN F.linear bf16": lambda: F.linear(half, weights[next(turn) % 12]),
    }


def _attention() -> Arms:
    arms: Arms = {}
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = torch.randn(3, 2, 256, 16, 72).to(dtype).transpose(2, 3)
        name = str(dtype).removeprefix("torch.")
        if native.has_attention(dtype):
            arms[f"ours {name}"] = lambda q=q, k=k, v=v: native.attention(q, k, v)
        arms[f"SDPA {name}"] = lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v)
        arms[f"bmm {name}"] = lambda q=q, k=k, v=v: (
            torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(2, 3), -1) @ v
        )
    return arms


def _table(title: str, arms: Arms, work: float | None = None) -> dict[str, Any]:
    """`work` in millions of operations makes GOP/s of milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    results: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(ROUNDS + 1):
        for name, run in arms.items():
            start = time.thread_time()
            result = run()
            times[name].append(1e3 * (time.thread_time() - start))
            results[name].append(result if isinstance(result, float) else 0.0)
    print(title)
    table = {}
    for name in arms:
        taken = sorted(times[name][1:])  # the first one warms up
        if name == "peak":
            row = {"GOP/s": median(results[name])}
        else:
            row = {"median": median(taken), "min": taken[0], "max": taken[-1]}
            if work is not None:
                row["GOP/s"] = work / row["median"]
        table[name] = {key: round(value, 3) for key, value in row.items()}
        print(f"  {name:38}", *(f"{key} {value:8.2f}" for key, value in row.items()))
    return table


def _peak(instruction: str, folder: Path) -> Callable[[], float] | None:
    compiler, program = shutil.which("g++"), folder / instruction
    if compiler is None or native.isa() != "avx512vnni":
        return None
    source = Path(__file__).parent / "peak.cpp"
    flags = [f'-DINSTRUCTION="{instruction}"', f"-DOPERATIONS={PEAKS[instruction]}"]
    flags += ["-O2", "-mavx512f", "-mavx512vnni", "-mavx512bf16"]
    subprocess.run([compiler, *flags, source, "-o", program], check=True)
    return lambda: float(subprocess.run([program], capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
