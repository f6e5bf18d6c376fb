import numpy as np
import pytest
import torch

from fewbit.errors import BadArgument
from fewbit.judge.moments import FeatureMoments


def features(count: int = 300, width: int = 7, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    rows = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return rows @ mixing + offset


@pytest.mark.parametrize("chunk", [1, 7, 64, 300])
def test_chunks_of_any_size_give_numpys_covariance(chunk):
    rows = features()
    moments = FeatureMoments(rows.shape[1])
    for part in rows.split(chunk):
        moments.add(part)
    found = moments.gaussian()
    np.testing.assert_allclose(found.mean, rows.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows.numpy(), rowvar=False), rtol=1e-11)
    assert found.count == 300


def test_a_large_mean_costs_no_digits():
    """Σx² - N·mean² would keep none: the squares are 1e16 times the variances."""
    moments = FeatureMoments(7)
    for part in features(offset=1e8).split(50):
        moments.add(part)
    plain = np.cov(features().numpy(), rowvar=False)
    np.testing.assert_allclose(moments.gaussian().covariance, plain, atol=1e-6 * plain.max())


def test_an_empty_chunk_changes_nothing():
    moments = FeatureMoments(2)
    moments.add(torch.empty(0, 2))
    moments.add(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    moments.add(torch.empty(0, 2))
    found = moments.gaussian()
    assert found.mean.tolist() == [2.0, 4.0]
    assert found.covariance.tolist() == [[2.0, 4.0], [4.0, 8.0]]


def test_the_covariance_is_exactly_symmetric():
    moments = FeatureMoments(7)
    moments.add(features())
    covariance = moments.gaussian().covariance
    assert torch.equal(covariance, covariance.T)


def test_one_picture_has_no_covariance():
    moments = FeatureMoments(2)
    moments.add(torch.ones(1, 2))
    with pytest.raises(BadArgument, match="at least 2 pictures, got 1"):
        moments.gaussian()
