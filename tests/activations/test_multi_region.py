"""Two regions: every code has its level, values go to the nearest one, nothing overlaps."""

import pytest
import torch

from fewbit.activations.clock import Clock, TimeBins
from fewbit.activations.multi_region import MultiRegion, from_config, two_regions
from fewbit.errors import BadArgument, BrokenFile
from fewbit.formats import QTensor, Spec
from fewbit.kernels.choose import BACKENDS as ALL
from fewbit.kernels.choose import VARIABLE, backend_for
from fewbit.kernels.values import Epilogue, QuantizedRows, Weight
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage

BACKENDS = [one.name for one in ALL if one.why_not(torch.device("cpu")) is None]
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


def fused(x, low, high, whole, bits=8):
    spec = Spec.parse(SPECS["signed"].format(bits))
    return two_regions(x, torch.tensor(low), torch.tensor(high), spec, "fused", whole)


@pytest.mark.parametrize("bits", [6, 8])
def test_fused_is_one_region_and_then_two(bits):
    half, low, high = 1 << (bits - 1), 2.0**-9, 2.0**-4
    codes = torch.arange(-half, half).repeat(2, 1)
    levels = torch.where(codes < 0, codes * low, codes * high)
    levels[0] = codes[0] * high
    x = levels.T.contiguous()  # [codes, columns]
    assert torch.equal(fused(x, low, high, 1, bits), x)
    ends = torch.tensor([[-1e6, -1e6], [1e6, 1e6]])
    assert torch.equal(fused(ends, low, high, 1, bits), x[[0, -1]])


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


def signed(steps: torch.Tensor, times: torch.Tensor, bits: int = 8, whole: int = 0) -> MultiRegion:
    bins = TimeBins(torch.tensor([0.0, 100.0]))
    bins.clock = Clock("t", 0)
    bins.clock.read(bins, (times,), {})
    regions = "fused" if whole else "signed"
    return MultiRegion(Spec.parse(f"int{bits}/tensor/fp32"), regions, steps, bins, whole)


STEPS = torch.tensor([[[0.001], [0.002]], [[0.03], [0.01]]])


@pytest.mark.parametrize("bits", [6, 8])
@pytest.mark.parametrize("whole", [0, 3])
def test_a_product_is_handed_the_codes_of_either_region(bits, whole):
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    quantizer = signed(STEPS, torch.tensor([100, 0]), bits, whole)
    coded = quantizer.code(backend_for(x), None, x)
    assert isinstance(coded, QuantizedRows)
    assert coded.integers.shape == (2 * 10, 8)
    below, above = coded.integers.chunk(2)
    assert bool(((below == 0) | (above == 0)).all())
    assert int(below.max()) == 0 == int(above[:, whole:].min())
    assert not below[:, :whole].any()
    assert torch.equal(coded.values(), quantizer(x).view(10, 8))


@pytest.mark.parametrize("lost", [torch.nan, torch.inf, -torch.inf])
def test_codes_of_a_lost_row_stand_for_nan_and_the_others_for_what_they_were(lost):
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    quantizer = signed(STEPS, torch.tensor([100, 0]))
    exact = quantizer(x).view(6, 8)
    x[1, 1, 5] = lost
    values = quantizer.code(backend_for(x), None, x).values()
    assert values[4].isnan().all()
    assert torch.equal(values[[0, 1, 2, 3, 5]], exact[[0, 1, 2, 3, 5]])


def test_what_cannot_be_summed_is_handed_on_as_values():
    """The coarse region of shares has a level, 1, that is no int8; and heads have own steps."""
    x = torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(0))
    bins = TimeBins(torch.zeros(1))
    unit = MultiRegion(Spec.parse("uint8/tensor/fp32"), "unit", torch.full((2, 1, 1), 0.01), bins)
    heads = MultiRegion(Spec.parse("int8/tensor/fp32"), "signed", torch.full((2, 1, 3), 0.01), bins)
    for quantizer in (unit, heads):
        assert quantizer.code_spec is None
        assert torch.equal(quantizer.code(backend_for(x), None, x), quantizer(x).view(6, 8))


@pytest.mark.parametrize("backend", ALL, ids=lambda one: one.name)
@pytest.mark.parametrize(
    ("spec", "columns"),
    [("int8/row", 64), ("int4/g32", 64), ("int4/g12", 48), ("e2m1/g20", 40), ("int8/row", 1)],
)
@pytest.mark.parametrize("tokens", [5, 7])
def test_a_product_sums_the_regions_before_anything_else(backend, spec, columns, tokens):
    random = torch.Generator().manual_seed(0)
    x, matrix = (torch.randn(*n, columns, generator=random) for n in ((2, tokens), (40,)))
    bias, residual = (torch.randn(*n, 40, generator=random) for n in ((), (2 * tokens,)))
    gate = torch.randn(2, 40, generator=random)
    quantizer = signed(STEPS, torch.tensor([100, 0]))
    weight = QTensor.quantize(matrix, Spec.parse(f"{spec}/fp32"))
    product = quantizer(x).flatten(0, 1).double() @ weight.dequantize().double().T + bias
    for epilogue in (Epilogue(), Epilogue(gelu=True), Epilogue(gate=gate, residual=residual)):
        exact, coded = epilogue(product.float()), quantizer.code(backend_for(x), None, x)
        found = backend.linear(coded, Weight(weight), bias, torch.float32, epilogue)
        assert found.shape == exact.shape
        assert (found - exact).abs().max() <= 1e-6 * exact.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_multiplies_the_codes(backend, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend)
    random = torch.Generator().manual_seed(0)
    x, matrix = torch.randn(2, 5, 64, generator=random), torch.randn(48, 64, generator=random)
    quantizer = signed(STEPS, torch.tensor([100, 0]))
    weight = QTensor.quantize(matrix, Spec.parse("int8/row/fp32"))
    layer = QLinear(weight, None, InputStage(None, quantizer))
    exact = quantizer(x).double() @ weight.dequantize().double().T
    assert (layer(x) - exact).abs().max() <= 1e-6 * exact.abs().max()


@pytest.mark.parametrize("lost", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("regions", SPECS)
def test_what_is_not_finite_does_not_look_like_a_number(lost, regions):
    spec, bins = Spec.parse(SPECS[regions].format(8)), TimeBins(torch.zeros(1))
    quantizer = MultiRegion(spec, regions, torch.full((2, 1, 1), 0.01), bins)
    assert quantizer(torch.tensor([[lost, 0.5]])).isnan().tolist() == [[True, False]]


def test_config_builds_it_again_and_refuses_other_regions():
    spec, bins = Spec.parse("int8/tensor/fp32"), TimeBins(torch.zeros(1))
    quantizer = MultiRegion(spec, "signed", torch.ones(2, 1, 1), bins)
    fused = MultiRegion(spec, "fused", torch.ones(2, 1, 1), bins, 5)
    for one in (quantizer, fused):
        assert from_config(one.config()).config() == one.config()
    for wrong in ({"whole": 0}, {"whole": True}, {"parts": 2}):
        with pytest.raises(BadArgument, match="fused regions have one part and columns"):
            from_config({**fused.config(), **wrong})
    with pytest.raises(BadArgument, match="allowed: signed, fused, unit"):
        from_config({**quantizer.config(), "regions": "three"})


def test_a_step_of_zero_is_refused():
    spec, bins = Spec.parse("int8/tensor/fp32"), TimeBins(torch.zeros(1))
    with pytest.raises(BrokenFile, match=r"here\.steps"):
        MultiRegion(spec, "unit", torch.tensor([[[0.1]], [[0.0]]]), bins).check("here")
