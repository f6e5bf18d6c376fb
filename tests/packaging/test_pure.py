"""The sources, installed where there is no compiler: pure Python does the work."""

import tarfile

from installed import made, only_installed, runs_as_installed

import fewbit
from fewbit.kernels.native import library

pytestmark = only_installed


def test_the_sources_hold_what_a_build_and_its_tests_need():
    stem = f"fewbit-{fewbit.__version__}"
    with tarfile.open(made("*.tar.gz")) as sources:
        names = {*sources.getnames()}
    needed = ("CMakeLists.txt", "LICENSE", "pyproject.toml", "tests/conftest.py", "Makefile")
    assert {f"{stem}/{name}" for name in needed} <= names
    assert f"{stem}/src/fewbit/kernels/native/csrc/api.cpp" in names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_without_a_compiler_pure_python_is_installed_and_says_so():
    assert runs_as_installed()
    assert not library.FILE.exists()
    assert "there was no C++ compiler" in str(library.why_not())


def test_a_quantized_demo_draws_in_pure_python():
    pipe = fewbit.demo.load("shapes")
    fewbit.quantize(pipe, "rtn:w8a8", progress=False)
    (image,) = pipe([0], num_inference_steps=1).images
    assert image.size == (64, 64)
