"""The error of a layer's output, against a reckoning by hand."""

import pytest
import torch
from torch import nn

import fewbit
from fewbit import ModelSpec
from fewbit.engine.decibel import sqnr
from fewbit.formats import FORMATS, Spec

SPEC = ModelSpec("blocks", {"0": "fc1"})


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(24, 32))])

    def forward(self, hidden_states):
        return self.blocks[0](hidden_states)


def data():
    random = torch.Generator().manual_seed(0)
    return [{"hidden_states": torch.randn(1, 4, 24, generator=random)} for _ in range(8)]


@pytest.mark.parametrize("settings", [{}, {"hadamard": False}, {"smooth": 0.5}], ids=str)
def test_both_errors_are_those_of_the_layer(settings):
    model, items = Tower(), data()
    x = torch.cat([item["hidden_states"] for item in items])
    linear = model.blocks[0][0]
    exact = linear(x).detach()
    e2m1 = Spec(FORMATS["e2m1"])
    rounded = e2m1.round(x.flatten(0, 1)) @ e2m1.round(linear.weight.detach()).T + linear.bias
    report = fewbit.quantize(
        model, "hq-dit", calibration=items, spec=SPEC, progress=False, **settings
    )
    layer = report.layers[0]
    actual = model.blocks[0][0](x)
    assert layer.output_db == pytest.approx(sqnr(exact, actual), abs=1e-3)  # float32 sums
    assert layer.rounding_output_db == pytest.approx(sqnr(exact.flatten(0, 1), rounded), abs=1e-3)
    assert layer.gain_db == layer.output_db - layer.rounding_output_db
