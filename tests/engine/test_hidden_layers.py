"""Layers that no block holds, convolutions of one pixel and tables of experts are quantized."""

import re

import any_transformers
import own_transformer
import pytest
import torch
from torch import nn

import fewbit
from benchmarks.tiny_classes import CLASSES
from fewbit.calibration.tree import tensors
from fewbit.engine.plan import make_plan
from fewbit.engine.recipe import Recipe
from fewbit.errors import BadModel
from fewbit.judge.layers import LayerErrors
from fewbit.layers.linear import quantized_layers
from fewbit.models import ModelSpec, Role
from fewbit.models.discover import discover
from fewbit.models.hidden import shown

SHARED = ["double_stream_modulation_img", "double_stream_modulation_txt"]
FAST = {
    "rtn": {"bits": "w4a4"},
    "hq-dit": {},
    "vq4dit": {"steps": 2},
    "fp4dit": {"steps": 2},
    "tq-dit": {"groups": 2, "candidates": 8, "rounds": 1},
    "best": {"sweeps": 0},
}


@torch.no_grad()
def output(model, call):
    return torch.cat([one.flatten() for one in tensors(model(**call)).values()])


def through(name, folder, recipe="rtn", **how):
    """Quantized, saved and loaded: the model before, and after."""
    model, call = any_transformers.make(name), any_transformers.call(name)
    given = {} if recipe == "rtn" else {"calibration": CLASSES[name].calls(2)}
    spec = discover(model, call)
    exact = output(model, call)
    report = fewbit.quantize(model, recipe, spec=spec, progress=False, **given, **how)
    found = output(model, call)
    assert (found - exact).norm() < exact.norm()
    fewbit.save(model, folder)
    loaded = type(model).from_pretrained(folder)
    assert torch.equal(output(loaded, call), found)
    assert set(quantized_layers(loaded)) == {layer.name for layer in report.layers}
    return report, loaded


def test_a_modulation_that_all_blocks_share_is_found_and_kept_in_int8(tmp_path):
    report, _ = through("Flux2Transformer2DModel", tmp_path)
    outside = {la.name: la for la in report.layers if la.role == "adaln"}
    assert [*outside] == [*(f"{name}.linear" for name in SHARED), "single_stream_modulation.linear"]
    assert {la.weight for la in outside.values()} == {"int8/row/fp32"}
    assert {la.activation for la in outside.values()} == {None}


