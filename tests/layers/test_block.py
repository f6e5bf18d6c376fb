"""A block in few passes is the same block, and what it does not know it leaves alone."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fewbit
from fewbit.engine.decibel import sqnr
from fewbit.kernels.choose import BACKENDS, VARIABLE
from fewbit.layers.block import quick_blocks
from fewbit.layers.linear import QLinear
from fewbit.layers.quick_attention import QuickAttention

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")

import tiny_transformers as tiny  # noqa: E402

KNOWN = ("DiTTransformer2DModel", "PixArtTransformer2DModel")
HERE = [b.name for b in BACKENDS if b.why_not(torch.device("cpu")) is None]


def replaced(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if "forward" in vars(module)]


def spread(model: nn.Module) -> nn.Module:
    """Away from the zeros and ones that gates and biases begin with."""
    generator = torch.Generator().manual_seed(5)
    for name, tensor in model.named_parameters():
        if tensor.dim() == 1 or "table" in name:
            tensor.data += 0.3 * torch.randn(tensor.shape, generator=generator)
    return model


def quantized(name: str, recipe: str = "rtn", **asked: Any) -> Any:
    model = spread(tiny.make(name))
    fewbit.quantize(model, recipe, progress=False, **asked)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("bits", ["w4a4", "w8a8", "w4a16", "nvfp4"])
def test_it_is_the_blocks_own_forward(name: str, backend: str, bits: str, monkeypatch: Any) -> None:
    """In float32 only the order of a layer norm's sums differs, which no input here makes a level
    out of: 80 dB are a few roundings, a wrong shift, gate or residual leaves less than 20."""
    monkeypatch.setenv(VARIABLE, backend)
    model = quantized(name, bits=bits)
    own = tiny.run(model)
    with quick_blocks(model):
        assert len(replaced(model)) == 2
        ours = tiny.run(model)
    assert not replaced(model)
    assert ours.dtype == own.dtype
    assert sqnr(own, ours) > 80


@torch.no_grad()
@pytest.mark.parametrize("name", KNOWN)
def test_every_backend_gives_what_the_definition_gives(name: str, monkeypatch: Any) -> None:
    """The integers of inputs are; attention and GELU are so to their last bits, so that a value
    between two levels may go the other way."""
    model = quantized(name)
    found = {}
    for backend in HERE:
        monkeypatch.setenv(VARIABLE, backend)
        with quick_blocks(model), QuickAttention():
            found[backend] = tiny.run(model)
    assert all(sqnr(found["reference"], ours) > 45 for ours in found.values())


@torch.no_grad()
@pytest.mark.parametrize("name", KNOWN)
def test_in_half_precision_it_is_as_near_to_full_as_the_definition(name: str, tmp_path) -> None:
    exact = tiny.run(tiny.make(name))
    model = tiny.in_dtype(torch.bfloat16, tmp_path, name)
    fewbit.quantize(model, "rtn", bits="w8a8", progress=False)
    own = tiny.run(model, torch.bfloat16)
    with quick_blocks(model):
        ours = tiny.run(model, torch.bfloat16)
    assert not torch.equal(own, ours)
    assert sqnr(exact, ours) > sqnr(exact, own) - 0.05


@torch.no_grad()
def test_rotation_and_smoothing_come_after_the_modulation() -> None:
    data = [_inputs(seed) for seed in range(4)]
    model = quantized(
        "DiTTransformer2DModel", "hq-dit", calibration=data, transform="all", gptq=False
    )
    own = tiny.run(model)
    with quick_blocks(model):
        assert len(replaced(model)) == 2
        assert sqnr(own, tiny.run(model)) > 60


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([100 * seed, 100 * seed]),
        "class_labels": torch.tensor([seed, 1000]),
    }


def test_unknown_blocks_keep_their_own_forward() -> None:
    from diffusers.models.attention_processor import AttnProcessor

    whole = tiny.make()
    foreign = tiny.quantized("HunyuanDiT2DModel")
    one_kept = tiny.quantized()
    one_kept.transformer_blocks[1].attn1.to_q = nn.Linear(64, 64)
    chunked = tiny.quantized()
    chunked.transformer_blocks[0].set_chunk_feed_forward(2)
    other = tiny.quantized()
    other.transformer_blocks[0].attn1.set_processor(AttnProcessor())
    heard = tiny.quantized()
    heard.transformer_blocks[0].ff.register_forward_hook(lambda *_: None)
    expected = ((whole, 0), (foreign, 0), (one_kept, 1), (chunked, 1), (other, 1), (heard, 1))
    for model, count in expected:
        with quick_blocks(model):
            assert len(replaced(model)) == count


@torch.no_grad()
def test_quantized_attention_keeps_its_own_forward() -> None:
    model = quantized("DiTTransformer2DModel", "tq-dit", calibration=[_inputs(0)], tgq=False)
    with quick_blocks(model):
        assert not replaced(model)


@torch.no_grad()
def test_layers_are_called_so_that_whoever_listens_hears_them() -> None:
    model, heard = tiny.quantized(), []
    for name, module in model.named_modules():
        if isinstance(module, QLinear):
            module.register_forward_hook(lambda *_, name=name: heard.append(name))
    tiny.run(model)
    own, heard[:] = list(heard), []
    with quick_blocks(model):
        tiny.run(model)
    assert heard == own


def test_what_is_trained_keeps_its_own_forward() -> None:
    model = tiny.quantized(bits="w4a16")
    x = torch.randn(2, 16, 64, requires_grad=True)
    given = {"timestep": torch.tensor([3, 500]), "class_labels": torch.tensor([1, 7])}
    block, gradients = model.transformer_blocks[0], []
    for context in (nullcontext(), quick_blocks(model)):
        with context:
            (gradient,) = torch.autograd.grad(block(x, **given).square().sum(), x)
        gradients.append(gradient)
    assert torch.equal(*gradients)


@torch.no_grad()
@pytest.mark.parametrize("backend", HERE)
def test_it_compiles_as_one_graph(backend: str, monkeypatch: Any) -> None:
    monkeypatch.setenv(VARIABLE, backend)
    model = tiny.quantized(bits="w8a8")
    own = tiny.run(model)
    torch._dynamo.reset()
    with quick_blocks(model):
        model.compile(backend="aot_eager", fullgraph=True)
        assert sqnr(own, tiny.run(model)) > 60


@torch.no_grad()
def test_a_forward_that_was_put_there_before_is_called_and_stays() -> None:
    """accelerate brings offloaded weights in so."""
    model, called = tiny.quantized(), []
    block = model.transformer_blocks[0]
    own = block.forward
    block.forward = lambda *args, **kwargs: (called.append(1), own(*args, **kwargs))[1]
    before = vars(block)["forward"]
    with quick_blocks(model):
        tiny.run(model)
    assert called == [1]
    assert replaced(model) == [block]
    assert vars(block)["forward"] is before


@torch.no_grad()
def test_a_block_without_tokens_gives_what_the_unquantized_one_gives() -> None:
    """Without images diffusers' own block raises."""
    x, zeros = torch.ones(2, 0, 64), torch.zeros(2, dtype=torch.long)
    given = {"timestep": zeros, "class_labels": zeros}
    plain = tiny.make().transformer_blocks[0](x, **given)
    model = tiny.quantized()
    with QuickAttention(), quick_blocks(model):
        ours = model.transformer_blocks[0](x, **given)
    assert ours.shape == plain.shape == x.shape
