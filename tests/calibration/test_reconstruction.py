"""Rows to train a block on: the right inputs beside the right targets, and what an error weighs."""

from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fewbit.calibration import BlockStream, RowSet
from fewbit.calibration.along import Along
from fewbit.calibration.pool import RowPool
from fewbit.calibration.reconstruction import Minibatch, Reconstruction
from fewbit.calibration.training import Group, Schedule, train, trainable_copy
from fewbit.errors import BadCalibration

ROWS = 12


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, hidden_states, timestep):
        for block in self.blocks:
            hidden_states, _ = block(hidden_states, time=timestep)
        return hidden_states


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 8)

    def forward(self, x, time):
        return x + self.up(x) * time[:, None, None], x.mean(1)


def data(paired=True):
    random = torch.Generator().manual_seed(0)
    items = [
        {
            "hidden_states": torch.randn(2, 4, 8, generator=random) * (1 + row),
            "timestep": torch.tensor([row % 3, row % 3]).float(),
        }
        for row in range(ROWS // 2)
    ]
    pair = torch.arange(ROWS // 2).repeat_interleave(2) if paired else None
    return RowSet.from_items(items, pair=pair)


def second_block(model, changed=0.5, paired=True):
    """Of a model whose first block was changed, and what the second gave before that."""
    streams = [BlockStream(model, list(model.blocks), data(paired), batch=5) for _ in range(2)]
    steps = zip(*(stream.steps() for stream in streams), strict=True)
    _, exact = next(steps)
    exact.advance()
    model.blocks[0].up.weight.data *= changed
    step, exact = next(steps)
    exact.advance()
    return Reconstruction.of_block(step, exact)


def only(minibatches):
    (minibatch,) = minibatches
    (example,) = minibatch.examples
    return example


def by_hand(changed):
    model, given = Tower(), data().take(range(ROWS))
    hidden, time = given["hidden_states"], given["timestep"]
    exact, _ = model.blocks[0](hidden, time)
    model.blocks[0].up.weight.data *= changed
    inputs, _ = model.blocks[0](hidden, time)
    return inputs.detach(), model.blocks[1](exact, time)


def test_inputs_come_from_the_changed_block_and_targets_from_the_unchanged():
    rows = second_block(Tower())
    inputs, (hidden, pooled) = by_hand(0.5)
    example = only(rows.minibatches(1, ROWS, seed=0))
    order = [int((inputs == x).flatten(1).all(1).nonzero()) for x in example.args[0]]
    assert sorted(order) == list(range(ROWS))
    assert torch.equal(example.kwargs["time"], data().take(order)["timestep"])
    assert torch.equal(example.targets["0"].value, hidden[order])
    assert torch.equal(example.targets["1"].value, pooled[order])


def test_with_nothing_changed_the_loss_is_zero():
    model = Tower()
    rows = second_block(model, changed=1.0)
    for minibatch in rows.minibatches(3, 4, seed=1):
        assert minibatch.loss(model.blocks[1]).item() == 0


def test_every_row_comes_once_before_any_comes_again_and_halves_stay_together():
    rows = second_block(Tower())
    seen = []
    for minibatch in rows.minibatches(6, 4, seed=3):
        found = [
            int((rows.pool.arguments[0][0] == x).flatten(1).all(1).nonzero())
            for x in only([minibatch]).args[0]
        ]
        assert all(row ^ 1 in found for row in found)
        seen.append(found)
    first, second = (sorted(chain(*part)) for part in (seen[:3], seen[3:]))
    assert first == second == list(range(ROWS))
    assert seen[:3] != seen[3:]


def test_without_pairs_rows_are_shuffled_one_by_one():
    rows = second_block(Tower(), paired=False)
    assert len(only(rows.minibatches(1, 5, seed=0)).args[0]) == 5


def test_the_same_seed_the_same_minibatches():
    rows = second_block(Tower())
    first, same, other = (
        [only([one]).args[0] for one in rows.minibatches(4, 4, seed)] for seed in (0, 0, 1)
    )
    assert all(map(torch.equal, first, same))
    assert not all(map(torch.equal, first, other))


def test_an_error_is_a_share_of_the_energy_at_its_timestep():
    rows = second_block(Tower())
    example = only(rows.minibatches(1, ROWS, seed=0))
    lost = {path: 0.9 * target.value for path, target in example.targets.items()}
    assert example.loss(lost).item() == pytest.approx(2 * 0.01)  # of two tensors
    time = example.kwargs["time"]
    energy = example.targets["0"].value.square().flatten(1).mean(1)
    for moment in time.unique():
        weights = example.targets["0"].weights[time == moment]
        assert torch.allclose(weights, 1 / energy[time == moment].mean())


def test_rows_of_a_whole_model():
    class Halved(Tower):
        def forward(self, **inputs):
            return super().forward(**inputs).bfloat16()

    model = Halved()
    stream = BlockStream(model, list(model.blocks), data(), batch=5)
    for step in stream.steps():
        step.advance()
    example = only(Reconstruction.of_model(stream).minibatches(1, ROWS, seed=0))
    assert not example.args
    assert example.kwargs.keys() == {"hidden_states", "timestep"}
    assert example.targets[""].value.shape == (ROWS, 4, 8)
    assert example.targets[""].value.dtype == torch.float32


def problem():
    """Rows whose targets are twice their inputs."""
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    rows = {"1.x": Along(0, 1)}, {"": Along(0, 1)}
    pool = RowPool([((), {"x": x})], [2 * x], rows, None)
    return Reconstruction(pool, [[row] for row in range(16)], torch.device("cpu"))


def test_training_finds_what_the_targets_were_made_with():
    factor, idle = nn.Parameter(torch.zeros(3)), SimpleNamespace(calls=[])
    train(
        lambda minibatch, _: minibatch.loss(lambda x: x * factor),
        problem(),
        [Group([factor], 0.1), Group([], 1.0)],
        Schedule(200, 4, seed=0),
        idle.calls.append,
    )
    assert torch.allclose(factor, torch.full((3,), 2.0), atol=1e-2)
    assert idle.calls == [(step + 1) / 200 for step in range(200)]


def test_a_loss_that_is_no_number_ends_the_training():
    factor = nn.Parameter(torch.zeros(3))

    def loss(minibatch: Minibatch, progress: float) -> torch.Tensor:
        return minibatch.loss(lambda x: x * factor) / (0.5 - progress > 0)

    with pytest.raises(BadCalibration, match="diverged: the loss is inf after 5 of 10 steps"):
        train(loss, problem(), [Group([factor], 0.1)], Schedule(10, 4, seed=0))


def test_a_copy_to_train_leaves_the_original_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).half()
    copied = trainable_copy(model)
    assert not any(p.requires_grad for p in copied.parameters())
    assert copied[0].weight.dtype == torch.float32
    assert not copied[1].training
    assert model[1].training
    assert model[0].weight.requires_grad
