"""GELU is the same function, whatever computes it."""

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu
from torch.nn.modules.module import register_module_forward_hook

from fewbit.formats import QTensor, Spec
from fewbit.kernels.choose import BACKENDS, VARIABLE
from fewbit.kernels.native import ops as native
from fewbit.layers.gelu import gelu_in_product, quick_gelu
from fewbit.layers.linear import QLinear
from fewbit.layers.swap import swap

HERE = [b.name for b in BACKENDS if b.why_not(torch.device("cpu")) is None]


def quick(approximate: str = "tanh") -> nn.GELU:
    module = nn.GELU(approximate)
    swap(module, quick_gelu)
    return module


@torch.no_grad()
@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 7), (2, 5, 64), (33_001,)])
def test_it_is_what_torch_gives(backend, dtype, shape, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend)
    x = (6 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    exact = gelu(x.double(), approximate="tanh")
    ours = quick()(x)
    assert (ours.dtype, ours.shape) == (dtype, x.shape)
    within = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(ours.double(), exact, rtol=within, atol=1e-6)


@torch.no_grad()
def test_it_asks_the_backend_for_no_more_than_it_has(monkeypatch):
    x = torch.randn(4, 8)
    monkeypatch.setattr(torch.ops.fewbit_native, "gelu", None)
    assert torch.equal(quick("none")(x), nn.GELU()(x))
    with torch.enable_grad():
        quick()(x.clone().requires_grad_()).sum().backward()


class Projected(nn.Module):
    """As diffusers' GELU."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))
        packed = QTensor.quantize(weight, Spec.parse("int8/row/fp32"))
        self.proj, self.approximate = QLinear(packed, torch.ones(24), None), "tanh"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return gelu(self.proj(x), approximate=self.approximate)


@torch.no_grad()
@pytest.mark.parametrize("backend", HERE)
def test_in_the_product_it_is_the_same_and_whoever_listens_hears_the_product(backend, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend)
    module, x, heard = Projected(), torch.randn(2, 5, 32), []
    own, product = module(x), module.proj(x)
    swap(module, gelu_in_product)
    torch.testing.assert_close(module(x), own, rtol=1e-5, atol=1e-6)
    module.proj.register_forward_hook(lambda _, given, result: heard.append(result))
    torch.testing.assert_close(module(x), own, rtol=1e-5, atol=1e-6)
    assert torch.equal(heard[0], product)


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
def test_rows_that_are_not_contiguous_and_numbers_that_are_none():
    x = torch.randn(64, 32).t()
    torch.testing.assert_close(native.gelu(x), gelu(x, approximate="tanh"), rtol=1e-5, atol=1e-6)
    assert native.gelu(torch.tensor([torch.nan, torch.inf, 1e30, -1e30])).tolist()[1:3] == [
        torch.inf,
        pytest.approx(1e30),
    ]
    assert native.gelu(torch.tensor([torch.nan])).isnan().all()


@torch.no_grad()
def test_who_listens_to_all_modules_hears_the_layer_inside() -> None:
    module, heard = Projected(), []
    swap(module, gelu_in_product)
    hook = register_module_forward_hook(lambda one, *_: heard.append(one))
    try:
        module(torch.ones(2, 32))
    finally:
        hook.remove()
    assert any(one is module.proj for one in heard)
