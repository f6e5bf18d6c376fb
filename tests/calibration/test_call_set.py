"""Items that a user gives stay the calls they are, whatever is in them."""

import pytest
import torch
from torch import nn

from fewbit.calibration import BlockStream, CallSet
from fewbit.calibration.reconstruction import Reconstruction
from fewbit.calibration.tree import tensors
from fewbit.errors import BadCalibration
from fewbit.storage.entries import Entries


def call(tokens=3, time=5.0):
    """Two images of one size, whose batch is also the length of what has nothing to do with it."""
    return {
        "hidden_states": [torch.randn(tokens, 4) for _ in range(2)],
        "timestep": torch.tensor([time]),
        "sizes": torch.tensor([7, 9]),
        "rotary": (torch.randn(tokens, 4), {"of": [torch.ones(2, 4)]}),
        "names": ["a", None],
    }


def same(one, other):
    mine, theirs = tensors(one), tensors(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_a_call_is_replayed_as_it_came():
    calls = [call(3), call(5)]
    data = CallSet.from_items(calls)
    assert len(data) == 2
    for given, taken in zip(calls, data.batches(8), strict=True):
        assert same(given, taken)
        assert taken["names"] == ["a", None]
        assert isinstance(taken["rotary"], tuple)


def test_what_is_taken_may_be_written_into():
    data = CallSet.from_items([call()])
    next(data.batches(1))["sizes"].zero_()
    assert next(data.batches(1))["sizes"].tolist() == [7, 9]


@pytest.mark.parametrize(
    ("time", "rows"),
    [
        (torch.tensor([3.0, 1.0]), [3, 1]),
        (torch.tensor([[2.0, 4.0], [6.0, 8.0]]), [3, 7]),  # of frames
        (torch.tensor(4), [4]),
        (4, [4]),
    ],
)
def test_a_call_has_a_row_for_each_timestep(time, rows):
    data = CallSet.from_items([call() | {"timestep": time}, call(time=100.0)])
    assert data.timesteps().tolist() == [*rows, 100]
    assert data.parts(1) == [range(len(rows)), range(len(rows), len(rows) + 1)]


def test_without_timesteps_a_call_is_one_row():
    data = CallSet.from_items([{"x": torch.ones(8, 2)}] * 3)
    assert data.timesteps() is None
    assert len(data) == 3


def test_examples_have_every_shape_once():
    data = CallSet.from_items([call(3), call(5), call(3)])
    assert [len(one["hidden_states"][0]) for one in data.examples()] == [3, 5]


def test_saved_and_loaded_it_is_the_same(tmp_path):
    data = CallSet.from_items([call(3), call(5)])
    Entries(tmp_path).write("calls", data.to_entry())
    loaded = CallSet.from_entry(Entries(tmp_path).read("calls"))
    assert loaded.fingerprint() == data.fingerprint()
    assert all(map(same, loaded.calls, data.calls))
    assert CallSet.from_items([call(3)]).fingerprint() != data.fingerprint()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "calibration is empty"),
        ([torch.ones(3)], "item 0 is of type Tensor; allowed: dicts"),
        ([{}], "item 0 has no tensor"),
        ([{"x": torch.ones(1)}, {"x": torch.tensor([torch.nan])}], "item 1, key 'x', holds NaN"),
        ([{"x": torch.ones(1), "f": print}], "item 0, key 'f', holds a builtin_function"),
    ],
)
def test_bad_items_are_named(given, message):
    with pytest.raises(BadCalibration, match=message):
        CallSet.from_items(given)


class Block(nn.Module):
    """Tokens come first; what it is given by place is the same for every row."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x, rotary, time):
        return x + self.up(x) * rotary[:, None] * time, {"pooled": [x.mean(0), rotary]}


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.even = nn.ModuleList(Block() for _ in range(2))
            self.odd = nn.ModuleList(Block() for _ in range(2))

    @property
    def blocks(self):
        return [self.even[0], self.odd[0], self.even[1], self.odd[1]]

    def forward(self, hidden_states, timestep, rotary, sizes, names):
        x = torch.stack(hidden_states, 1)
        for even, odd in zip(self.even, self.odd, strict=True):
            x, _ = even(x, rotary[0], timestep / 100)
            x, _ = odd(x, rotary[0], timestep / 100)
        return list(x.unbind(1))


def hooked(model, data):
    seen = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args: seen.append(args)) for block in model.blocks
    ]
    with torch.no_grad():
        for inputs in data.batches(1):
            model(**inputs)
    for hook in hooks:
        hook.remove()
    return [seen[number :: len(hooks)] for number in range(len(hooks))]


def test_blocks_see_what_hooks_see():
    model, data = Tokens(), CallSet.from_items([call(3), call(5), call(3)])
    stream = BlockStream(model, model.blocks, data)
    expected = hooked(model, data)
    for step in stream.steps():
        for given, seen in zip(step.inputs(), expected[step.index], strict=True):
            assert same(given.args, seen)
    assert [one[0].shape[0] for one in stream.results()] == [3, 5, 3]


def learning(changed):
    model, data = Tokens(), CallSet.from_items([call(3), call(5, time=50.0)])
    streams = [BlockStream(model, model.blocks, data) for _ in range(2)]
    for step, exact in zip(*(stream.steps() for stream in streams), strict=True):
        exact.advance()
        if step.index == 1:
            return step, Reconstruction.of_block(step, exact)
        step.block.up.weight.data *= changed
    raise AssertionError


def test_a_minibatch_of_calls_holds_whole_calls():
    step, pool = learning(0.5)
    (minibatch,) = pool.minibatches(1, 16, seed=0)
    assert sorted(len(one.args[0]) for one in minibatch.examples) == [3, 5]
    for one in minibatch.examples:
        assert one.args[0].shape[1] == 2
        assert len(one.args[1]) == len(one.args[0])  # the table of positions, uncut
        assert set(one.targets) == {"0", "1.pooled.0", "1.pooled.1"}
    assert minibatch.loss(step.block).item() > 0


def test_with_nothing_changed_calls_lose_nothing():
    step, pool = learning(1.0)
    (minibatch,) = pool.minibatches(1, 16, seed=0)
    assert minibatch.loss(step.block).item() == 0


def test_some_rows_are_those_of_whole_calls():
    calls = [{**call(), "timestep": torch.tensor([number, number + 0.5])} for number in range(10)]
    data = CallSet.from_items(calls)
    assert data.some(20, seed=0) is data
    some = data.some(7, seed=0)
    assert (len(some.calls), len(some)) == (4, 8)
    times = some.timesteps().view(4, 2)
    assert torch.equal(times[:, 1], times[:, 0] + 0.5)
    first = torch.tensor([0, 2, 5, 7, 10])
    assert torch.all((first[:-1] <= times[:, 0]) & (times[:, 0] < first[1:]))
