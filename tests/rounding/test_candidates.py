"""Trainable assignments: the soft weight and its gradients, freezing, and what is packed."""

import pytest
import torch
from torch import nn

from fewbit.formats import Spec
from fewbit.rounding.candidates import Mean, VectorLinear
from fewbit.rounding.vector import vector_quantize

SPECS = ["vq16x4/tensor/fp32", "vq16x4/row/fp16", "vq16x2/g8/fp32"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(spec="vq16x4/row/fp16", count=3, ratios="distance"):
    weight = normal(12, 16)
    start = vector_quantize(weight, Spec.parse(spec), 0)
    made = VectorLinear(start, normal(12, seed=1))
    if count > 1:
        made.consider(weight, None, count, ratios == "uniform")
    return weight, made


@pytest.mark.parametrize("spec", SPECS)
def test_it_begins_as_the_packed_weight_and_ends_as_it(spec):
    _, made = layer(spec, count=1)
    assert torch.equal(made.weight(), made.start.dequantize())
    packed = made.packed()
    assert torch.equal(packed.packed, made.start.packed)
    assert torch.equal(packed.dequantize(), made.start.dequantize())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_gradients_are_those_of_the_definition(count):
    codebook = normal(6, 4).double().requires_grad_()
    candidates = torch.randint(6, (count, 20), generator=torch.Generator().manual_seed(1)).int()
    ratios = normal(count, 20, seed=2).double().softmax(0).requires_grad_()

    def definition():
        return (codebook[candidates.long()] * ratios[..., None]).sum(0)

    assert torch.allclose(Mean.apply(codebook, candidates, ratios), definition() if count > 1
                          else codebook[candidates[0].long()])  # fmt: skip
    towards = normal(20, 4, seed=3).double()
    found = torch.autograd.grad((Mean.apply(codebook, candidates, ratios) * towards).sum(),
                                (codebook, ratios), allow_unused=True)  # fmt: skip
    expected = torch.autograd.grad((definition() * towards).sum(), (codebook, ratios))
    if count > 1:
        assert torch.allclose(found[0], expected[0])
        assert torch.allclose(found[1], expected[1])
    else:
        by_hand = torch.zeros(6, 4).double().index_add_(0, candidates[0].int(), towards)
        assert torch.allclose(found[0], by_hand)
        assert found[1] is None


def test_candidates_are_the_nearest_in_order_and_ratios_their_inverse_distances():
    weight, made = layer("vq16x4/tensor/fp32", count=3)
    units = weight.view(-1, 4) / made.scale
    distance = (units[:, None] - made.codebook.detach()).square().sum(2)
    nearest = distance.sort(1)
    assert torch.equal(made.candidates.long(), nearest.indices[:, :3].T)
    inverse = 1 / nearest.values[:, :3]
    expected = inverse / inverse.sum(1, True)
    assert torch.allclose(made.ratios(), expected.T, atol=3e-4)  # logits below -9.2 count as that


def test_uniform_ratios_and_their_indecision():
    _, made = layer(ratios="uniform")
    assert torch.allclose(made.ratios(), torch.full((3, 48), 1 / 3))
    assert made.indecision().item() == pytest.approx(1)
    made.freeze(1.0)
    assert made.indecision().item() == 0


def test_two_candidates_are_one_logit():
    assert layer(count=2)[1].logits.shape == (1, 48)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_surest_share_is_frozen_and_has_no_gradient(share):
    _, made = layer()
    surest = made.ratios().max(0).values
    made.freeze(share)
    frozen = made.ratios().max(0).values == 1
    assert frozen.float().mean().item() == pytest.approx(share, abs=0.03)  # a vector of 48
    assert surest[frozen].min() >= surest[~frozen].max()
    (made.weight() * normal(12, 16, seed=5)).sum().backward()
    assert made.logits.grad[:, frozen].abs().max() == 0
    assert (made.logits.grad[:, ~frozen].abs().sum(0) > 0).all()


def test_once_all_are_frozen_the_largest_ratio_is_the_code():
    _, made = layer()
    made.logits.data = normal(2, 48, seed=4)
    choice = made.ratios().argmax(0, keepdim=True)
    expected = made.candidates.gather(0, choice)
    made.freeze(1.0)
    assert torch.equal(made.candidates, expected)
    assert torch.equal(made.packed().codes().flatten().int(), expected[0])
    assert torch.allclose(made.packed().dequantize(), made.weight(), rtol=1e-3)  # fp16 entries


def test_more_candidates_than_entries_are_all_entries():
    weight = normal(2, 8)
    made = VectorLinear(vector_quantize(weight, Spec.parse("vq2x4/row/fp16"), 0), None)
    made.consider(weight, None, 5, False)
    assert len(made.candidates) == 2


def test_the_right_codes_are_learned():
    """Targets that another assignment gives exactly are met by changing codes, not entries."""
    _, made = layer(ratios="uniform")
    wanted = made.candidates[torch.arange(48) % 3, torch.arange(48)]
    target = made.codebook.detach()[wanted].view(12, 16) * made.scale
    optimizer = torch.optim.Adam([made.logits], lr=0.1)
    for step in range(200):
        optimizer.zero_grad()
        (made.weight() - target).square().mean().backward()
        optimizer.step()
        if step % 20 == 19:
            made.freeze(0.1 * (step // 20))
    made.freeze(1.0)
    assert torch.equal(made.candidates[0], wanted)


def test_the_layer_is_linear_in_float32():
    _, made = layer()
    x = normal(3, 16, seed=6)
    assert torch.allclose(made(x), nn.functional.linear(x, made.weight(), made.bias))
    assert made(x.bfloat16()).dtype == torch.float32
