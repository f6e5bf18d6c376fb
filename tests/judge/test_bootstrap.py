import numpy as np
import pytest

from fewbit.judge.bootstrap import Interval, difference, interval


def test_of_many_normal_numbers_it_is_the_textbooks():
    values = np.random.default_rng(1).normal(20, 3, 400)
    found = interval(values.tolist())
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)  # 2000 resamples
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert interval(values.tolist()) == found


def test_it_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(2)
    hits = sum(interval(random.normal(0, 1, 60).tolist()).holds(0.0) for _ in range(100))
    assert 88 <= hits <= 99


def test_a_difference_pairs_the_seeds():
    worse = np.random.default_rng(3).normal(20, 5, 50)
    better = worse + 0.1  # far less than the spread over pictures
    assert difference(better.tolist(), worse.tolist()).low == pytest.approx(0.1)
    assert difference(worse.tolist(), worse.tolist()) == Interval(0.0, 0.0)
    assert difference(worse.tolist(), worse.tolist()).holds(0.0)
    assert not difference(better.tolist(), worse.tolist()).holds(0.0)
