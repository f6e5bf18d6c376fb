"""A run that was killed goes on at the last finished block, to the same bits."""

import pytest
import torch
from killed import blocks_solved, kill_each
from small_dit import bits_of
from torch import nn

import fewbit
from fewbit import ModelSpec
from fewbit.engine.run import _Run
from fewbit.errors import BadOutput

SPEC = ModelSpec("blocks", {"up": "fc1"})
BLOCKS = 3


class Tower(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, hidden_states):
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(24, 24)

    def forward(self, x):
        return x + torch.tanh(self.up(x))


def data(seed=0):
    random = torch.Generator().manual_seed(seed)
    return [{"hidden_states": torch.randn(1, 16, 24, generator=random)} for _ in range(8)]


def quantize(model, workdir=None, **arguments):
    given = {"calibration": data(), "spec": SPEC, "progress": False, **arguments}
    return fewbit.quantize(model, "hq-dit", workdir=workdir, **given)


KILLS = [(moment, count) for moment in ("written", "advanced") for count in (1, 2)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    function = "lambda place: here.quantize(here.Tower(), place)"
    return kill_each(
        "import test_workdir as here", function, KILLS, tmp_path_factory.mktemp("killed")
    )


@pytest.mark.parametrize("kill", KILLS, ids=str)
def test_killed_and_resumed_is_the_same_to_the_bit(killed, monkeypatch, kill):
    solved = blocks_solved(monkeypatch)
    resumed, whole = Tower(), Tower()
    report = quantize(resumed, killed[kill])
    assert solved == list(range(kill[1], BLOCKS))
    expected = quantize(whole)
    assert bits_of(resumed) == bits_of(whole)
    assert report.layers == expected.layers


def test_a_finished_run_computes_nothing_again(tmp_path, monkeypatch):
    first, again = Tower(), Tower()
    quantize(first, tmp_path)
    monkeypatch.setattr(_Run, "_solve", None)
    quantize(again, tmp_path)
    assert bits_of(first) == bits_of(again)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"calibration": data(seed=1)}, "data"),
        ({"alpha": 0.5}, "recipe"),
        ({"bits": "w4a8"}, "recipe"),
        ({"bits": "w4a8", "seed": 1}, "recipe, seed"),
    ],
)
def test_the_work_of_another_run_is_refused(tmp_path, changed, named):
    quantize(Tower(), tmp_path)
    model = Tower()
    before = bits_of(model)
    with pytest.raises(BadOutput, match=f"another run, which differs in: {named};"):
        quantize(model, tmp_path, **changed)
    assert bits_of(model) == before


def test_other_weights_are_another_run(tmp_path):
    quantize(Tower(), tmp_path)
    with pytest.raises(BadOutput, match="differs in: weights, model;"):
        quantize(Tower(seed=1), tmp_path)
