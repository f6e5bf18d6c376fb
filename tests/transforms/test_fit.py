"""The transform that is chosen is the one with which plain rounding loses least."""

import torch

from fewbit.formats import FORMATS, Spec
from fewbit.transforms.fit import Consumer, least_lost, loudness
from fewbit.transforms.hadamard import Hadamard, HadamardTransform
from fewbit.transforms.smooth import Smooth, balancing_scales

INT4, INT8 = Spec(FORMATS["int4"]), Spec(FORMATS["int8"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def consumer(loud=None, weight_spec=INT4, input_spec=INT4, seed=0):
    x, weight = normal(200, 48, seed=seed), normal(32, 48, seed=seed + 1)
    if loud is not None:
        x, weight = x * loud, weight / loud
    return Consumer(x, x.square().mean(0), weight, weight_spec, input_spec)


def outliers():
    loud = torch.ones(48)
    loud[[3, 40]] = 100
    return loud


def test_a_transform_changes_the_loss_by_rounding_alone():
    fine = Spec(FORMATS["int8"], 1)
    found = consumer(outliers(), fine, fine)
    for option in (None, HadamardTransform(Hadamard(48, None, 0)), Smooth(outliers())):
        assert found.lost(option) < 1e-6


def test_nothing_is_lost_where_nothing_is_rounded_but_the_weight():
    found = consumer(weight_spec=INT8, input_spec=None)
    assert 0 < found.lost(None) < 1e-4


def test_outliers_whose_weights_are_small_ask_for_smoothing():
    found = consumer(outliers())
    rotate = HadamardTransform(Hadamard(48, None, 0))
    smooth = Smooth(balancing_scales(*loudness([found]), 0.5))
    assert least_lost((None, rotate, smooth), [found]) is smooth
    assert found.lost(smooth) < found.lost(None) / 10


def test_of_equals_the_first_is_taken():
    found = consumer()
    same = Smooth(torch.ones(48))
    assert least_lost((None, same), [found]) is None
    assert least_lost((same, None), [found]) is same


def test_loudness_is_of_all_consumers():
    one, other = consumer(seed=0), consumer(seed=5)
    loud, heavy = loudness([one, other])
    torch.testing.assert_close(loud, (one.rms.square() + other.rms.square()).sqrt())
    both = torch.cat([one.weight, other.weight])
    torch.testing.assert_close(heavy, both.square().sum(0).sqrt())


def test_balancing_scales_by_hand():
    """Ratios 4, 1/4 and 1 have the geometric mean 1; what is silent keeps its scale."""
    inputs, weights = torch.tensor([4.0, 1.0, 2.0, 0.0]), torch.tensor([1.0, 4.0, 2.0, 3.0])
    found = balancing_scales(inputs, weights, 0.5)
    torch.testing.assert_close(found, torch.tensor([2.0, 0.5, 1.0, 1.0]))
    assert torch.equal(balancing_scales(inputs, weights, 0.0), torch.ones(4))
