"""QAttention: the fused attention's own result where nothing is rounded, in every module."""

import pytest
import tiny_transformers as tiny
import torch
import torch.nn.functional as F
from torch import nn

from fewbit.activations.activation import Activation
from fewbit.activations.clock import Clock, TimeBins
from fewbit.activations.dynamic import Dynamic
from fewbit.activations.multi_region import MultiRegion
from fewbit.activations.static import Static
from fewbit.errors import BadModel
from fewbit.formats import Spec
from fewbit.kernels.choose import BACKENDS, VARIABLE
from fewbit.kernels.native import ops as native
from fewbit.layers.attention import (
    QAttention,
    attention_weights,
    masked_softmax,
    quantize_attention,
    quantized_attentions,
    restore_attention,
)
from fewbit.layers.dequantize import dequantize_layers
from fewbit.models.families.original_dit import SelfAttention
from fewbit.models.fused_attention import AttentionCall

CPU = torch.device("cpu")


class Exact(Activation):
    def forward(self, x):
        return x.float()


def exact() -> QAttention:
    return QAttention(*(Exact() for _ in range(4)))


def static(step: float) -> QAttention:
    spec = Spec.parse("int8/tensor/fp32")
    return QAttention(
        *(Static(spec, torch.tensor([[step]]), TimeBins(torch.zeros(1))) for _ in range(4))
    )


def operands(dtype=torch.float32):
    random = torch.Generator().manual_seed(0)
    shapes = (2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)
    return [torch.randn(shape, generator=random).to(dtype) for shape in shapes]


