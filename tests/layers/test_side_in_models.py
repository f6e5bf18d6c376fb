"""Models whose layers have sides: fused blocks, adapters, copies, and what is counted."""

import copy
import pickle

import pytest
import tiny_transformers as tiny
import torch
from small_dit import rows
from test_block import spread, unbound

import fewbit
from fewbit.engine.decibel import sqnr
from fewbit.errors import BadArgument
from fewbit.kernels.choose import BACKENDS, VARIABLE
from fewbit.layers.block import FusedBlock
from fewbit.layers.linear import quantized_layers

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")
HERE = [b.name for b in BACKENDS if b.why_not(torch.device("cpu")) is None]


def quantized(**settings):
    model = spread(tiny.make())
    settings = {"directions": 8, **settings}
    fewbit.quantize(model, "hq-dit", calibration=rows(), progress=False, **settings)
    return model


@torch.no_grad()
@pytest.mark.parametrize("backend", HERE)
def test_a_fused_block_is_the_blocks_own_forward(backend, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend)
    model, fused = quantized(), []
    whole = FusedBlock.feed_forward
    monkeypatch.setattr(
        FusedBlock, "feed_forward", lambda *given: (fused.append(1), whole(*given))[1]
    )
    ours = tiny.run(model)
    assert len(fused) == 2
    assert sqnr(unbound(model), ours) > 50  # a level may turn; without its sides it has below 20


@torch.no_grad()
def test_every_backend_gives_what_the_definition_gives(monkeypatch):
    model = quantized()
    monkeypatch.setenv(VARIABLE, "reference")
    exact = tiny.run(model)
    for name in HERE:
        monkeypatch.setenv(VARIABLE, name)
        assert sqnr(exact, tiny.run(model)) > 60


@torch.no_grad()
def test_copies_are_the_same_model():
    model = quantized()
    own = tiny.run(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(tiny.run(again), own)
    for mode in ("fast", "compact"):
        fewbit.prepare(model, mode)
        assert torch.equal(tiny.run(model), own)


@torch.no_grad()
def test_adapters_add_what_they_make_of_the_untransformed_input():
    peft = pytest.importorskip("peft")
    model = quantized()
    given = {"r": 4, "target_modules": ["to_q"], "init_lora_weights": False}
    peft.inject_adapter_in_model(peft.LoraConfig(**given), model, "a")
    layer = model.transformer_blocks[0].attn1.to_q
    assert layer.base_layer.side is not None
    x = torch.randn(3, layer.in_features)
    correction = layer.lora_B["a"](layer.lora_A["a"](x)) * layer.scaling["a"]
    assert torch.equal(layer(x), layer.base_layer(x) + correction)


def test_weights_are_counted_as_they_were():
    assert quantized().num_parameters() == tiny.make().num_parameters()


@torch.no_grad()
def test_dequantized_it_multiplies_what_it_stands_for():
    model = quantized()
    layer = quantized_layers(model)["transformer_blocks.0.ff.net.0.proj"]
    weight = layer.effective_weight()
    fewbit.dequantize(model)
    assert torch.equal(model.transformer_blocks[0].ff.net[0].proj.weight, weight)
    exact = spread(tiny.make()).transformer_blocks[0].ff.net[0].proj.weight
    assert sqnr(exact, weight) > 15


def test_what_is_shown_names_the_directions():
    model = quantized()
    shown = fewbit.inspect(model).table()
    assert "8 directions" in shown
    layer = next(one for one in fewbit.inspect(model).layers if one.name.endswith("to_q"))
    assert layer.bytes >= quantized_layers(model)[layer.name].packed_weight.nbytes


def test_more_directions_than_columns_are_refused_before_any_work():
    with pytest.raises(BadArgument, match=r"to_q: an input of 64 columns has 1 to 64 directions"):
        quantized(directions=65)
