"""Bytes that stay and bytes that pass."""

import sys

import pytest
import torch
from torch import nn

from fewbit.bench.footprint import resident_bytes, working_bytes
from fewbit.bench.onednn import by_onednn, why_not


def test_shared_tensors_and_views_count_once() -> None:
    first, second = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)
    second.weight = first.weight
    pair = nn.ModuleList([first, second])
    pair.register_buffer("part", first.weight.detach()[:2])
    assert resident_bytes(pair) == 8 * 4 * 4


def test_weights_hidden_in_a_packed_layout_count() -> None:
    if why_not() is not None:
        pytest.skip(str(why_not()))
    plain = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16))
    bytes_before = resident_bytes(plain)
    assert resident_bytes(by_onednn(plain)) == bytes_before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and resets the peak")
def test_a_call_needs_what_it_allocates() -> None:
    size = 64 << 20
    needed = working_bytes(lambda: torch.ones(size, dtype=torch.uint8), torch.device("cpu"))
    assert needed is not None
    assert needed == pytest.approx(size, rel=0.1)
