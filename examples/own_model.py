"""Quantize a module of your own: say where its blocks are and what each linear does.

python examples/own_model.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

import fewbit

SPEC = fewbit.ModelSpec(
    blocks="layers",
    roles={"qkv": "qkv", "out": "attn_out", "up": "fc1", "down": "fc2"},
    keep=("head",),
)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # [rows, tokens, width]
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed = scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)))
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width, heads=4) for _ in range(depth))
        self.head = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Quantize a module of your own.")
    parser.add_argument("--recipe", default="hq-dit:w4a8")
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = Model().eval()
    print(fewbit.inspect(model, SPEC))
    rows = [{"x": torch.randn(1, 16, 64)} for _ in range(32)]  # keyword arguments of the forward
    with torch.no_grad():
        exact = model(**rows[0])
    report = fewbit.quantize(model, given.recipe, spec=SPEC, calibration=rows, progress=False)
    print(report)
    with torch.no_grad():
        found = model(**rows[0])
    signal, noise = exact.square().sum(), (found - exact).square().sum()
    print(f"SQNR of the output: {10 * float((signal / noise).log10()):.1f} dB")

    with tempfile.TemporaryDirectory() as place:
        fewbit.save(model, Path(place) / "model", report=report)
        loaded = fewbit.load(Path(place) / "model", like=Model())  # a class only you know
        with torch.no_grad():
            assert torch.equal(loaded(**rows[0]), found)
    print("loaded again, with the same output")


if __name__ == "__main__":
    main()
