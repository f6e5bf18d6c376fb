"""Samples of what a block receives: true values, where they say, the same every time."""

import pytest
import small_models
import torch

from fewbit.calibration import BlockStream, RowSet
from fewbit.calibration import operands as module
from fewbit.calibration.operands import sample_operands
from fewbit.models import describe


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(module, "TOKENS", 20)
    monkeypatch.setattr(module, "QUERIES", 5)


def sampled(family, batch=2, rows=5, some=(0, 3), seed=7):
    model = small_models.make(family)
    structure = describe(model)
    data = RowSet.from_items([small_models.arguments(family, rows)])
    blocks = small_models.blocks_of(model)
    step = next(BlockStream(model, blocks, data, batch=batch).steps())
    prefix = f"{structure.blocks[0]}."
    names = [group[0].removeprefix(prefix) for group in structure.shared_inputs(0)]
    attending = {name: model.get_submodule(name) for name in structure.attending(0)}
    seen = {name: [] for name in names}
    step.layer_inputs(names, lambda given: seen[given.name].append(given))
    return sample_operands(step, names, attending, some, seed), seen


@pytest.mark.parametrize("family", small_models.FAMILIES)
def test_sampled_tokens_are_what_layers_receive(few, family):
    (tokens, _), seen = sampled(family)
    for name, sample in tokens.items():
        whole = torch.cat(
            [given.x.reshape(len(given.x), -1, given.x.shape[-1]) for given in seen[name]]
        )
        assert sample.x.shape[1] == min(4, whole.shape[1])
        index = sample.places[..., None].expand_as(sample.x)
        real = sample.real[..., None]
        assert torch.equal(sample.x, whole.gather(1, index) * real)
        assert all(len(row.unique()) == len(row) for row in sample.places)


@pytest.mark.parametrize("family", small_models.FAMILIES)
def test_padding_is_no_token(few, family):
    (tokens, _), seen = sampled(family)
    for name, sample in tokens.items():
        masks = [given.mask for given in seen[name]]
        if masks[0] is None:
            assert bool(sample.real.all())
        else:
            assert torch.equal(sample.real, torch.cat(masks).float().gather(1, sample.places))


@pytest.mark.parametrize("family", small_models.FAMILIES)
def test_operands_are_of_the_rows_that_were_asked_for(few, family):
    one = sampled(family, batch=2)[0][1]
    other = sampled(family, batch=2, some=(3,))[0][1]
    for name, operands in one.items():
        assert len(operands.query) == len(operands.key) == len(operands.value) == 2
        assert operands.query.shape[-2] == len(operands.places) == min(5, operands.places.max() + 1)
        assert torch.equal(operands.key[1:], other[name].key)


def test_the_same_seed_samples_the_same(few):
    (one, _), _ = sampled("DiTTransformer2DModel")
    (two, _), _ = sampled("DiTTransformer2DModel")
    (other, _), _ = sampled("DiTTransformer2DModel", seed=8)
    assert all(torch.equal(one[name].x, two[name].x) for name in one)
    assert any(not torch.equal(one[name].places, other[name].places) for name in one)
