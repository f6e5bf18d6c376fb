"""Whatever a grid rounds to is exactly what its spec decodes: nothing changes when it is packed."""

from dataclasses import replace

import pytest
import torch

from fewbit.formats import FORMATS, MXFP4, NVFP4, NVFP4_TOKEN, FormatChoice, QTensor, Spec
from fewbit.rounding.clipping import least_error, no_clipping
from fewbit.rounding.gptq import gptq
from fewbit.rounding.grid import ChoiceGrid, Grid, round_to_nearest

FITS = [no_clipping, least_error]
FP4 = tuple(FORMATS[name] for name in ("e3m0", "e2m1", "e1m2"))
SPECS = [
    *(Spec(fmt) for fmt in FORMATS.values()),
    *(Spec(FORMATS[name], span) for name in ("e2m1", "int4", "uint4") for span in ("tensor", 16)),
    *(Spec(fmt, 32) for fmt in FP4),
    MXFP4,
    NVFP4,
    NVFP4_TOKEN,
    *map(Spec.parse, ("book4/g16/factor", "e2m1/g32/factor", "uint4/g16/factor")),
    *map(Spec.parse, ("lut16/g16/table", "lut16/row/table", "int5/g32/gguf", "uint4/g32/gguf")),
]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moments(channels):
    x = normal(4 * channels, channels, seed=1) @ normal(channels, channels, seed=2)
    return x.T @ x / len(x)


def check_lossless(solution, grid):
    packed = QTensor.quantize(solution.values, grid.spec, grid.scales())
    assert torch.equal(packed.dequantize(), solution.values)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_what_gptq_gives_is_packed_without_loss(spec, fit):
    weight = normal(6, 64) * normal(6, 1, seed=3).exp()
    grid = Grid(spec, weight, fit)
    check_lossless(gptq(weight, moments(64), grid), grid)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("span", ["row", 16])
@pytest.mark.parametrize("order", ["natural", "activation"])
def test_each_row_stays_on_the_grid_it_chose(span, fit, order):
    weight, choices = normal(7, 64), torch.tensor([0, 1, 2, 2, 1, 0, 2])
    grid = ChoiceGrid(Spec(FormatChoice(FP4), span), weight, fit, choices)
    solution = gptq(weight, moments(64), grid, order=order)
    check_lossless(solution, grid)
    for row, choice in enumerate(choices.tolist()):
        alone = Grid(Spec(FP4[choice], span), weight[[row]], fit)
        single = gptq(weight[[row]], moments(64), alone, order=order).values
        # fewer rows are summed in another order, which a group's scale shows in its last bits
        torch.testing.assert_close(solution.values[[row]], single, rtol=1e-5, atol=0)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_plain_rounding_at_full_scale_is_that_of_the_spec(spec):
    weight = normal(6, 64)
    rounded = round_to_nearest(weight, Grid(spec, weight, no_clipping)).dequantize()
    assert torch.equal(rounded, spec.round(weight))


def test_a_choice_of_one_is_no_choice():
    weight, spec = normal(4, 32), Spec(FORMATS["e2m1"])
    choices = torch.full((4,), 1)
    several = ChoiceGrid(replace(spec, format=FormatChoice(FP4)), weight, least_error, choices)
    alone = round_to_nearest(weight, Grid(spec, weight, least_error)).dequantize()
    assert torch.equal(round_to_nearest(weight, several).dequantize(), alone)
