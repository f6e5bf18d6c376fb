"""Fidelity of the noise prediction, against reckonings by hand."""

import math

import pytest
import torch
from torch import nn

from fewbit.calibration import CallSet, RowSet
from fewbit.engine.decibel import sqnr
from fewbit.engine.measured import noise_prediction
from fewbit.judge.trajectory import trajectory_fidelity


class Scaled(nn.Module):
    """A learned variance follows the noise, as in DiT."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, hidden_states, timestep):
        noise = hidden_states * (1 + (self.factor - 1) * timestep[:, None, None, None] / 100)
        return {"sample": torch.cat([noise, torch.rand_like(noise)], dim=1)}


def rows():
    random = torch.Generator().manual_seed(0)
    latent = torch.randn(12, 4, 8, 8, generator=random)
    times = torch.tensor([100, 10, 50] * 4)
    return RowSet.from_items([{"hidden_states": latent, "timestep": times}])


def test_overall_and_by_timestep():
    data = rows()
    found = trajectory_fidelity(Scaled(1), Scaled(1.1), data, batch=5)
    x, times = data.columns["hidden_states"], data.columns["timestep"]
    assert list(found.by_timestep) == [10, 50, 100]
    for time, db in found.by_timestep.items():
        assert db == pytest.approx(-20 * math.log10(0.1 * time / 100), abs=1e-3)
    actual = x * (1 + 0.001 * times[:, None, None, None])
    assert found.sqnr == pytest.approx(sqnr(x, actual), abs=1e-3)


def test_calls_whose_rows_are_not_told_apart():
    class Together(Scaled):
        def forward(self, hidden_states, timestep):
            return super().forward(torch.stack(hidden_states), timestep)["sample"][0]

    latents = [torch.randn(4, 8, 8) for _ in range(2)]
    items = [{"hidden_states": latents, "timestep": torch.tensor([t] * 2)} for t in (10.0, 100.0)]
    found = trajectory_fidelity(Together(1), Together(1.1), CallSet.from_items(items))
    assert list(found.by_timestep) == [10, 100]


def test_the_batch_changes_nothing_and_the_same_network_loses_nothing():
    one, two = (trajectory_fidelity(Scaled(1), Scaled(1.1), rows(), batch=b) for b in (1, 12))
    assert one.sqnr == pytest.approx(two.sqnr, abs=1e-6)
    same = trajectory_fidelity(Scaled(1), Scaled(1), rows())
    assert same.sqnr == math.inf == same.by_timestep[10]


def test_modes_are_put_back_and_the_variance_is_left_out():
    reference, network = Scaled(1).train(), Scaled(1).eval()
    trajectory_fidelity(reference, network, rows())
    assert (reference.training, network.training) == (True, False)
    inputs = rows().take([0, 1])
    assert torch.equal(noise_prediction(network, inputs), inputs["hidden_states"])
