import math

import numpy as np
import pytest
import torch
from scipy import stats

from fewbit.judge.spread import BINS, EDGE, SpreadOfTokens


def of(*parts):
    spread = SpreadOfTokens()
    for part in parts:
        spread.add(part)
    return spread.spread()


def test_kurtosis_is_scipys_of_tokens_at_unit_size_however_they_come_in_chunks():
    x = torch.from_numpy(np.random.default_rng(0).standard_t(5, (3, 40, 32)))
    unit = x / x.square().mean(-1, keepdim=True).sqrt()
    expected = stats.kurtosis(unit.flatten().numpy())
    assert of(x).kurtosis == pytest.approx(expected, rel=1e-9)
    assert of(x[:1], x[1:]).kurtosis == pytest.approx(expected, rel=1e-9)
    assert of(1000 * x).kurtosis == pytest.approx(expected, rel=1e-9)


def test_every_value_is_in_a_bin_and_far_ones_are_in_the_outermost():
    row = torch.zeros(1, 400)
    row[0, 0], row[0, 1] = 1.0, -1.0  # at 14 root mean squares
    counts = of(row).counts
    assert len(counts) == BINS
    assert (counts[0], counts[-1], sum(counts)) == (1, 1, 400)
    assert math.sqrt(200) > EDGE


def test_without_values_there_is_no_kurtosis():
    assert math.isnan(of().kurtosis)
    assert math.isnan(of(torch.zeros(2, 8)).kurtosis)
