"""What FP4DiT gains on the shipped demo, measured on trajectories that calibration never saw.

With a fraction of the default training, so that the suite stays quick: 40 steps of 8 rows for each
block, in float32, because a CPU without bf16 units multiplies bf16 many times slower.
`studies/fp4dit_forms.py` has the figures of longer training.
"""

import pytest
from shapes_demo import measurer

pytest.importorskip("diffusers")
SHORT = {"steps": 40, "batch": 8, "precision": "fp32"}


@pytest.fixture(scope="module")
def measured():
    """A function: trajectory SQNR with these settings."""
    measure = measurer()
    return lambda **settings: measure("fp4dit", **{**SHORT, **settings})[0]


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
