"""A process that is killed in the middle of quantizing, and what is then left to be done."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import fewbit.api
from fewbit.calibration.stream import Step
from fewbit.engine.run import _Run
from fewbit.engine.workdir import Workdir
from fewbit.storage.entries import Entries

MOMENTS = {
    "kept": (Entries, "write"),  # at first whose work it is, then calibration
    "written": (Workdir, "save"),
    "advanced": (Step, "advance"),
    "tuned": (Workdir, "save_tuned"),
    "saved": (fewbit.api, "write_card"),  # all of it, but not under its name
}


def kill_each(prepare, function, kills, folder):
    """Run function(place), for each kill (moment, count) in a process of its own, until `moment`
    has come so many times; the code `prepare` is run once for all of them. Returns their places."""
    places = {kill: folder / "-".join(map(str, kill)) for kill in kills}
    cases = [(*kill, str(place)) for kill, place in places.items()]
    ended = python(f"import killed\n{prepare}\nkilled.fork_each({function}, {cases!r})")
    assert ended.returncode == 0, ended.stderr.decode()
    return places


def fork_each(function, cases):
    for moment, count, place in cases:
        child = os.fork()
        if child == 0:
            die_at(moment, count)
            function(place)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"{moment} came less than {count} times"


def python(code):
    return subprocess.run(_command(code), capture_output=True, env=_environment())


def running(code, *folders):
    """A process that is at work while this one goes on; what it prints is to be read from it."""
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    return subprocess.Popen(_command(code), env=_environment(*folders), **pipes)


def _command(code):
    return [sys.executable, "-c", code]


def _environment(*folders):
    places = [Path(__file__).parent, *folders, *sys.path]
    changed = {"PYTHONPATH": os.pathsep.join(map(str, places)), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **changed}


def die_at(moment, count):
    target, name = MOMENTS[moment]
    before, calls = getattr(target, name), []

    def once(*arguments, **named):
        result = before(*arguments, **named)
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
