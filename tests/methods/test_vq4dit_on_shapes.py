"""What VQ4DiT gains on the shipped demo, measured on trajectories that calibration never saw.

With a fraction of the default training, so that the suite stays quick: 40 steps of 8 rows for each
block, in float32, because a CPU without bf16 units multiplies bf16 many times slower.
`studies/vq4dit_candidates.py` has the figures of the default.
"""

import pytest
from shapes_demo import measurer

pytest.importorskip("diffusers")
SHORT = {"steps": 40, "batch": 8, "precision": "fp32"}
PLAIN = {"steps": 0, "weighted": False, "row_scales": False}


@pytest.fixture(scope="module")
def measured():
    return measurer()


def test_2_bits_are_6_db_above_plain_k_means(one_thread, measured):
    """Measured: 8.3 dB, and 12.6 for k-means itself."""
    assert measured("vq4dit", **SHORT)[0] > measured("vq4dit", **PLAIN)[0] + 6


def test_2_bits_are_far_above_uniform_int2(one_thread, measured):
    """Measured: 13.1 dB."""
    assert measured("vq4dit", **SHORT)[0] > measured("rtn", bits="w2", adaln="same")[0] + 10


def test_training_the_assignments_pays(one_thread, measured):
    """Measured: 1.7 dB over codebooks, scales and biases alone."""
    alone = measured("vq4dit", **SHORT, candidates=1)[0]
    assert measured("vq4dit", **SHORT)[0] > alone + 0.7


def test_3_bits_are_better_than_plain_e2m1_with_4(one_thread, measured):
    """Measured: 1.4 dB."""
    plain = measured("rtn", bits="w4a16", adaln="same")
    three = measured("vq4dit", **SHORT, bits="w3")
    assert three[0] > plain[0] + 0.4
    assert three[1].bytes < plain[1].bytes
