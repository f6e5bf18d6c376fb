"""Whatever way attention takes, it is attention."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fewbit.kernels.choose import BACKENDS, VARIABLE
from fewbit.layers.quick_attention import attention, quick_attention
from fewbit.layers.swap import answer_of, swap, swap_back
from fewbit.models.fused_attention import AttentionCall

HERE = [b.name for b in BACKENDS if b.why_not(torch.device("cpu")) is None]


def made(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "keys"), [(16, 16), (64, 20), (1, 1), (0, 8)])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_what_torch_gives(backend, dtype, tokens, keys, masked, monkeypatch):
    """float32 to its roundings; bfloat16 to four of its own, of scores, weights and result."""
    monkeypatch.setenv(VARIABLE, backend)
    q, k, v = (made(2, 3, n, 24, seed=n, dtype=dtype) for n in (tokens, keys, keys))
    mask = made(2, 1, tokens, keys, seed=9, dtype=dtype) if masked else None
    exact = scaled_dot_product_attention(
        q.double(), k.double(), v.double(), None if mask is None else mask.double()
    )
    ours = attention(AttentionCall(q, k, v, mask))
    assert ours.dtype == dtype
    assert ours.shape == exact.shape
    allowed = 1e-5 if dtype == torch.float32 else 4 * 2.0**-8
    assert not ours.numel() or (ours.double() - exact).abs().max() <= allowed * v.abs().max()


@torch.no_grad()
def test_what_is_asked_beyond_it_is_torchs():
    q = made(1, 2, 8, 16, seed=0)
    for asked in ({"is_causal": True}, {"scale": 0.5}):
        ours = attention(AttentionCall(q, q, q, **asked))
        assert torch.allclose(ours, scaled_dot_product_attention(q, q, q, **asked), atol=1e-6)


class Attending(nn.Module):
    def forward(self, q: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, q, q)


def test_a_module_asks_the_backend_unless_it_is_derived(monkeypatch):
    module, asked = Attending(), []
    monkeypatch.setenv(VARIABLE, "reference")
    reference = next(b for b in BACKENDS if b.name == "reference")
    own = type(reference).attention
    monkeypatch.setattr(
        type(reference), "attention", lambda *given: (asked.append(1), own(*given))[1]
    )
    q = made(1, 2, 8, 16, seed=0).requires_grad_()
    swap(module, quick_attention)
    module(q).sum().backward()
    assert not asked
    assert q.grad is not None
    with torch.no_grad():
        assert torch.equal(module(q), Attending()(q))
    assert len(asked) == 1
    assert isinstance(module, Attending)
    assert answer_of(module) is quick_attention
    swap_back(module)
    assert type(module) is Attending


@torch.no_grad()
def test_under_autocast_torch_brings_operands_to_one_dtype():
    class Mixed(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            return scaled_dot_product_attention(q, q.bfloat16(), q.bfloat16())

    module = Mixed()
    swap(module, quick_attention)
    q = made(1, 2, 8, 16, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(q), Mixed()(q))
