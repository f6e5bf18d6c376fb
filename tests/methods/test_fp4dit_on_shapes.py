"""What FP4DiT gains on the shipped demo, measured on trajectories that calibration never saw.

With a fraction of the default training, so that the suite stays quick: 40 steps of 8 rows for each
block. `studies/fp4dit_forms.py` has the figures of longer training.
"""

import pytest

import fewbit
from fewbit.calibration import sample
from fewbit.demo import load
from fewbit.evaluate.trajectory import trajectory_fidelity

pytest.importorskip("diffusers")
MANNER = {"steps": 25, "guidance": 2.5}
SHORT = {"steps": 40, "batch": 8}


def pipeline():
    pipe = load("shapes")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def measured():
    """A function: trajectory SQNR of settings; each computed once."""
    reference = pipeline()
    calibration = sample(reference, samples=64, seed=0, **MANNER)
    rows = sample(reference, samples=32, seed=1000, **MANNER)
    known = {}

    def measure(**settings):
        key = tuple(settings.items())
        if key not in known:
            pipe = pipeline()
            given = {"calibration": calibration, "progress": False, **SHORT, **settings}
            fewbit.quantize(pipe, "fp4dit", **given)
            known[key] = trajectory_fidelity(reference.transformer, pipe.transformer, rows).sqnr
        return known[key]

    return measure


def test_learned_rounding_is_2_db_better_than_plain(one_thread, measured):
    """Measured: 3.0 dB."""
    assert measured() > measured(steps=0) + 2


def test_floats_are_better_than_integers_of_as_many_bits(one_thread, measured):
    """Measured: 1.2 dB."""
    assert measured() > measured(preset="integer") + 0.6


def test_formats_by_error_are_better_than_by_role(one_thread, measured):
    """Measured: 2.8 dB."""
    assert measured() > measured(formats="role") + 1.5


def test_ranges_of_tokens_are_better_than_known_ones(one_thread, measured):
    """Measured: 1.9 dB."""
    assert measured() > measured(ranges="tensor") + 1
