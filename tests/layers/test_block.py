"""A block in few passes is the same block, and what it does not know it leaves alone."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fewbit
from fewbit.engine.decibel import sqnr
from fewbit.kernels.choose import BACKENDS, VARIABLE
from fewbit.layers.bind import bind, bind_attention, unbind
from fewbit.layers.block import FusedBlock
from fewbit.layers.linear import QLinear
from fewbit.models import describe

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")

import tiny_transformers as tiny  # noqa: E402

KNOWN = ("DiTTransformer2DModel", "PixArtTransformer2DModel")
HERE = [b.name for b in BACKENDS if b.why_not(torch.device("cpu")) is None]


@pytest.fixture(autouse=True)
def fused(monkeypatch: Any) -> list[FusedBlock]:
    """The blocks that were computed in few passes."""
    found: list[FusedBlock] = []
    halves = FusedBlock.halves

    def counting(block: FusedBlock) -> Any:
        found.append(block)
        return halves(block)

    monkeypatch.setattr(FusedBlock, "halves", counting)
    return found


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


def unbound(model: Any, *given: Any) -> Tensor:
    """What its own forward gives; attention, whose last bits may turn a level, is the same."""
    unbind(model)
    bind_attention(model, describe(model))
    result = tiny.run(model, *given)
    bind(model)
    return result


@torch.no_grad()
@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("bits", ["w4a4", "w8a8", "w4a16", "nvfp4"])
def test_it_is_the_blocks_own_forward(
    name: str, backend: str, bits: str, monkeypatch: Any, fused: list[FusedBlock]
) -> None:
    """In float32 only the order of a layer norm's sums differs, which no input here makes a level
    out of: 80 dB are a few roundings, a wrong shift, gate or residual leaves less than 20."""
    monkeypatch.setenv(VARIABLE, backend)
    model = quantized(name, bits=bits)
    ours = tiny.run(model)
    assert len(fused) == 2
    own = unbound(model)
    assert len(fused) == 2
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
        unbind(model)  # and each layer binds itself anew
        bind(model)
        found[backend] = tiny.run(model)
    assert all(sqnr(found["reference"], ours) > 45 for ours in found.values())


@torch.no_grad()
@pytest.mark.parametrize("name", KNOWN)
def test_in_half_precision_it_is_as_near_to_full_as_the_definition(name: str, tmp_path) -> None:
    """On the mean of many inputs: one alone may be 0.2 dB nearer either way."""

    def outputs(model: Any, dtype: torch.dtype) -> Tensor:
        return torch.cat([tiny.run(model, dtype, seed) for seed in range(32)])

    exact = outputs(tiny.make(name), torch.float32)
    model = tiny.in_dtype(torch.bfloat16, tmp_path, name)
    fewbit.quantize(model, "rtn", bits="w8a8", progress=False)
    ours = outputs(model, torch.bfloat16)
    unbind(model)
    own = outputs(model, torch.bfloat16)
    assert not torch.equal(own, ours)
    assert sqnr(exact, ours) > sqnr(exact, own) - 0.05


@torch.no_grad()
def test_rotation_and_smoothing_come_after_the_modulation(fused: list[FusedBlock]) -> None:
    data = [_inputs(seed) for seed in range(4)]
    model = quantized(
        "DiTTransformer2DModel", "hq-dit", calibration=data, transform="all", gptq=False
    )
    fused.clear()
    ours = tiny.run(model)
    assert len(fused) == 2
    assert sqnr(unbound(model), ours) > 60


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([100 * seed, 100 * seed]),
        "class_labels": torch.tensor([seed, 1000]),
    }


def _one_layer_kept(model: Any) -> None:
    model.transformer_blocks[1].attn1.to_q = nn.Linear(64, 64)


def _chunked(model: Any) -> None:
    model.transformer_blocks[0].set_chunk_feed_forward(2)


def _other_processor(model: Any) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    model.transformer_blocks[0].attn1.set_processor(AttnProcessor())


def _listened_to(model: Any) -> None:
    model.transformer_blocks[0].ff.register_forward_hook(lambda *_: None)


def _layer_listened_to(model: Any) -> None:
    model.transformer_blocks[0].attn1.to_k.register_forward_hook(lambda *_: None)


def _own_forward_inside(model: Any) -> None:
    norm = model.transformer_blocks[0].norm1
    own = norm.forward
    norm.forward = lambda *args, **kwargs: own(*args, **kwargs)


CHANGES = (_one_layer_kept, _chunked, _other_processor, _listened_to, _layer_listened_to)


@torch.no_grad()
@pytest.mark.parametrize("change", [*CHANGES, _own_forward_inside])
@pytest.mark.parametrize("after_the_first_run", [False, True])
def test_a_changed_block_and_only_it_keeps_its_own_forward(
    change: Any, after_the_first_run: bool, fused: list[FusedBlock]
) -> None:
    model = tiny.quantized()
    if after_the_first_run:
        tiny.run(model)
        assert len(fused) == 2
        fused.clear()
    change(model)
    ours = tiny.run(model)
    assert len(fused) == 1
    assert sqnr(unbound(model), ours) > 60


@torch.no_grad()
def test_a_block_is_quick_again_when_nobody_listens(fused: list[FusedBlock]) -> None:
    model = tiny.quantized()
    hook = model.transformer_blocks[0].ff.register_forward_hook(lambda *_: None)
    tiny.run(model)
    assert len(fused) == 1
    hook.remove()
    tiny.run(model)
    assert len(fused) == 3


@torch.no_grad()
@pytest.mark.parametrize("name", ["HunyuanDiT2DModel", None])
def test_unknown_and_full_precision_blocks_keep_their_own_forward(
    name: str | None, fused: list[FusedBlock]
) -> None:
    model = tiny.make() if name is None else tiny.quantized(name)
    bind(model)
    tiny.run(model)
    assert not fused


@torch.no_grad()
def test_a_block_of_rounded_attention_is_its_own_forward(fused: list[FusedBlock]) -> None:
    model = quantized("DiTTransformer2DModel", "tq-dit", calibration=[_inputs(0)], tgq=False)
    fused.clear()
    ours = tiny.run(model)
    assert len(fused) == 2
    assert sqnr(unbound(model), ours) > 60


@torch.no_grad()
def test_layers_are_called_so_that_whoever_listens_hears_them() -> None:
    model, heard = tiny.quantized(), []
    for name, module in model.named_modules():
        if isinstance(module, QLinear):
            module.register_forward_hook(lambda *_, name=name: heard.append(name))
    tiny.run(model)
    bound, heard[:] = list(heard), []
    unbound(model)
    assert heard == bound


def test_what_is_trained_keeps_its_own_forward(fused: list[FusedBlock]) -> None:
    model = tiny.quantized(bits="w4a16")
    x = torch.randn(2, 16, 64, requires_grad=True)
    given = {"timestep": torch.tensor([3, 500]), "class_labels": torch.tensor([1, 7])}
    block, gradients = model.transformer_blocks[0], []
    for change in (bind, unbind):
        change(model)
        (gradient,) = torch.autograd.grad(block(x, **given).square().sum(), x)
        gradients.append(gradient)
    assert torch.equal(*gradients)
    assert not fused


@torch.no_grad()
@pytest.mark.parametrize("backend", HERE)
def test_it_compiles_as_one_graph(backend: str, monkeypatch: Any) -> None:
    monkeypatch.setenv(VARIABLE, backend)
    model = tiny.quantized(bits="w8a8")
    own = tiny.run(model)
    torch._dynamo.reset()
    model.compile(backend="aot_eager", fullgraph=True)
    assert sqnr(own, tiny.run(model)) > 60


@torch.no_grad()
@pytest.mark.parametrize("when", [bind, unbind])
def test_a_forward_that_was_put_there_before_is_called_and_stays(when: Any) -> None:
    """accelerate brings offloaded weights in so."""
    model, called = tiny.quantized(), []
    when(model)
    block = model.transformer_blocks[0]
    own = block.forward
    block.forward = lambda *args, **kwargs: (called.append(1), own(*args, **kwargs))[1]
    before = vars(block)["forward"]
    bind(model)
    tiny.run(model)
    unbind(model)
    assert called == [1]
    assert vars(block)["forward"] is before


@torch.no_grad()
def test_a_block_without_tokens_gives_what_the_unquantized_one_gives() -> None:
    """Without images diffusers' own block raises."""
    x, zeros = torch.ones(2, 0, 64), torch.zeros(2, dtype=torch.long)
    given = {"timestep": zeros, "class_labels": zeros}
    plain = tiny.make().transformer_blocks[0](x, **given)
    ours = tiny.quantized().transformer_blocks[0](x, **given)
    assert ours.shape == plain.shape == x.shape


@torch.no_grad()
@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_as_quick_and_its_own(again: Any, fused: list[FusedBlock]) -> None:
    model = tiny.quantized()
    first = tiny.run(model)
    other = again(model)
    fused.clear()
    assert torch.equal(tiny.run(other), first)
    assert len(fused) == 2
    assert {id(one.block) for one in fused} == {id(block) for block in other.transformer_blocks}


@torch.no_grad()
@pytest.mark.parametrize("name", tiny.NAMES)
def test_unbinding_is_the_exact_inverse(name: str) -> None:
    model = spread(tiny.make(name))
    fewbit.quantize(model, "rtn", progress=False)
    unbind(model)
    classes = [type(module) for module in model.modules()]
    attributes = [sorted(vars(module)) for module in model.modules()]
    own = tiny.run(model)
    unbind(model)
    bind(model)
    ours = tiny.run(model)
    bind(model)  # a second time changes nothing
    assert torch.equal(tiny.run(model), ours)
    unbind(model)
    assert [type(module) for module in model.modules()] == classes
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert torch.equal(tiny.run(model), own)
    assert sqnr(own, ours) > 40
