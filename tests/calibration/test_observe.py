"""What a solver is told is what the layers really saw: all of it in the moments, evenly sampled."""

import pytest
import torch
from small_models import arguments, blocks_of, make

from fewbit.calibration import BlockStream, RowSet
from fewbit.calibration.observe import SAMPLE_ROWS, Observer, observe

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
