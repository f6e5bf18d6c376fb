"""Which float a tensor takes: by its ratio to the hand-made ratios 7, 12 and 64, or by error."""

import pytest
import torch

from fewbit.formats import FORMATS, Spec
from fewbit.rounding.clipping import least_error, no_clipping
from fewbit.rounding.grid import Grid, round_to_nearest
from fewbit.rounding.selection import best_for_all, by_error, by_ratio, in_scale, spread

FP4 = tuple(FORMATS[name] for name in ("e3m0", "e2m1", "e1m2"))
RATIOS = (64, 12, 7)


def with_ratio(ratio, columns=101):
    """A row whose largest magnitude is `ratio` times its 0.25-quantile, 1."""
    row = torch.linspace(0, 4, columns).clamp(max=ratio)
    row[-1] = ratio
    return row * (-1.0) ** torch.arange(columns)


@pytest.mark.parametrize(("choice", "ratio"), enumerate(RATIOS))
def test_a_ratio_takes_the_float_that_has_it(choice, ratio):
    row = with_ratio(ratio)[None]
    assert spread(row, 0.25).item() == pytest.approx(ratio)
    assert by_ratio(row, FP4, 0.25).tolist() == [choice]


@pytest.mark.parametrize(
    ("ratio", "choice"),
    [(4.1, 2), (9.1, 2), (9.3, 1), (27.6, 1), (27.8, 0), (1e4, 0)],
)
def test_the_borders_are_geometric_means(ratio, choice):
    """√(7·12) = 9.17 and √(12·64) = 27.7; arithmetic means would be 9.5 and 38."""
    assert by_ratio(with_ratio(ratio)[None], FP4, 0.25).tolist() == [choice]


def test_every_channel_for_itself():
    scales = torch.tensor([[1.0], [50.0], [0.01]])
    rows = torch.stack([with_ratio(ratio) for ratio in RATIOS]) * scales
    assert by_ratio(rows, FP4, 0.25).tolist() == [0, 1, 2]


def test_a_small_alpha_asks_for_range():
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    assert (spread(weight, 0.05) > spread(weight, 0.5)).all()


def test_a_row_of_zeros_has_a_choice_too():
    assert by_ratio(torch.zeros(1, 8), FP4, 0.25).shape == (1,)


def test_what_one_row_is_louder_than_another_by_says_nothing_of_the_format():
    """Rows have scales of their own, with which E2M1 fits them; flattened they ask for range."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(128, 1024, generator=random)
    loud = weight * torch.randn(128, 1, generator=random).mul(0.5).exp()
    spec = Spec(FORMATS["e2m1"])
    assert by_ratio(loud.reshape(1, -1), FP4, 0.25).tolist() == [0]
    assert by_ratio(in_scale(loud, spec).reshape(1, -1), FP4, 0.25).tolist() == [1]
    assert torch.allclose(in_scale(weight, spec), in_scale(loud, spec))


def test_groups_and_whole_tensors_are_divided_by_the_scale_that_they_have():
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    grouped = in_scale(weight, Spec(FORMATS["e2m1"], 8))
    assert grouped.unflatten(1, (4, 8)).abs().amax(-1).eq(1).all()
    assert torch.equal(in_scale(weight, Spec(FORMATS["e2m1"], "tensor")), weight)
    assert in_scale(torch.zeros(2, 8), Spec(FORMATS["e2m1"])).eq(0).all()


@pytest.mark.parametrize("fit", [no_clipping, least_error])
@pytest.mark.parametrize("weighted", [False, True])
def test_by_error_nothing_else_would_lose_less(fit, weighted):
    """Judged as it will be rounded, clipped or not, and by what it does to the output."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 64, generator=random)
    weight = weight.sign() * weight.abs() ** torch.linspace(0.3, 3, 16)[:, None]
    x = torch.randn(256, 64, generator=random) * torch.linspace(0.1, 3, 64)
    moments = x.T @ x / len(x) if weighted else None
    specs = [Spec(fmt) for fmt in FP4]
    rounded = [round_to_nearest(weight, Grid(spec, weight, fit)).dequantize() for spec in specs]
    errors = [(x if weighted else torch.eye(64)) @ (one - weight).T for one in rounded]
    losses = torch.stack([error.square().sum(0) for error in errors])
    chosen = by_error(weight, specs, fit, moments)
    taken = losses.gather(0, chosen[None])[0]
    assert torch.allclose(taken, losses.amin(0), rtol=1e-3)
    assert len(chosen.unique()) == 3
    best = best_for_all(weight, specs, fit, moments)
    assert best == specs[int(losses.sum(1).argmin())]