MASKS = {
    "none": None,
    "bool": (torch.arange(7) < 4)[None, None, None],
    "numbers": torch.where(torch.arange(7) < 4, 0.0, -1e4)[None, None, None],
    "blind": (torch.arange(7) < 4) & (torch.arange(5) < 3)[:, None],  # two queries see no key
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_unrounded_it_is_the_fused_attention(mask, scale):
    q, k, v = operands()
    found = exact()(AttentionCall(q, k, v, MASKS[mask], scale=scale))
    fused = F.scaled_dot_product_attention(q, k, v, MASKS[mask], scale=scale)
    double = [x.double() for x in (q, k, v)]
    mask_double = MASKS[mask].double() if mask == "numbers" else MASKS[mask]
    true = F.scaled_dot_product_attention(*double, mask_double, scale=scale)
    # Twice the error of torch's own float32 kernel, and a few last bits.
    assert (found - true).abs().max() <= 2 * (fused - true).abs().max() + 1e-6


@pytest.mark.parametrize("infinite", [False, True])
def test_a_query_that_sees_no_key_gets_zeros_and_gradients_of_zero(infinite):
    scores = torch.randn(2, 3, 5, 7, requires_grad=True)
    numbers = torch.zeros(5, 7).masked_fill(~MASKS["blind"], -torch.inf)
    found = masked_softmax(scores, numbers if infinite else MASKS["blind"])
    assert not found[..., 3:, :].any()
    torch.testing.assert_close(found[..., :3, :4], scores[..., :3, :4].softmax(-1))
    (found * torch.randn(7)).sum().backward()
    assert not scores.grad[..., 3:, :].any()
    assert scores.grad[..., :3, :4].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_result_has_the_dtype_of_the_query(dtype):
    assert exact()(AttentionCall(*operands(dtype))).dtype == dtype


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("backend", [b.name for b in BACKENDS if b.why_not(CPU) is None])
def test_shares_of_two_regions_are_rounded_alike_by_every_backend(mask, backend, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend)
    q, k, v = operands()
    bins, steps = TimeBins(torch.zeros(1)), torch.tensor([0.001, 1 / 128])[:, None, None]
    shares = MultiRegion(Spec.parse("uint8/tensor/fp32"), "unit", steps, bins)
    found = QAttention(Exact(), Exact(), shares, Exact())(AttentionCall(q, k, v, MASKS[mask]))
    by_hand = shares(attention_weights(q, k, MASKS[mask], None)) @ v
    with torch.no_grad():
        fused = QAttention(Exact(), Exact(), shares, Exact())(AttentionCall(q, k, v, MASKS[mask]))
    for one in (found, fused):
        torch.testing.assert_close(one, by_hand, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", [b.name for b in BACKENDS if b.why_not(CPU) is None])
def test_images_that_were_laid_side_by_side_keep_the_regions_of_their_time(backend, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend)
    q, k, v = (torch.cat([x, x.flip(0)]) for x in operands())
    bins, steps = TimeBins(torch.tensor([0.0, 100.0])), torch.rand(2, 2, 1) / 100
    bins.clock = Clock("t", 0)
    bins.clock.read(bins, (torch.tensor([100, 0]),), {})
    shares = MultiRegion(Spec.parse("uint8/tensor/fp32"), "unit", steps, bins)
    with torch.no_grad():
        found = QAttention(Exact(), Exact(), shares, Exact())(AttentionCall(q, k, v))
    by_hand = shares(attention_weights(q, k, None, None)) @ v
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=0)


@pytest.mark.skipif(not native.has_attention(torch.float32), reason="there is no such kernel")
@pytest.mark.parametrize("regions", [True, False])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("heads", [1, 2])
def test_native_code_rounds_all_operands_on_their_way(heads, times, regions, monkeypatch):
    bins = TimeBins(torch.arange(times) * 100.0)
    bins.clock = Clock("t", 0)
    bins.clock.read(bins, (torch.tensor([90, 10, 120]),), {})
    steps = torch.rand(4, times, heads, generator=torch.Generator().manual_seed(0)) / 9 + 0.02
    q, k, v = (Static(Spec.parse("int8/tensor/fp32"), one, bins) for one in steps[:3])
    unit = torch.tensor([1e-3, 1 / 128]).view(2, 1, 1).repeat(1, times, 1)
    shares = MultiRegion(Spec.parse("uint8/tensor/fp32"), "unit", unit, bins)
    matmuls = QAttention(q, k, shares if regions else None, v)
    given = AttentionCall(*(4 * torch.randn(3, 6, 2, 5, 8)))  # two images at each time
    with torch.no_grad():
        monkeypatch.setenv(VARIABLE, "reference")
        expected = matmuls(given)
        monkeypatch.setenv(VARIABLE, "native")
        monkeypatch.setattr("fewbit.layers.attention._rounded", None)
        found = matmuls(given)
    error = (found - expected).abs()
    if regions:  # a share in the very middle of two levels may become either
        assert (error > 1e-4).float().mean() < 0.05
        assert error.max() <= 2 / 128 * given.value.abs().max()
    else:
        assert error.max() <= 1e-4


@pytest.mark.skipif(not native.has_attention(torch.float32), reason="there is no such kernel")
@pytest.mark.parametrize("name", ["e2m3", "int8"])
def test_native_code_rounds_each_row_on_its_way(name, monkeypatch):
    spec = Spec.parse(f"{name}/row/fp32")
    matmuls = QAttention(Dynamic(spec), Dynamic(spec), None, Dynamic(spec))
    given = AttentionCall(*operands())
    with torch.no_grad():
        monkeypatch.setenv(VARIABLE, "reference")
        expected = matmuls(given)
        monkeypatch.setenv(VARIABLE, "native")
        monkeypatch.setattr("fewbit.layers.attention._rounded", None)
        torch.testing.assert_close(matmuls(given), expected, rtol=1e-5, atol=1e-5)


def test_operands_of_several_kinds_are_rounded_one_after_the_other():
    spec, (q, k, v) = Spec.parse("int8/row/fp32"), operands()
    mixed = QAttention(Dynamic(spec), Exact(), None, Dynamic(spec))
    with torch.no_grad():
        rounded = [spec.round(x.reshape(-1, 8)).view(x.shape) for x in (q, v)]
        expected = F.scaled_dot_product_attention(rounded[0], k, rounded[1])
        torch.testing.assert_close(mixed(AttentionCall(q, k, v)), expected)


def test_all_four_operands_are_rounded():
    q, k, v = operands()
    r = [(x / 0.25).round().clamp(-128, 127) * 0.25 for x in (q, k, v)]
    shares = (r[0] @ r[1].mT * 8**-0.5).softmax(-1)
    assert torch.equal(static(0.25)(AttentionCall(q, k, v)), (shares / 0.25).round() * 0.25 @ r[2])


@pytest.mark.parametrize("how", ["is_causal", "enable_gqa"])
def test_what_no_transformer_of_diffusion_does_is_refused(how):
    with pytest.raises(BadModel, match='allowed: attention="skip"'):
        exact()(AttentionCall(*operands(), **{how: True}))


class Foreign(nn.Module):
    """Somebody's own module: the call is in a helper."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        return attend(*self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4))


def attend(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def modules():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"original": SelfAttention(16, 2), "foreign": Foreign()}


@pytest.mark.parametrize("name", ["original", "foreign"])
def test_a_module_uses_it_until_it_is_restored(name):
    module, x = modules()[name], torch.randn(2, 6, 16)
    before, cls = module(x), type(module)
    quantize_attention(module, static(0.25))
    assert not torch.equal(module(x), before)
    assert isinstance(module, cls)
    assert len(quantized_attentions(module)) == 1
    restore_attention(module)
    assert torch.equal(module(x), before)
    assert type(module) is cls
    assert not quantized_attentions(module)


@pytest.mark.parametrize("name", ["original", "foreign"])
def test_the_classs_own_forward_left_behind_hinders_neither_way(name):
    """As accelerate leaves it when its hooks are taken away."""
    module, x = modules()[name], torch.randn(2, 6, 16)
    before = module(x)
    module.forward = module.forward
    quantize_attention(module, static(0.25))
    assert not torch.equal(module(x), before)
    module.forward = module.forward
    restore_attention(module)
    assert torch.equal(module(x), before)


@pytest.mark.parametrize("name", ["original", "foreign"])
def test_dequantizing_refuses_a_forward_that_was_put_there_since(name):
    """It would go on asking for the quantized matmuls."""
    module, x = modules()[name], torch.randn(2, 6, 16)
    model, before = nn.Sequential(module), module(x)
    quantize_attention(module, static(0.25))
    model.fewbit, asking = None, module.forward
    module.forward = lambda *args, **kwargs: asking(*args, **kwargs)
    with pytest.raises(BadModel, match=r"^0 has a forward of its own.*before dequantizing"):
        dequantize_layers(model)
    assert quantized_attentions(model)
    del module.forward
    dequantize_layers(model)
    assert torch.equal(module(x), before)


@pytest.mark.parametrize("name", ["original", "foreign"])
def test_a_forward_of_the_instance_is_refused_before_and_honoured_after(name):
    module, x, calls = modules()[name], torch.randn(2, 6, 16), []

    def noted(before):
        def forward(*args, **kwargs):
            calls.append(None)
            return before(*args, **kwargs)

        return forward

    module.forward = put = noted(module.forward)
    with pytest.raises(BadModel, match=r"forward of its own.*take it away before.*skip"):
        quantize_attention(module, static(0.25))
    assert module.forward is put
    assert not quantized_attentions(module)
    del module.forward
    quantize_attention(module, static(0.25))
    expected = module(x)
    module.forward = noted(module.forward)
    assert torch.equal(module(x), expected)
    assert len(calls) == 1


@pytest.mark.parametrize("name", tiny.NAMES)
def test_attention_of_diffusers_is_reached(name):
    model = tiny.make(name)
    before = tiny.run(model)
    attentions = [m for m in model.modules() if hasattr(m, "to_q")]
    for module in attentions:
        quantize_attention(module, exact())
    assert torch.allclose(tiny.run(model), before, atol=1e-5)  # another order of float32 sums
    for module in attentions:
        restore_attention(module)
        quantize_attention(module, static(0.5))
    assert not torch.allclose(tiny.run(model), before, atol=1e-3)


@pytest.mark.parametrize("name", ["original", "foreign"])
def test_a_compiled_module_gives_the_same(name):
    module, x = modules()[name], torch.randn(2, 6, 16)
    quantize_attention(module, static(0.25))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), module(x))


def test_a_module_that_stops_asking_says_so():
    class Silent(nn.Module):
        def forward(self, x):
            return x

    module = Silent()
    quantize_attention(module, exact())
    with pytest.raises(BadModel, match="Silent called scaled_dot_product_attention 0 times"):
        module(torch.zeros(1))
