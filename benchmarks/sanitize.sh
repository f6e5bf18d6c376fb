#!/usr/bin/env bash
# The native kernels' tests, shape fuzz included, on a library built with ASan and UBSan.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
cp -r CMakeLists.txt pyproject.toml src tests "$build"
cd "$build"
cmake -S . -B build -DFEWBIT_SANITIZE=ON >build.log
cmake --build build >>build.log
# Python and torch leak on purpose, and OpenMP's pool outlives its users; a forked child is left out,
# because the sanitizer's own threads are not in it.
export LD_PRELOAD=$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so)
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
export OMP_NUM_THREADS=1 PYTHONPATH=src PYTHONMALLOC=malloc
exec "$python" -m pytest -q tests/kernels/test_native.py tests/kernels/test_prepared.py --deselect \
    tests/kernels/test_native.py::test_threads_are_torchs_and_a_forked_child_does_not_wait_for_them \
    --deselect tests/kernels/test_native.py::test_compiles_into_one_graph "$@"
