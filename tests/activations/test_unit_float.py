"""Unsigned floats for what a softmax gives."""

import pytest
import torch

from fewbit.activations.unit_float import UnitFloat, from_config
from fewbit.errors import BadArgument


def test_levels_are_those_of_the_float_with_one_as_the_largest():
    made = UnitFloat(4, 4)
    levels = torch.tensor([v for v in made.format.levels if v >= 0]) / made.format.max
    assert len(levels) == 256
    assert float(levels.max()) == 1.0
    assert torch.equal(made(levels), levels)


def test_a_share_goes_to_the_nearest_level():
    made = UnitFloat(2, 2)
    shares = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([v for v in made.format.levels if v >= 0]) / made.format.max
    nearest = (shares[:, None] - levels).abs().amin(1)
    assert torch.allclose((made(shares) - shares).abs(), nearest)


def test_half_precision_comes_back_as_float32():
    assert UnitFloat(4, 4)(torch.ones(3, dtype=torch.bfloat16)).dtype == torch.float32


def test_the_config_builds_it_again():
    made = from_config(UnitFloat(5, 3).config())
    assert (made.format.exponent, made.format.mantissa) == (5, 3)


@pytest.mark.parametrize("bits", [(0, 4), (5, 4), (8, 0), (4, -1), (True, 3), ("4", 4)])
def test_what_is_no_unsigned_float_is_refused(bits):
    with pytest.raises(BadArgument, match="an unsigned float cannot be e"):
        UnitFloat(*bits)
