import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from fewbit.errors import BadArgument
from fewbit.judge.inception_score import InceptionScore


def probabilities(count: int = 90, classes: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(count, classes, generator=generator, dtype=torch.float64)).softmax(1)


def by_scipy(rows: np.ndarray) -> float:
    """The definition: exp of the mean divergence of each p from the mean p."""
    return float(np.exp(np.mean([entropy(row, rows.mean(0)) for row in rows])))


def scored(rows: torch.Tensor, chunk: int, split: int = 5000) -> float:
    score = InceptionScore(rows.shape[1], split)
    for part in rows.split(chunk):
        score.add(part)
    return score.value()


@pytest.mark.parametrize("chunk", [1, 8, 90])
def test_it_is_that_of_the_definition(chunk):
    rows = probabilities()
    assert scored(rows, chunk) == pytest.approx(by_scipy(rows.numpy()), rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 32, 90])
def test_splits_are_scored_apart(chunk):
    rows = probabilities()
    parts = [by_scipy(part) for part in (rows[:40].numpy(), rows[40:80].numpy(), rows[80:].numpy())]
    assert scored(rows, chunk, split=40) == pytest.approx(np.mean(parts), rel=1e-12)


def test_certainty_of_all_classes_counts_them_and_indecision_is_one():
    sure = torch.eye(4, dtype=torch.float64).repeat(3, 1)
    assert scored(sure, 5) == pytest.approx(4, rel=1e-12)
    assert scored(torch.full((7, 4), 0.25), 7) == pytest.approx(1, rel=1e-12)
    assert scored(sure[:1].repeat(5, 1), 5) == pytest.approx(1, rel=1e-12)
    assert math.isfinite(scored(sure, 1))


def test_nothing_has_no_score():
    with pytest.raises(BadArgument, match="at least 1 picture, got 0"):
        InceptionScore(3).value()
