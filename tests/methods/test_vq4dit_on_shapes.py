"""What VQ4DiT gains on the shipped demo, measured on trajectories that calibration never saw.

With a fraction of the default training, so that the suite stays quick: 40 steps of 8 rows for each
block. `studies/vq4dit_candidates.py` has the figures of the default.
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
    """A function: trajectory SQNR of a recipe and its report; each computed once."""
    reference = pipeline()
    calibration = sample(reference, samples=64, seed=0, **MANNER)
    rows = sample(reference, samples=32, seed=1000, **MANNER)
    known = {}

    def measure(recipe, **settings):
        key = recipe, *settings.items()
        if key not in known:
            pipe = pipeline()
            data = {} if recipe == "rtn" else {"calibration": calibration}
            report = fewbit.quantize(pipe, recipe, progress=False, **data, **settings)
            fidelity = trajectory_fidelity(reference.transformer, pipe.transformer, rows)
            known[key] = fidelity.sqnr, report
        return known[key]

    return measure
