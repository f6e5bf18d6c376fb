"""The wheel: what is in it, and that it runs with the one OpenMP runtime of torch."""

import re
import sys
from email.parser import Parser
from zipfile import ZipFile

import pytest
from installed import made, only_installed, runs_as_installed

import fewbit
from fewbit.kernels.native import library

pytestmark = only_installed
MOST_BYTES = 25_000_000


@pytest.fixture(scope="module")
def listing() -> list[str]:
    return ZipFile(made("*.whl")).namelist()


def test_the_wheel_is_small_and_of_a_tag_that_an_index_takes():
    wheel = made("*.whl")
    assert wheel.stat().st_size <= MOST_BYTES
    assert re.search(r"-py3-none-(manylinux_2_\d+|macosx|win)_\w+\.whl$", wheel.name)


def test_the_wheel_holds_the_run_time_and_the_two_demos_alone(listing):
    tops = {name.split("/")[0] for name in listing}
    assert tops == {"fewbit", f"fewbit-{fewbit.__version__}.dist-info"}
    demos = {name.split("/")[3] for name in listing if name.startswith("fewbit/demo/assets/s")}
    assert demos == {"shapes", "scenes"}
    assert {"fewbit/py.typed", "fewbit/pages/page.css", "fewbit/kernels/native/_native.so"} <= {
        *listing
    }
    assert not [name for name in listing if re.search(r"csrc|\.cpp$|\.pyc$|gomp", name)]


def test_the_metadata_is_whole():
    wheel = ZipFile(made("*.whl"))
    (file,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    told = Parser().parsestr(wheel.read(file).decode())
    assert told["Version"] == fewbit.__version__
    assert (told["License-Expression"], told["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    assert {*told.get_all("Provides-Extra", [])} == {"diffusers", "lora", "eval", "dev", "docs"}
    assert told.get_payload().startswith("# fewbit")
    assert len(told.get_all("Classifier", [])) > 9


def test_the_installed_wheel_runs_native_code():
    assert runs_as_installed()
    assert library.why_not() is None


@pytest.mark.skipif(sys.platform != "linux", reason="Linux lists what a process has loaded")
def test_torch_and_the_library_have_one_openmp_runtime():
    library.functions()
    with open("/proc/self/maps") as maps:
        loaded = {line.split()[-1] for line in maps if re.search(r"lib[gi]?omp", line)}
    assert len(loaded) == 1, loaded
