"""Two regions: every code has its level, values go to the nearest one, nothing overlaps."""

import pytest
import torch

from fewbit.activations.multi_region import MultiRegion, from_config, two_regions
from fewbit.activations.time_groups import Clock, TimeBins
from fewbit.errors import BadArgument, BrokenFile
from fewbit.formats import Spec

SPECS = {"signed": "int{}/tensor/fp32", "unit": "uint{}/tensor/fp32"}


def rounded(x, low, high, regions, bits):
    spec = Spec.parse(SPECS[regions].format(bits))
    return two_regions(x, torch.tensor(low), torch.tensor(high), spec, regions)


@pytest.mark.parametrize("bits", [6, 8])
def test_signed_has_a_level_for_every_code(bits):
    half, low, high = 1 << (bits - 1), 2.0**-9, 2.0**-4
    codes = torch.arange(-half, half)
    levels = torch.where(codes < 0, codes * low, codes * high)
    assert len(levels.unique()) == 2 * half
    assert torch.equal(rounded(levels, low, high, "signed", bits), levels)
    ends = torch.tensor([-1e6, 1e6])
    assert torch.equal(rounded(ends, low, high, "signed", bits), levels[[0, -1]])


@pytest.mark.parametrize("bits", [6, 8])
@pytest.mark.parametrize("power", [2, 4, 7, 10])
def test_unit_goes_to_the_nearest_level_of_both_regions(bits, power):
    half = 1 << (bits - 1)
    high, low = 1 / half, 2.0**-power / half
    fine = torch.arange(half) * low
    coarse = torch.arange(1, half + 1) * high
    levels = torch.cat([fine, coarse[coarse > fine[-1]]])
    x = torch.linspace(0, 1, 20_001)
    found = rounded(x, low, high, "unit", bits)
    assert torch.isin(found, levels).all()
    nearest = (x[:, None] - levels).abs().amin(1)
    assert torch.equal((x - found).abs(), nearest)
    assert torch.equal(rounded(levels, low, high, "unit", bits), levels)


def test_unit_regions_that_overlap_would_be_off_by_the_split():
    """The published form gives split + coarse(x) beyond the split."""
    x = torch.linspace(0.3, 1, 10_001)
    assert abs(float((rounded(x, 0.25 / 128, 1 / 128, "unit", 8) - x).mean())) < 1e-4


def test_where_the_coarse_step_ends_below_one_values_are_clipped_there():
    found = rounded(torch.tensor([0.2, 0.9, 1.0]), 2.0**-12, 2.0**-8, "unit", 8)
    assert found.tolist() == [0.19921875, 0.5, 0.5]


def test_regions_have_steps_for_each_time_and_part():
    bins = TimeBins(torch.tensor([0.0, 100.0]))
    bins.clock = Clock("t", 0)
    bins.clock.read(bins, (torch.tensor([100, 0]),), {})
    steps = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0)) + 0.01
    spec = Spec.parse("int8/tensor/fp32")
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    whole = MultiRegion(spec, "signed", steps, bins)(x)
    for row, group in ((0, 1), (1, 0)):
        for part in range(3):
            low, high = steps[:, group, part]
            alone = two_regions(x[row, part], low, high, spec, "signed")
            assert torch.equal(whole[row, part], alone)


def test_config_builds_it_again_and_refuses_other_regions():
    spec, bins = Spec.parse("int8/tensor/fp32"), TimeBins(torch.zeros(1))
    quantizer = MultiRegion(spec, "signed", torch.ones(2, 1, 1), bins)
    assert from_config(quantizer.config()).config() == quantizer.config()
    with pytest.raises(BadArgument, match="allowed: signed, unit"):
        from_config({**quantizer.config(), "regions": "three"})


def test_a_step_of_zero_is_refused():
    spec, bins = Spec.parse("int8/tensor/fp32"), TimeBins(torch.zeros(1))
    with pytest.raises(BrokenFile, match=r"here\.steps"):
        MultiRegion(spec, "unit", torch.tensor([[[0.1]], [[0.0]]]), bins).check("here")
