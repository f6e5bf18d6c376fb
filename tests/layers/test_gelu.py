"""GELU is the same function, whatever computes it."""

import pytest
import torch
from torch.nn.functional import gelu

from fewbit.kernels.choose import BACKENDS, VARIABLE
from fewbit.kernels.native import ops as native
from fewbit.layers.gelu import QuickGelu

HERE = [b.name for b in BACKENDS if b.why_not(torch.device("cpu")) is None]


@torch.no_grad()
@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 7), (2, 5, 64), (33_001,)])
def test_it_is_what_torch_gives(backend, dtype, shape, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend)
    x = (6 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    exact = gelu(x.double(), approximate="tanh")
    with QuickGelu():
        ours = gelu(x, approximate="tanh")
    assert (ours.dtype, ours.shape) == (dtype, x.shape)
    within = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(ours.double(), exact, rtol=within, atol=1e-6)


@torch.no_grad()
def test_it_asks_the_backend_for_no_more_than_it_has(monkeypatch):
    x = torch.randn(4, 8)
    monkeypatch.setattr(torch.ops.fewbit_native, "gelu", None)
    with QuickGelu():
        assert torch.equal(gelu(x), torch.nn.GELU()(x))
        with torch.enable_grad():
            gelu(x.clone().requires_grad_(), approximate="tanh").sum().backward()


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
def test_rows_that_are_not_contiguous_and_numbers_that_are_none():
    x = torch.randn(64, 32).t()
    torch.testing.assert_close(native.gelu(x), gelu(x, approximate="tanh"), rtol=1e-5, atol=1e-6)
    assert native.gelu(torch.tensor([torch.nan, torch.inf, 1e30, -1e30])).tolist()[1:3] == [
        torch.inf,
        pytest.approx(1e30),
    ]
    assert native.gelu(torch.tensor([torch.nan])).isnan().all()
