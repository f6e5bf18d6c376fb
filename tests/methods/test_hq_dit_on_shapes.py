"""What HQ-DiT gains on the shipped demo, measured on trajectories that calibration never saw.

Every claim is asserted with less than was measured: 4.4 dB over plain rounding as published and
1.1 dB more with a transform for each input, pictures that are 4.7 dB closer (64 of them: the mean
of 8 moves by 2 dB with the last bit of a product), and with outliers of 8 and 100 times the same as
without them, to 0.1 dB: smoothing undoes whatever scale a channel has, and is taken where it helps.
"""

import subprocess
import sys

import draw_shapes
import numpy as np
import pytest
from shapes_demo import mean_psnr

import fewbit
from fewbit.calibration import sample
from fewbit.demo import load
from fewbit.demo.outliers import with_outliers
from fewbit.judge.trajectory import trajectory_fidelity
from fewbit.pipelines.generate import generate

MANNER = {"steps": 25, "guidance": 2.5}


def pipeline(outliers=None):
    pipe = load("shapes")
    pipe.set_progress_bar_config(disable=True)
    if outliers:
        with_outliers(pipe.transformer, outliers, channels=4, seed=0)
    return pipe


@pytest.fixture(scope="module")
def reference():
    return pipeline()


@pytest.fixture(scope="module")
def calibration(reference):
    return sample(reference, samples=96, seed=0, **MANNER)


@pytest.fixture(scope="module")
def measured(reference, calibration):
    """A function: trajectory SQNR of a recipe, the pipeline and the report; each computed once."""
    rows = sample(reference, samples=64, seed=1000, **MANNER)
    known = {}

    def measure(recipe, outliers=None, **settings):
        key = recipe, outliers, *settings.items()
        if key not in known:
            pipe = pipeline(outliers)
            data = {} if recipe == "rtn" else {"calibration": calibration, **settings}
            report = fewbit.quantize(pipe, recipe, progress=False, **data)
            fidelity = trajectory_fidelity(reference.transformer, pipe.transformer, rows)
            known[key] = fidelity.sqnr, pipe, report
        return known[key]

    return measure


def test_the_noise_prediction_is_2_5_db_better_as_published_and_3_5_as_it_is(one_thread, measured):
    plain, published = measured("rtn")[0], measured("hq-dit", preset="published")[0]
    assert published > plain + 2.5
    assert measured("hq-dit")[0] > max(plain + 3.5, published + 0.3)


def test_a_fresh_process_draws_the_same_picture(one_thread, measured, tmp_path):
    pipe = measured("hq-dit")[1]
    fewbit.save(pipe, tmp_path / "shapes")
    command = [sys.executable, draw_shapes.__file__, tmp_path / "shapes", tmp_path / "drawn.npy"]
    subprocess.run(command, check=True)
    assert np.array_equal(np.load(tmp_path / "drawn.npy"), draw_shapes.draw(pipe))


def test_every_layer_gains(one_thread, measured):
    layers = [layer for layer in measured("hq-dit")[2].layers if layer.role != "adaln"]
    assert all(layer.gain_db > 0 for layer in layers)


def test_pictures_are_4_db_closer(one_thread, measured, reference):
    def psnr(pipe):
        return mean_psnr(exact, draw(pipe))

    def draw(pipe):
        return generate(pipe, seeds=range(64), together=16, **MANNER)

    exact = draw(reference)
    assert psnr(measured("hq-dit")[1]) > psnr(measured("rtn")[1]) + 4


@pytest.mark.parametrize("outliers", [8, 100])
def test_outliers_cost_less_than_1_db(one_thread, measured, outliers):
    assert measured("hq-dit", outliers)[0] > measured("hq-dit")[0] - 1
    assert not measured("hq-dit", outliers)[2].warnings


def test_mild_outliers_cost_plain_rounding_more(one_thread, measured):
    assert measured("hq-dit", 8)[0] > measured("rtn", 8)[0] + 3


def test_extreme_outliers_are_too_much_for_a_rotation_and_it_says_so(one_thread, measured):
    db, _, report = measured("hq-dit", 100, preset="published")
    assert db < measured("hq-dit", preset="published")[0] - 10
    for layer in ("attn1.to_q", "attn1.to_v", "attn1.to_out.0"):
        assert any(f"{layer} (" in warning for warning in report.warnings)
