"""What a DiT-XL/2 costs on disk, in memory and to load: packed formats beside fp16.

    python benchmarks/loading.py [--folder PLACE] [--repeats N]

Weights are random but laid out as in a converted checkpoint: each block carries its own copy of
the timestep and label embedders. Every load runs in a fresh process, which finds the bytecode of
all it imports, as on a user's machine: one load before the first that counts writes it, whatever
PYTHONDONTWRITEBYTECODE says. The formats take turns, and medians are shown. "ready" adds one read
of every weight, since diffusers maps plain weights into memory and only looks at them when they are
used. "cold" is ready with the file not in the page cache, as after a reboot.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment, write_result

FP16 = "fp16"
FORMATS = {
    "w8a8": {"bits": "w8a8"},
    "w4a4": {"bits": "w4a4"},
    "mxfp4": {"bits": "mxfp4"},
    "nvfp4": {"bits": "nvfp4"},
    "w2": {"bits": "w2a16"},
}
DIT_XL = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "num_layers": 28,
    "sample_size": 32,
    "num_embeds_ada_norm": 1000,
}


@dataclass(frozen=True)
class Load:
    seconds: float  # until from_pretrained returns
    ready: float  # until every weight has been read once
    peak: int  # bytes above the process before loading
    resident: int


@dataclass(frozen=True)
class Row:
    name: str
    arithmetic: int  # bytes of all tensors, identical ones once
    file: int
    kept: int  # bytes of what is not quantized
    saved: int  # bytes that storing identical tensors once saves
    seconds: float
    ready: float
    cold: float
    peak: int
    resident: int

    @property
    def bound(self) -> float:
        return 1.3 * self.file + self.kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the models are written (default: /tmp)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        print(json.dumps(asdict(measure(arguments.load))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = compare(Path(folder), arguments.repeats)
    write(rows, arguments.repeats)


def compare(folder: Path, repeats: int) -> list[Row]:
    sizes = {FP16: make(folder / FP16, None)}
    for name, settings in FORMATS.items():
        sizes[name] = make(folder / name, settings)
    warm: dict[str, list[Load]] = {name: [] for name in sizes}
    cold: dict[str, list[float]] = {name: [] for name in sizes}
    for name in sizes:
        load_in_fresh_process(folder / name)  # writes the bytecode
    for _ in range(repeats):
        for name in sizes:
            evict(folder / name)
            cold[name].append(load_in_fresh_process(folder / name).ready)
            warm[name].append(load_in_fresh_process(folder / name))
    return [
        Row(name, **sizes[name], **medians(warm[name]), cold=statistics.median(cold[name]))
        for name in sizes
    ]


def evict(folder: Path) -> None:
    """Out of the page cache, where the system lets itself be told."""
    os.sync()
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make(folder: Path, settings: dict[str, Any] | None) -> dict[str, int]:
    """Write a model and say what it should weigh."""
    import fewbit
    from fewbit.storage.tensors import stored_once

    model = random_dit().half()
    if settings is not None:
        fewbit.quantize(model, "rtn", progress=False, **settings)
    model.save_pretrained(folder, max_shard_size="20GB")
    state = model.state_dict()
    stored = state if settings is None else stored_once(state)[0]
    total = sum(state[name].nbytes for name in stored)
    return {
        "arithmetic": total,
        "file": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "kept": total - packed_bytes(model),
        "saved": sum(tensor.nbytes for tensor in state.values()) - total,
    }


def random_dit() -> Any:
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        model = DiTTransformer2DModel(**DIT_XL)
    model = model.to_empty(device="cpu").eval()
    pool = 0.02 * torch.randn(1 << 24, generator=torch.Generator().manual_seed(0))
    for index, parameter in enumerate(model.parameters()):  # each its own window of the pool
        window = pool[997 * index :][: parameter.numel()]
        parameter.requires_grad_(False).copy_(window.view(parameter.shape))
    first, *others = model.transformer_blocks
    for block in others:
        block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    return model


def packed_bytes(model: Any) -> int:
    from fewbit.layers.linear import QLinear

    return sum(m.packed_weight.nbytes for m in model.modules() if isinstance(m, QLinear))


def load_in_fresh_process(folder: Path) -> Load:
    command = [sys.executable, __file__, "--load", str(folder)]
    users = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=users)
    return Load(**json.loads(done.stdout.splitlines()[-1]))


def measure(folder: Path) -> Load:
    from diffusers import DiTTransformer2DModel

    import fewbit  # noqa: F401  registers with diffusers

    before = memory()["VmRSS"]
    started = time.perf_counter()
    model = DiTTransformer2DModel.from_pretrained(folder, dtype=torch.float16)
    loaded = time.perf_counter()
    peak = memory()["VmHWM"] - before
    for tensor in model.state_dict().values():
        tensor.view(-1).view(torch.uint8)[::512].max()
    ready = time.perf_counter()
    return Load(loaded - started, ready - started, peak, memory()["VmRSS"] - before)


def memory() -> dict[str, int]:
    """Linux's own account, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = (line.split() for line in lines if line.startswith(("VmRSS", "VmHWM")))
    return {name.rstrip(":"): int(count) * 1024 for name, count, _ in sizes}


def medians(loads: list[Load]) -> dict[str, Any]:
    return {
        name: statistics.median(getattr(load, name) for load in loads)
        for name in ("seconds", "ready", "peak", "resident")
    }


def write(rows: list[Row], repeats: int) -> None:
    write_result("loading", {"repeats": repeats, "rows": [asdict(row) for row in rows]})
    about = ", ".join(f"{key}: {value}" for key, value in environment().items())
    text = f"{table(rows)}\n\n{about}, repeats: {repeats}"
    (RESULTS / "loading.md").write_text(f"# Loading a DiT-XL/2\n\n{text}\n")
    print(text)


def table(rows: list[Row]) -> str:
    head = (
        "| | arithmetic MB | on disk MB | kept MB | saved by sharing MB | resident MB | peak MB "
        "| 1.3 x disk + kept MB | load s | ready s | cold s |"
    )
    lines = [head, "|---" + "|--:" * 10 + "|"]
    for row in rows:
        sizes = (row.arithmetic, row.file, row.kept, row.saved, row.resident, row.peak, row.bound)
        cells = [f"{size / 1e6:.1f}" for size in sizes]
        cells += [f"{seconds:.2f}" for seconds in (row.seconds, row.ready, row.cold)]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
