"""A process that is killed in the middle of quantizing, and what is then left to be done."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from fewbit.calibration.stream import Step
from fewbit.engine import _Run
from fewbit.resume import Workdir

MOMENTS = {
    "written": (Workdir, "save"),
    "advanced": (Step, "advance"),
    "tuned": (Workdir, "save_tuned"),
}


def kill_at(moment, count, code, *folders):
    """Run `code`, which finds modules in `folders` too, until `moment` has come so many times."""
    places = [Path(__file__).parent, *folders, *sys.path]
    died = subprocess.run(
        [sys.executable, "-c", f"import killed\nkilled.die_at({moment!r}, {count})\n{code}"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))},
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()


def die_at(moment, count):
    target, name = MOMENTS[moment]
    before, calls = getattr(target, name), []

    def once(*arguments):
        result = before(*arguments)
        calls.append(None)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(target, name, once)


def blocks_solved(monkeypatch):
    """A list that grows with each block that is solved from now on."""
    solved, solve = [], _Run._solve

    def noted(run, block, *steps):
        solved.append(block)
        return solve(run, block, *steps)

    monkeypatch.setattr(_Run, "_solve", noted)
    return solved
