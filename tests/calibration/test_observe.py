"""What a solver is told is what the layers really saw: all of it in the moments, evenly sampled."""

import pytest
import torch
from small_models import arguments, blocks_of, make

from fewbit.calibration import BlockStream, RowSet
from fewbit.calibration.observe import SAMPLE_ROWS, Observer, Record, observe

LAYERS = {"attn1.to_q": 16, "ff.net.2": 64}


@pytest.fixture(scope="module")
def heard():
    """What `observe` says of the first block of a DiT, and what its layers were given."""
    model = make("DiTTransformer2DModel")
    data = RowSet.from_items([arguments("DiTTransformer2DModel", 1, s) for s in range(20)])
    stream = BlockStream(model, blocks_of(model), data, batch=8)
    step = next(stream.steps())
    given = {name: [] for name in LAYERS}
    step.layer_inputs(tuple(LAYERS), lambda one: given[one.name].append(one.x.flatten(0, -2)))
    return observe(step, LAYERS, seed=1), observe(step, LAYERS, seed=1), given


@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_of_every_token(heard, name):
    x = torch.cat(heard[2][name]).double()
    exact = x.T @ x / len(x)
    # float32 sums of 320 products, against the size of the largest
    torch.testing.assert_close(heard[0][name].moments.double(), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(heard[0][name].rms.double(), x.square().mean(0).sqrt())


@pytest.mark.parametrize("name", LAYERS)
def test_the_sample_is_drawn_evenly_and_repeatably(heard, name):
    sample, again = heard[0][name].sample, heard[1][name].sample
    assert torch.equal(sample, again)
    assert len(sample) <= SAMPLE_ROWS
    for minibatch in heard[2][name]:
        inside = (sample[:, None] == minibatch[None]).all(-1).any(1).sum()
        assert inside == min(len(minibatch), -(-SAMPLE_ROWS // 3))


def test_padding_is_seen_by_nobody():
    observer = Observer(4, minibatches=1, seed=0)
    x = torch.ones(2, 3, 4)
    x[0, 2] = torch.nan
    observer.update(x, torch.tensor([[True, True, False], [True, True, True]]))
    seen = observer.seen()
    assert torch.equal(seen.moments, torch.ones(4, 4))
    assert torch.equal(seen.sample, torch.ones(5, 4))


def test_a_record_is_compared_sample_by_sample():
    """What a layer read in the block as it was, and what it reads now."""
    model = make("DiTTransformer2DModel")
    data = RowSet.from_items([arguments("DiTTransformer2DModel", 1, s) for s in range(20)])
    step = next(BlockStream(model, blocks_of(model), data, batch=8).steps())
    record, heard = Record(step, LAYERS, seed=1), {"exact": [], "actual": []}
    seen = observe(step, LAYERS, seed=1)["ff.net.2"]
    assert torch.equal(record.seen("ff.net.2").moments, seen.moments)
    torch.testing.assert_close(record.seen("ff.net.2").squares, seen.squares)
    assert torch.equal(record.seen("ff.net.2").sample, seen.sample)
    step.layer_inputs(["ff.net.2"], lambda one: heard["exact"].append(one.x.flatten(0, -2)))
    step.block.ff.net[0].proj.weight.data.mul_(0.9)
    step.layer_inputs(["ff.net.2"], lambda one: heard["actual"].append(one.x.flatten(0, -2)))
    x, given = torch.cat(heard["exact"]).double(), torch.cat(heard["actual"]).double()
    assert not torch.allclose(x, given)
    found = record.compare(step, "ff.net.2", lambda one: one, lambda one: 2 * one).around_zero()
    cross, square = 2 * x.T @ given / len(x), 4 * given.T @ given / len(x)
    torch.testing.assert_close(found.cross.double(), cross, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.square.double(), square, rtol=0, atol=1e-5)


def test_other_tokens_than_were_recorded_stand_for_themselves():
    model = make("DiTTransformer2DModel")
    data = RowSet.from_items([arguments("DiTTransformer2DModel", 1, s) for s in range(4)])
    step = next(BlockStream(model, blocks_of(model), data, batch=2).steps())
    record = Record(step, LAYERS, seed=1)
    record.heard[0]["ff.net.2"] = record.heard[0]["ff.net.2"][:, 1:]  # as a router would
    found = record.compare(step, "ff.net.2", lambda x: x, lambda x: x)
    torch.testing.assert_close(found.cross, found.square, rtol=0, atol=1e-5)


def test_a_row_counts_as_much_as_is_said():
    """Of weight 0 as if it were not there, else as often as the weight."""
    model = make("DiTTransformer2DModel")
    items = [arguments("DiTTransformer2DModel", 1, s) for s in range(4)]
    path, found = "ff.net.2", []
    for rows, counts in [(items, [3.0, 0.0, 1.0, 0.0]), ([items[0]] * 3 + [items[2]], None)]:
        data = RowSet.from_items(rows)
        step = next(BlockStream(model, blocks_of(model), data, batch=2).steps())
        importance = None if counts is None else {path: torch.tensor(counts)}
        record = Record(step, LAYERS, seed=1, importance=importance)
        paired = record.compare(step, path, lambda x: x, lambda x: x)
        found.append((record.seen(path).moments, paired.square, record.seen(path).sample))
    (weighted, square, sample), (plain, plain_square, _) = found
    torch.testing.assert_close(weighted, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(square, plain_square, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sample.T @ sample / (len(sample) * 2), plain, rtol=1e-4, atol=1e-6)
