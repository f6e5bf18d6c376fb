"""The compiler may be the first to use fewbit in a process: nothing is known of backends yet."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from fewbit.activations.dynamic import Dynamic
from fewbit.formats import QTensor, Spec
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage
from fewbit.transforms.hadamard import Hadamard, HadamardTransform

PAIRS = (
    ("e2m1/row/fp32", "e2m1/row/fp32"),
    ("e2m1/g16/e4m3", "e2m1/g16/e4m3row"),
    ("uint4/g16/fp16", "e4m3/row/fp32"),
    ("e3m0|e2m1|e1m2/row/fp32", None),
)
FRESH = """
import sys, torch
model, x = torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    compiled = torch.compile(model, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(compiled, model(x), rtol=1e-4, atol=1e-4)
"""


def layer(weight: str, activation: str | None) -> QLinear:
    spec, matrix = Spec.parse(weight), torch.linspace(-1, 1, 64 * 64).view(64, 64)
    scales = spec.fit(matrix) if "|" not in weight else _of_first_option(spec, matrix)
    rounding = None if activation is None else Dynamic(Spec.parse(activation))
    rotation = HadamardTransform(Hadamard.for_width(64, 0))
    return QLinear(QTensor.quantize(matrix, spec, scales), None, InputStage(rotation, rounding))


def _of_first_option(spec: Spec, matrix: torch.Tensor) -> Any:
    scales = spec.fit(matrix)
    choices = torch.zeros(len(matrix), 1, dtype=torch.uint8)
    return type(scales)(scales.stored, choices=choices)


def test_a_fresh_process_compiles_all_in_one_graph(tmp_path: Path) -> None:
    model = torch.nn.Sequential(*(layer(*pair) for pair in PAIRS))
    torch.save((model, torch.randn(3, 64)), tmp_path / "model")
    run = subprocess.run(
        [sys.executable, "-c", FRESH, tmp_path / "model"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
