"""What rounding is expected to cost is what it costs, where that can be computed."""

import pytest
import torch

from fewbit.calibration.expected import error_of, lost_by_input, lost_by_weights
from fewbit.formats import FORMATS, SCALES, Spec
from fewbit.rounding.clipping import least_error
from fewbit.rounding.grid import Grid, round_to_nearest

WIDE = Spec(FORMATS["book4"], 32, SCALES["fp16"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_inputs_that_know_nothing_of_each_other_make_up_for_nothing():
    """Then a rounded weight loses what rounding to nearest loses."""
    weight, feels = normal(40, 64), torch.rand(40)
    powers = weight.square().sum(0)  # as loud as their weights: smoothing changes nothing
    few = Spec(FORMATS["book2"])
    found = lost_by_weights(weight, [WIDE, few], powers.diag(), feels)
    error = round_to_nearest(weight, Grid(few, weight, least_error)).dequantize() - weight
    assert found[0] < found[1] / 10
    assert found[1].item() == pytest.approx(float(feels @ (error.square() @ powers)), rel=0.02)


def test_a_channel_may_be_as_loud_as_its_weights_are_quiet():
    """Outliers that cancel change nothing."""
    x, weight, feels = normal(500, 64, seed=1), normal(40, 64), torch.rand(40)
    loud = torch.ones(64)
    loud[[3, 40]] = 100.0
    for lost in (
        lambda w, y: lost_by_weights(w, [WIDE], y.T @ y, feels),
        lambda w, y: lost_by_input(w, WIDE, (0, 8), y.T @ y, feels),
    ):
        torch.testing.assert_close(
            lost(weight / loud, x * loud), lost(weight, x), rtol=1e-3, atol=0
        )


def test_of_a_large_weight_some_rows_stand_for_all():
    weight, powers = normal(256, 32).repeat_interleave(4, 0), torch.ones(32)
    every = lost_by_weights(weight[::4], [WIDE], powers.diag(), torch.ones(256))
    found = lost_by_weights(weight, [WIDE], powers.diag(), torch.ones(1024))
    torch.testing.assert_close(found, 4 * every)


def test_the_noise_of_an_input_is_what_rounding_makes():
    x, weight, feels = normal(500, 64, seed=1), normal(40, 64), torch.rand(40)
    spec = Spec(FORMATS["book4"])
    found = lost_by_input(weight, spec, (0,), x.T @ x, feels)
    error = (spec.round(x) - x) @ weight.T
    assert found.item() == pytest.approx(float(feels @ error.square().sum(0)), rel=0.1)


def test_what_directions_keep_costs_nothing():
    """Inputs of three directions, one of them quiet."""
    x = normal(500, 3) * torch.tensor([10.0, 10.0, 1.0]) @ torch.linalg.qr(normal(64, 3)).Q.T
    found = lost_by_input(normal(40, 64), WIDE, (0, 2, 3), x.T @ x, torch.ones(40))
    assert found[1] < 0.1 * found[0]
    assert found[2] < 1e-4 * found[0]


@pytest.mark.parametrize("text", ["book4/g16/fp16", "int5/row/fp16", "book2/tensor/fp32",
                                  "e2m1/g16/e4m3", "book3/g16/factor"])  # fmt: skip
def test_rounding_many_rows_at_once_is_rounding_them(text):
    """Also where scales of groups hang together."""
    spec, weight = Spec.parse(text), normal(300, 4096)
    rounded = round_to_nearest(weight, Grid(spec, weight, least_error)).dequantize()
    assert torch.equal(error_of(weight, spec), rounded - weight)
