import copy

import pytest
import torch

import fewbit
from fewbit.calibration import RowSet
from fewbit.engine.stored_size import Size, size_of
from fewbit.judge.cost import Cost, cost_of


def test_bytes_and_seconds_beside_bfloat16(small):
    reference = small()
    network = copy.deepcopy(reference)
    fewbit.quantize(network, "rtn", progress=False)
    rows = RowSet.from_items(
        [
            {
                "hidden_states": torch.randn(2, 4, 8, 8),
                "timestep": torch.tensor([1, 2]),
                "class_labels": torch.tensor([0, 1]),
            }
        ]
    )
    found = cost_of(network, reference, rows)
    floats = sum(p.numel() for p in [*reference.parameters()])
    assert found.size == size_of(network)
    assert found.bf16_bytes == pytest.approx(2 * floats, rel=0.01)  # buffers
    assert found.seconds > 0
    assert found.bf16_seconds > 0
    assert next(reference.parameters()).dtype == torch.float32


def test_ratios_say_smaller_and_faster():
    cost = Cost(Size(packed=20, kept=5), bf16_bytes=100, seconds=0.5, bf16_seconds=0.25)
    assert (cost.smaller, cost.faster) == (4.0, 0.5)
