import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from fewbit.errors import BadArgument
from fewbit.judge.frechet import frechet_distance, refuse_too_few, sampling_bias
from fewbit.judge.moments import FeatureMoments, Gaussian


def gaussian(seed: int, width: int, rank: int | None = None, count: int | None = None) -> Gaussian:
    random = np.random.default_rng(seed)
    factor = random.standard_normal((width, rank or 2 * width)) / width**0.5
    mean = torch.from_numpy(random.standard_normal(width))
    return Gaussian(mean, torch.from_numpy(factor @ factor.T), count)


def by_sqrtm(one: Gaussian, other: Gaussian) -> float:
    root = sqrtm(one.covariance.numpy() @ other.covariance.numpy()).real
    apart = ((one.mean - other.mean) ** 2).sum().item()
    spread = np.trace(one.covariance.numpy() + other.covariance.numpy())
    return apart + spread - 2 * np.trace(root)


def sample_of(gaussian: Gaussian, count: int, seed: int) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, len(gaussian.mean), generator=generator, dtype=torch.float64)
    moments = FeatureMoments(len(gaussian.mean))
    moments.add(rows @ torch.linalg.cholesky(gaussian.covariance).T + gaussian.mean)
    return moments.gaussian()


@pytest.mark.parametrize("width", [1, 5, 60])
def test_it_is_that_of_scipys_matrix_root(width):
    for seed in range(4):
        one, other = gaussian(seed, width), gaussian(seed + 10, width)
        assert frechet_distance(one, other) == pytest.approx(by_sqrtm(one, other), rel=1e-6)


def test_diagonal_gaussians_have_a_closed_form():
    means, deviations = torch.tensor([[1.0, -2, 0], [4, 2, 0]]), torch.tensor([[1.0, 2, 3]] * 2)
    deviations[1] = torch.tensor([2.0, 2.0, 0.5])
    one, other = (
        Gaussian(mean.double(), torch.diag(deviation.double() ** 2), None)
        for mean, deviation in zip(means, deviations, strict=True)
    )
    expected = (9 + 16 + 0) + (1 + 0 + 6.25)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-12)


def test_it_is_a_distance():
    one, other = gaussian(0, 20), gaussian(1, 20)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-9)
    assert frechet_distance(one, other) > 1


def test_moving_and_turning_both_changes_nothing():
    one, other = gaussian(2, 12), gaussian(3, 12)
    turn = torch.linalg.qr(gaussian(4, 12).covariance).Q
    turned = [
        Gaussian(turn @ part.mean + 5, turn @ part.covariance @ turn.T, None)
        for part in (one, other)
    ]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(one, other), rel=1e-9)


@pytest.mark.parametrize("ranks", [(3, 3), (3, 40), (40, 3)])
def test_directions_without_extent_neither_add_nor_break(ranks):
    """In a plane the distance is that of the plane; scipy's root of such a product is unsafe."""
    width, rank = 40, min(ranks)
    small = gaussian(5, rank)
    frame = torch.linalg.qr(gaussian(6, width).covariance).Q[:, :rank]
    flat = Gaussian(frame @ small.mean, frame @ small.covariance @ frame.T, None)
    if ranks == (3, 3):
        other_small = gaussian(7, rank)
        other = Gaussian(frame @ other_small.mean, frame @ other_small.covariance @ frame.T, None)
        expected = by_sqrtm(small, other_small)
    else:
        other = Gaussian(torch.zeros(width).double(), torch.eye(width).double(), None)
        values = torch.linalg.eigvalsh(small.covariance)
        expected = float(small.mean @ small.mean + values.sum() + width - 2 * values.sqrt().sum())
    pair = (flat, other) if ranks[0] == 3 else (other, flat)
    assert frechet_distance(*pair) == pytest.approx(expected, rel=1e-6)


def test_sets_without_any_extent_differ_by_their_means():
    nothing = torch.zeros(4, 4).double()
    one, other = Gaussian(torch.zeros(4).double(), nothing, 9), Gaussian(torch.ones(4), nothing, 9)
    assert frechet_distance(one, other) == 4
    assert sampling_bias(one, other) == 0


def test_the_bias_is_what_two_samples_of_one_gaussian_show():
    """Mean of 40 distances between samples; its own deviation is about 2 %, the next order 5 %."""
    law = gaussian(8, 8)
    distances = [
        frechet_distance(sample_of(law, 400, 2 * seed), sample_of(law, 800, 2 * seed + 1))
        for seed in range(40)
    ]
    law_seen = Gaussian(law.mean, law.covariance, 400), Gaussian(law.mean, law.covariance, 800)
    assert sampling_bias(*law_seen) == pytest.approx(np.mean(distances), rel=0.1)


def test_endless_sets_have_no_bias_and_round_ones_the_one_of_the_sentence():
    law = gaussian(0, 5)
    assert sampling_bias(law, law) == 0
    round_one = Gaussian(torch.zeros(5).double(), 3 * torch.eye(5).double(), 10)
    endless = Gaussian(round_one.mean, round_one.covariance, None)
    assert sampling_bias(round_one, endless) == pytest.approx(15 * (5 + 5) / (4 * 10))


def test_too_few_pictures_are_told_the_minimum_and_the_bias():
    refuse_too_few(129, 128, "draw more")
    sentence = (
        "over 128 features needs at least 129 pictures, got 128.* up to 0.26 times.*draw more"
    )
    with pytest.raises(BadArgument, match=sentence):
        refuse_too_few(128, 128, "draw more")


def test_other_features_cannot_be_compared():
    with pytest.raises(BadArgument, match="cannot compare 3 features with 4"):
        frechet_distance(gaussian(0, 3), gaussian(0, 4))
