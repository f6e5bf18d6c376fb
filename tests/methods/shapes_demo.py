"""The shipped demo as the tests of recipes use it."""

from statistics import fmean

import fewbit
from fewbit.calibration import sample
from fewbit.demo import load
from fewbit.judge.pixels import psnr
from fewbit.judge.reading import as_bytes
from fewbit.judge.trajectory import trajectory_fidelity

MANNER = {"steps": 25, "guidance": 2.5}


def pipeline():
    pipe = load("shapes")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def mean_psnr(reference, pictures):
    pairs = zip(map(as_bytes, reference), map(as_bytes, pictures), strict=True)
    return fmean(psnr(exact, drawn) for exact, drawn in pairs)


def measurer():
    """A function: trajectory SQNR of a recipe, on rows that it never saw, and its report; each
    computed once."""
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
