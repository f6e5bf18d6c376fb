"""What it costs in memory to quantize an original checkpoint while `from_single_file` converts it.

python benchmarks/single_file.py [--blocks N]

The file is one of Wan's layout and width with random weights in bfloat16. A fresh process reads it
once in full precision and another once as rtn w4a4. The peak is that of memory that belongs to the
process alone; pages of the mapped file are not in it, since the system takes them back at will.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from environment import write_result
from safetensors.torch import save_file

import fewbit

WIDTH = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
FILE = "original.safetensors"
BITS = "w4a4"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--load", nargs=2, metavar=("FOLDER", "BITS"))
    asked = parser.parse_args()
    if asked.load:
        print(json.dumps(load(Path(asked.load[0]), asked.load[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), asked.blocks)
        found = {bits: _in_fresh_process(folder, bits) for bits in ("bf16", BITS)}
        found["file_bytes"] = (Path(folder) / FILE).stat().st_size
    print(write_result("single_file", {"blocks": asked.blocks, **found}))


def write(folder: Path, blocks: int) -> None:
    """Linears of diffusers have the authors' names but for the attention's; Wan's converter takes
    those that are diffusers' own as they are."""
    with torch.device("meta"):
        model = WanTransformer3DModel(num_layers=blocks, **WIDTH)
    model.save_config(folder)
    pool = 0.02 * torch.randn(1 << 27, generator=torch.Generator().manual_seed(0)).bfloat16()
    sizes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    tensors = {
        name: pool[997 * number :][: shape.numel()].view(shape).clone()
        for number, (name, shape) in enumerate(sizes.items())
    }
    save_file({name.replace("norm2", "norm3"): t for name, t in tensors.items()}, folder / FILE)


def load(folder: Path, bits: str) -> dict[str, Any]:
    asked = {} if bits == "bf16" else {"quantization_config": fewbit.FewbitConfig("rtn", bits=bits)}
    before = _own_memory()
    with _Peak() as peak:
        model = WanTransformer3DModel.from_single_file(
            str(folder / FILE), config=str(folder), torch_dtype=torch.bfloat16, **asked
        )
    kept = sum(tensor.nbytes for tensor in model.state_dict().values())
    return {"model_bytes": kept, "peak_bytes": peak.most - before}


class _Peak:
    """The most memory of its own that the process has while it is inside."""

    def __enter__(self) -> _Peak:
        self.most, self.over = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.over.wait(0.01):
            self.most = max(self.most, _own_memory())


def _own_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _in_fresh_process(folder: str, bits: str) -> Any:
    command = [sys.executable, __file__, "--load", folder, bits]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
