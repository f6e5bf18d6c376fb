"""Prepared operations: cheap to call, safe to share, the same results as torch's operators."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from fewbit.errors import BadArgument
from fewbit.formats import FORMATS
from fewbit.kernels.native import ops as native
from fewbit.kernels.values import Rotation
from fewbit.transforms.hadamard import Hadamard

if not native.available():
    pytest.skip(f"no native kernels: {native.why_not()}", allow_module_level=True)

E2M1 = FORMATS["e2m1"]
K, N = 96, 70


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    torch.manual_seed(0)


def rotation() -> Rotation:
    hadamard = Hadamard(K, None, 3)
    return Rotation(hadamard.signs(), tuple(hadamard.matrices()))


def weight() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    codes = torch.randint(0, 16, (N, K), dtype=torch.uint8)
    return native.pack_codes(codes, E2M1), torch.rand(N, 1), torch.randn(N)


def vectors() -> tuple[torch.Tensor, ...]:
    assignments = torch.randint(0, 64, (N, K // 4), dtype=torch.uint8)
    return assignments, torch.randn(64, 4), torch.rand(N, 1), torch.randn(N)


def forward(rows: native.Rows, linear: native.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: linear(*rows(x), torch.float32)


def python_calls(run: Callable[[], Any]) -> int:
    """Of Python functions, `run` itself not counted."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_python_functions_are_called(dtype):
    x, (shift, scale) = torch.randn(2, 5, K).to(dtype), torch.randn(2, 2, K)
    plain, rotated = native.Rows(E2M1), native.Rows(E2M1, rotation())
    assert python_calls(lambda: plain(x)) <= 5
    assert python_calls(lambda: rotated(x, shift, scale, 1e-6)) <= 5
    linear, (codes, by_row) = native.Linear(*weight()), plain(x)
    gate, residual = torch.randn(2, N), torch.randn(10, N).to(dtype)
    assert python_calls(lambda: linear(codes, by_row, dtype, gelu=True)) <= 7
    assert python_calls(lambda: linear(codes, by_row, dtype, gate=gate, residual=residual)) <= 7
    rows = x.view(10, K)
    for floats in (native.FloatLinear(*weight()), native.VectorLinear(*vectors())):
        assert python_calls(lambda floats=floats: floats(rows, dtype)) <= 7


def test_they_are_what_the_operators_are():
    x, (shift, scale), r = torch.randn(2, 5, K), torch.randn(2, 2, K), rotation()
    codes, by_row = native.Rows(E2M1, r)(x, shift, scale, 1e-6)
    expected = native.modulate_quantize_rows(x, shift, scale, 1e-6, E2M1, r)
    assert torch.equal(codes, expected[0])
    assert torch.equal(by_row, expected[1])
    packed, weight_scales, bias = weight()
    y = native.Linear(packed, weight_scales, bias)(codes, by_row, torch.bfloat16)
    half = native.linear(codes, by_row, packed, weight_scales, bias, out_dtype=torch.bfloat16)
    assert torch.equal(y, half)
    rows = x.view(10, K)
    y = native.FloatLinear(packed, weight_scales)(rows, torch.float32)
    assert torch.equal(y, native.float_linear(rows, packed, weight_scales))
    given = vectors()
    y = native.VectorLinear(*given)(rows, torch.float32)
    assert torch.equal(y, native.vector_linear(rows, *given))


def test_threads_may_share_them():
    layer = native.Rows(E2M1, rotation()), native.Linear(*weight())
    inputs = [torch.randn(m, K) for m in range(1, 40)]
    expected = list(map(forward(*layer), inputs))
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert all(map(torch.equal, pool.map(forward(*layer), inputs), expected))


def test_inputs_of_no_size_never_reach_the_library(monkeypatch):
    linear, floats, codebook = (
        native.Linear(*weight()),
        native.FloatLinear(*weight()),
        native.VectorLinear(*vectors()),
    )
    rows = native.Rows(E2M1)
    monkeypatch.setattr("fewbit.kernels.native.prepared.functions", None)
    monkeypatch.setattr(linear, "_run", None)
    monkeypatch.setattr(rows, "_run", None)
    codes, by_row = rows(torch.empty(2, 0, K))
    assert (codes.shape, by_row.shape) == ((0, K), (0, 1))
    assert linear(codes, by_row, torch.float32).shape == (0, N)
    assert floats(torch.empty(0, K), torch.bfloat16).shape == (0, N)
    assert codebook(torch.empty(0, K), torch.bfloat16).shape == (0, N)
    assert rows(torch.empty(3, 0))[1].tolist() == [[E2M1.step]] * 3


def test_what_does_not_fit_is_refused_as_early_as_it_is_known():
    packed, scales, bias = weight()
    for make in (native.Linear, native.FloatLinear):
        with pytest.raises(BadArgument, match="another shape"):
            make(packed, torch.ones(N + 1, 1))
        with pytest.raises(BadArgument, match="as many biases"):
            make(packed, scales, bias[1:])
        for groups in (0, 5):
            with pytest.raises(BadArgument, match="multiples of 8"):
                make(packed, torch.ones(N, groups))
    with pytest.raises(BadArgument, match="another shape"):
        native.FloatLinear(packed, scales)(torch.ones(2, K - 8), torch.float32)
    assignments, codebook, *_ = vectors()
    with pytest.raises(BadArgument, match="beyond the 9 entries"):
        native.VectorLinear(assignments, codebook[:9])
    with pytest.raises(BadArgument, match="do not make 88 columns"):
        native.VectorLinear(assignments, codebook)(torch.ones(2, K - 8), torch.float32)
    r = rotation()
    with pytest.raises(BadArgument, match="are not rotated by blocks"):
        native.Rows(E2M1, Rotation(r.signs[1:], r.matrices))
    with pytest.raises(BadArgument, match="88 columns are not rotated by blocks of 96"):
        native.Rows(E2M1, r)(torch.ones(2, K - 8))