def test_a_spec_says_what_is_quantized_outside(tmp_path):
    model, call = any_transformers.make("WanTransformer3DModel"), any_transformers.call
    spec = discover(model, call("WanTransformer3DModel"))
    given = {**spec.to_dict(), "outside": {**spec.outside, "*.text_embedder.*": "linear"}}
    told = ModelSpec.from_dict({**given, "keep": [n for n in spec.keep if "text_emb" not in n]})
    report = fewbit.quantize(model, "rtn", bits="w8a8", spec=told, progress=False)
    outside = [la.name for la in report.layers if "text_embedder" in la.name]
    assert outside == [f"condition_embedder.text_embedder.linear_{i}" for i in (1, 2)]
    fewbit.save(model, tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert set(outside) <= set(quantized_layers(loaded))
    assert loaded.fewbit_spec.role_outside(outside[0]) is Role.LINEAR
    with pytest.raises(fewbit.FewbitError, match=r"ModelSpec\.outside gives 'x' the unknown role"):
        ModelSpec("blocks", {"a": "q"}, outside={"x": "y"})


def test_keep_is_stronger_than_outside():
    model, call = any_transformers.make("Flux2Transformer2DModel"), any_transformers.call
    spec = discover(model, call("Flux2Transformer2DModel"))
    told = ModelSpec.from_dict({**spec.to_dict(), "keep": [*spec.keep, "*modulation*"]})
    report = fewbit.quantize(model, "rtn", spec=told, progress=False)
    assert all(la.role != "adaln" for la in report.layers)


@pytest.mark.parametrize("recipe", FAST)
def test_convolutions_of_one_pixel_go_through_every_recipe(recipe, tmp_path):
    report, loaded = through("SanaTransformer2DModel", tmp_path, recipe, **FAST[recipe])
    names = {layer.name for layer in report.layers}
    for block in range(2):
        for own in ("conv_inverted", "conv_point"):
            assert f"transformer_blocks.{block}.ff.{own}.linear" in names
    fresh = any_transformers.make("SanaTransformer2DModel").state_dict()
    fewbit.dequantize(loaded)
    assert {n: t.shape for n, t in loaded.state_dict().items()} == {
        name: tensor.shape for name, tensor in fresh.items()
    }
    assert type(loaded.transformer_blocks[0].ff.conv_point) is nn.Conv2d


def test_a_convolution_goes_back_exactly():
    name = "SanaTransformer2DModel"
    model, call = any_transformers.make(name), any_transformers.call(name)
    fewbit.quantize(model, "rtn", bits="w8a8", spec=discover(model, call), progress=False)
    layer = model.transformer_blocks[1].ff.conv_point.linear
    matrix = layer.effective_weight()
    fewbit.dequantize(model)
    assert torch.equal(model.transformer_blocks[1].ff.conv_point.weight[:, :, 0, 0], matrix)


def test_they_are_quantized_while_a_model_is_loaded(tmp_path):
    name = "SanaTransformer2DModel"
    model, call = any_transformers.make(name), any_transformers.call(name)
    model.save_pretrained(tmp_path)
    config = fewbit.FewbitConfig("rtn", bits="w8a8")
    loaded = type(model).from_pretrained(tmp_path, quantization_config=config)
    with shown(model):
        named = {n for n, m in model.named_modules() if type(m) is nn.Linear and "conv" in n}
    assert named
    assert named <= set(quantized_layers(loaded))
    fewbit.quantize(model, "rtn", bits="w8a8", progress=False)
    state, found = model.state_dict(), loaded.state_dict()
    assert state.keys() == found.keys()
    assert all(torch.equal(state[key], found[key]) for key in state)
    # products of plain layers depend on where in memory their weights begin, in the last bits
    assert torch.allclose(output(loaded, call), output(model, call), atol=1e-4)


@pytest.mark.parametrize("recipe", FAST)
def test_a_class_of_ones_own_goes_through_every_recipe(recipe, tmp_path):
    """Two streams, a gated MLP, lists that take turns, experts as modules and as a table."""
    model, calls = own_transformer.loom(), [own_transformer.call()]
    given = {} if recipe == "rtn" else {"calibration": calls}
    exact = output(model, calls[0])
    report = fewbit.quantize(model, recipe, progress=False, **given, **FAST[recipe])
    names = {layer.name for layer in report.layers}
    inside = {n for n, m in own_transformer.loom().named_modules() if type(m) is nn.Linear}
    tables = {f"alone.{block}.table_matrices.{i}" for block in range(2) for i in range(3)}
    assert names == (inside | tables) - {"takes", "clock", "gives"}
    found = output(model, calls[0])
    assert (found - exact).norm() < exact.norm() / 2
    fewbit.save(model, tmp_path)
    loaded = fewbit.load(tmp_path, like=own_transformer.loom())
    assert torch.equal(output(loaded, calls[0]), found)
    fewbit.dequantize(loaded)
    assert loaded.state_dict().keys() == own_transformer.loom().state_dict().keys()


def test_a_failure_leaves_everything_as_it_was():
    model = own_transformer.loom()
    model.alone[1].merge.weight.data[0, 0] = torch.nan
    state = dict(model.named_parameters())
    with pytest.raises(BadModel, match=r"alone\.1\.merge holds NaN"):
        fewbit.quantize(model, "rtn", progress=False)
    after = dict(model.named_parameters())
    assert after.keys() == state.keys()
    assert all(after[name] is state[name] for name in state)


def test_what_nobody_quantizes_is_not_touched():
    model, kept = own_transformer.loom(), own_transformer.loom()
    spec = discover(model, own_transformer.call())
    told = ModelSpec.from_dict({**spec.to_dict(), "keep": [*spec.keep, "*.table*"]})
    table = model.alone[0].table
    fewbit.quantize(model, "rtn", spec=told, progress=False)
    assert model.alone[0].table is table
    assert torch.equal(table, kept.alone[0].table)


def test_the_plan_and_inspect_count_them():
    model, call = own_transformer.loom(), own_transformer.call()
    spec = discover(model, call)
    with shown(model):
        plan = make_plan(model, Recipe.make("rtn", "w8a8", {}), spec, False)
    quantized = sum(layer.parameters for layer in plan.layers)
    outer = ("takes.", "clock.", "gives.")
    outside = sum(p.numel() for n, p in model.named_parameters() if n.startswith(outer))
    norms = sum(p.numel() for n, p in model.named_parameters() if ".norm." in n)
    every = sum(parameter.numel() for parameter in model.parameters())
    assert quantized + outside + norms == every
    text = re.sub(r"\n {4,}", " ", str(plan))
    assert f"{quantized / every:.1%} of the weights can be quantized" in text
    assert "matrices of experts" not in text
    assert f"{quantized / every:.1%} of the weights can be quant" in str(
        fewbit.inspect(model, spec)
    )


def test_operations_without_gradients_are_named(monkeypatch):
    """As flexible attention on a CPU: structure is found, training is refused in a sentence."""
    attend = own_transformer.attend

    def flexible(q, k, v):
        if q.requires_grad:
            raise NotImplementedError("no backward on CPU.\nMore")
        return attend(q, k, v)

    monkeypatch.setattr(own_transformer, "attend", flexible)
    model, call = own_transformer.loom(), own_transformer.call()
    spec = discover(model, call)
    assert spec.blocks == ("meetings.0", "alone.0", "meetings.1", "alone.1")
    assert spec.role("shift") is Role.ADALN
    assert spec.role("all_three") is Role.LINEAR
    message = r"fp4dit needs gradients of Loom.*no backward on CPU\.; allowed: .*hq-dit"
    with pytest.raises(BadModel, match=message):
        fewbit.quantize(model, "fp4dit", calibration=[call], steps=2, progress=False)
    assert fewbit.quantize(model, "hq-dit", calibration=[call], progress=False).layers


def test_errors_of_hidden_layers_are_measured():
    name = "SanaTransformer2DModel"
    model, exact = any_transformers.make(name), any_transformers.make(name)
    call = any_transformers.call(name)
    fewbit.quantize(model, "rtn", bits="w8a8", spec=discover(model, call), progress=False)
    errors = LayerErrors(exact, model)
    with errors.listening():
        output(exact, call)
        output(model, call)
    errors.compare(call["timestep"])
    found = {error.name: error.sqnr for error in errors.found()}
    assert found["transformer_blocks.0.ff.conv_point.linear"] > 20
    assert found["time_embed.linear"] > 20
    assert type(exact.transformer_blocks[0].ff.conv_point) is nn.Conv2d


def test_work_is_taken_up_again(tmp_path):
    model, call = own_transformer.loom(), own_transformer.call()
    first = fewbit.quantize(model, "hq-dit", calibration=[call], workdir=tmp_path, progress=False)
    again = own_transformer.loom()
    report = fewbit.quantize(again, "hq-dit", calibration=[call], workdir=tmp_path, progress=False)
    assert [la.name for la in report.layers] == [la.name for la in first.layers]
    assert torch.equal(output(again, call), output(model, call))


def test_a_budget_leaves_what_nobody_measures_as_it_is():
    name = "Flux2Transformer2DModel"
    model, call = any_transformers.make(name), any_transformers.call(name)
    report = fewbit.quantize(
        model, "best", calibration=[call], bits_per_weight=5, sweeps=0, progress=False
    )
    shared = {
        la.weight for la in report.layers if la.name.endswith("_stream_modulation_img.linear")
    }
    assert shared == {"int8/row/fp32"}
