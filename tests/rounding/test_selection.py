"""Which float a tensor takes: by its ratio to the hand-made ratios 7, 12 and 64, or by error."""

import pytest
import torch

from fewbit.formats import FORMATS, Spec
from fewbit.rounding.selection import best_for_all, by_error, by_ratio, spread

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


def test_by_error_nothing_else_would_lose_less():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    weight = weight.sign() * weight.abs() ** torch.linspace(0.3, 3, 16)[:, None]
    specs = [Spec(fmt) for fmt in FP4]
    losses = torch.stack([(spec.round(weight) - weight).square().sum(1) for spec in specs])
    chosen = by_error(weight, specs)
    assert torch.equal(losses.gather(0, chosen[None])[0], losses.amin(0))
    assert len(chosen.unique()) == 3
    assert best_for_all(weight, specs) == specs[int(losses.sum(1).argmin())]
