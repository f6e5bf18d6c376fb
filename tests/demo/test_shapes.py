"""The shapes data set: the same picture for the same (seed, number), everywhere and always."""

import hashlib

import numpy as np
import pytest
import torch

from fewbit.demo import classifier, shapes
from fewbit.demo.counter import uniforms
from fewbit.demo.outlines import OUTLINES

PICTURE_10 = "f2bd89f21e421d2b49227e56b81f052117afdc0ac0721c83dbca83fdec787e10"


def test_a_picture_depends_only_on_seed_and_number():
    together = shapes.pictures(3, range(100))
    assert torch.equal(shapes.pictures(3, [99, 5]), together[[99, 5]])
    assert not torch.equal(shapes.pictures(4, [5]), together[[5]])
    assert len(together.flatten(1).unique(dim=0)) == 100


def test_the_bytes_of_one_picture_are_known():
    picture = shapes.pictures(0, [10])[0]
    assert picture.shape == (3, shapes.SIZE, shapes.SIZE)
    assert picture.dtype == torch.uint8
    assert hashlib.sha256(picture.numpy().tobytes()).hexdigest() == PICTURE_10


def test_no_picture_is_an_empty_tensor():
    assert shapes.pictures(0, []).shape == (0, 3, 64, 64)


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    shapes.pictures(0, range(12))
    assert torch.equal(torch.get_rng_state(), before)


def test_uniforms_look_uniform_and_unrelated():
    u = uniforms(1, np.arange(20_000), 4)
    assert u.min() >= 0
    assert u.max() < 1
    # Mean and correlation of 20,000 draws deviate by 1/sqrt(12 n) = 0.002 and 1/sqrt(n) = 0.007;
    # five deviations are allowed.
    assert np.abs(u.mean(0) - 0.5).max() < 0.010
    neighbours = np.concatenate([u[:-1], u[1:], uniforms(2, np.arange(19_999), 4)], 1)
    assert np.abs(np.corrcoef(neighbours.T) - np.eye(12)).max() < 0.035


@pytest.mark.parametrize("name", OUTLINES)
def test_an_outline_is_a_signed_distance_inside_its_disc(name: str):
    x, y = (torch.rand(2, 4000, generator=torch.Generator().manual_seed(0)).double() - 0.5) * 3
    distance = OUTLINES[name](x, y)
    assert (distance[torch.hypot(x, y) > 1.05] > 0).all()
    assert distance.min() < -0.15
    # No distance changes faster than one moves; 1e-12 is double rounding.
    moved = torch.hypot(x[1:] - x[:-1], y[1:] - y[:-1])
    assert (distance.diff().abs() <= moved + 1e-12).all()


def test_every_class_is_drawn_in_turn_and_recognised():
    index = range(480)
    label = shapes.labels(index)
    assert label.bincount().tolist() == [40] * 12
    seen = classifier()(shapes.as_float(shapes.pictures(991, index))).argmax(1)
    assert (seen == label).float().mean() >= 0.95
