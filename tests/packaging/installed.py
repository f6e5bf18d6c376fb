"""What `make wheel` has made and installed in a fresh environment."""

import os
import shutil
import sysconfig
from pathlib import Path

import pytest

import fewbit

DIST = os.environ.get("FEWBIT_DIST")
only_installed = pytest.mark.skipif(not DIST, reason="make wheel installs what these tests look at")


def made(pattern: str) -> Path:
    (file,) = Path(str(DIST)).glob(pattern)
    return file


def runs_as_installed() -> bool:
    """The package of the environment runs, and nothing could have compiled it anew."""
    place = Path(fewbit.__file__).parent.parent
    compilers = map(shutil.which, ("c++", "g++", "clang++", "gcc", "cc"))
    return place == Path(sysconfig.get_path("platlib")) and not any(compilers)
