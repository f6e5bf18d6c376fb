"""Rounding around the mean of an image: what it keeps exactly, what it never makes worse."""

import pytest
import torch

from fewbit import registry
from fewbit.activations.centred import Centred
from fewbit.activations.dynamic import Dynamic
from fewbit.errors import BadArgument
from fewbit.formats import FORMATS, MXFP4, NVFP4, NVFP4_TOKEN, Spec

SPECS = [NVFP4_TOKEN, MXFP4, Spec(FORMATS["e2m1"], 16)]


def images(seed=0):
    random = torch.Generator().manual_seed(seed)
    mean = 3 * torch.randn(3, 1, 64, generator=random)
    return mean + torch.randn(3, 10, 64, generator=random)


def error(rounded, x):
    return (rounded - x).square().sum()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_what_all_tokens_have_in_common_is_kept(spec):
    mean = images()[:, :1].bfloat16().float()
    assert torch.equal(Centred(spec)(mean.expand(3, 10, 64)), mean.expand(3, 10, 64))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_an_image_does_not_depend_on_the_others(spec):
    x = images()
    alone = torch.cat([Centred(spec)(one) for one in x.split(1)])
    assert torch.equal(Centred(spec)(x), alone)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_no_group_of_the_rest_loses_more_than_by_its_largest_value(spec):
    rest = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    ours, plain = Centred(spec)(rest), spec.round(rest)

    def lost(rounded):
        return (rounded - rest).square().view(20, -1, 16).sum(-1)

    if spec.span == 16:
        assert (lost(ours) <= lost(plain)).all()
    assert error(ours, rest) < error(plain, rest)


def test_a_group_by_hand():
    """With 6 on the level 4, the level 3 is 4.5; with 6 on the level 6, 4.5 becomes 4."""
    row = torch.tensor([[6.0] + [4.5] * 15])
    assert Spec(FORMATS["e2m1"]).round(row).tolist() == [[6.0] + [4.0] * 15]
    assert Centred(Spec(FORMATS["e2m1"]))(row).tolist() == [[6.0] + [4.5] * 15]


def test_it_gains_2_db_where_a_mean_is_large():
    """5 dB here."""
    x = images()
    gain = error(Dynamic(NVFP4_TOKEN)(x), x) / error(Centred(NVFP4_TOKEN)(x), x)
    assert 10 * gain.log10() > 2


def test_the_damage_of_a_number_that_is_none_stays_in_its_image():
    x = images()
    x[1, 2, 3] = torch.nan
    rounded = Centred(NVFP4_TOKEN)(x)
    assert rounded[[0, 2]].isfinite().all()
    assert rounded[1, :, 3].isnan().all()


def test_its_config_builds_it_again():
    made = registry.build("activations", Centred(MXFP4).config())
    assert isinstance(made, Centred)
    assert made.spec == MXFP4
    assert made.extra_repr() == "centred e2m1/g32/e8m0"


@pytest.mark.parametrize(
    "spec", [NVFP4, Spec(FORMATS["uint4"], 16), Spec(FORMATS["int8"], "tensor")]
)
def test_what_would_tie_images_together_or_has_a_zero_point_is_refused(spec):
    with pytest.raises(BadArgument, match="centred activations cannot use"):
        Centred(spec)
