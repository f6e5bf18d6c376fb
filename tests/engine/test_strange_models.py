"""What no method can do anything with is refused in one sentence: where it is, and what to give."""

import any_transformers
import own_transformer
import pytest
import torch
from torch import nn

import fewbit
from fewbit.calibration import CallSet
from fewbit.calibration.trial import _Reads, try_out
from fewbit.errors import BadCalibration, BadModel
from fewbit.models import ModelSpec
from fewbit.models.discover import discover


def quantize(model, recipe="hq-dit", **how):
    given = {"calibration": [own_transformer.call()], **how}
    return fewbit.quantize(model, recipe, progress=False, **given)


def test_linears_said_to_read_one_tensor_must_do_so():
    model = own_transformer.loom()
    spec = discover(model, own_transformer.call())
    rest = [[f"{stream}_{name}" for name in ("find", "say")] for stream in ("image", "text")]
    groups = [["text_ask", "image_ask"], *rest, *spec.shared]
    wrong = ModelSpec.from_dict({**spec.to_dict(), "shared": groups})
    message = r"meetings\.0\.text_ask and meetings\.0\.image_ask are said to read one .*\.shared"
    with pytest.raises(BadModel, match=message):
        quantize(model, spec=wrong)


def test_a_linear_that_is_called_with_two_inputs_stands_alone():
    model = own_transformer.loom()
    for block in model.meetings:
        block.image_find = block.image_ask
    spec = discover(model, own_transformer.call())
    assert spec.role("image_ask") == "linear"
    with pytest.raises(BadModel, match=r"image_ask and meetings\.0\.image_find are one module"):
        quantize(model, spec=spec)


def test_a_linear_called_twice_cannot_share_both_inputs():
    class Twice(own_transformer.Meeting):
        def forward(self, image, text, time):
            self.image_ask(2 * image)
            return super().forward(image, text, time)

    model = own_transformer.loom()
    model.meetings[0].__class__ = Twice
    spec = discover(own_transformer.loom(), own_transformer.call())
    with pytest.raises(BadModel, match=r"meetings\.0\.image_ask and .* one tensor, but read two"):
        quantize(model, spec=spec)
    assert quantize(model).layers  # what is found by a forward knows


def test_equal_numbers_are_one_tensor_and_kept_no_longer_than_they_are_compared():
    model = own_transformer.loom()
    groups = [[f"meetings.0.image_{name}" for name in ("ask", "find", "say")]]
    reads = _Reads(2)
    x = torch.zeros(2, 3)
    reads.note("a", model, (x,), {})
    reads.note("b", model, (), {"input": x.clone()})
    assert not reads.first
    data = CallSet.from_items([own_transformer.call()])
    assert try_out(model, ["meetings.0"], groups[0], groups, [], data).blocks == ("meetings.0",)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_adapted_linear_is_named():
    model = own_transformer.loom()
    layer = nn.Module()
    layer.base_layer = model.alone[0].merge
    model.alone[0].merge = layer
    model.peft_config = {"style": None}
    with pytest.raises(BadModel, match=r"carries adapters \(style\).*unload_lora"):
        quantize(model)


@pytest.mark.parametrize("recipe", ["rtn", "hq-dit"])
def test_a_hook_on_a_layer_is_named(recipe):
    model = own_transformer.loom()
    model.alone[1].merge.register_forward_hook(lambda *seen: None)
    how = {"calibration": None} if recipe == "rtn" else {}
    with pytest.raises(BadModel, match=r"alone\.1\.merge has a hook .*take it away"):
        quantize(model, recipe, **how)


def test_items_that_the_forward_cannot_run_are_named():
    model, call = own_transformer.loom(), own_transformer.call()
    items = [call, {**call, "text": torch.zeros(2, 6, 5)}]
    with pytest.raises(BadCalibration, match=r"forward of Loom does not run on the calibration"):
        quantize(model, calibration=items)
    with pytest.raises(BadCalibration, match=r"it takes image, text, timestep"):
        quantize(model, calibration=[{"image": call["image"], "texts": 1}])


def test_a_model_without_attention_or_blocks_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
    message = r"no list of Sequential holds blocks.*give spec=fewbit\.ModelSpec"
    with pytest.raises(BadModel, match=message):
        fewbit.quantize(model, "rtn", progress=False)
    with pytest.raises(BadModel, match=message):
        fewbit.quantize(model, "hq-dit", calibration=[{"input": torch.zeros(2, 4)}], progress=False)


def test_a_convolution_with_a_hook_stays():
    name = "SanaTransformer2DModel"
    model, call = any_transformers.make(name), any_transformers.call(name)
    spec = discover(model, call)
    seen = []
    convolution = model.transformer_blocks[0].ff.conv_point
    convolution.register_forward_hook(lambda *_: seen.append(1))
    fewbit.quantize(model, "rtn", spec=spec, progress=False)
    model(**call)
    assert seen == [1]
    assert model.transformer_blocks[0].ff.conv_point is convolution


def test_blocks_that_are_never_called_are_named():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(16, 16)}) for _ in range(2))

        def forward(self, x):
            for block in self.blocks:
                x = block["up"](x)
            return x

    spec = ModelSpec("blocks", {"up": "fc1"})
    with pytest.raises(BadCalibration, match=r"none of the blocks of Bare .*neither blocks\.0"):
        quantize(Bare(), spec=spec, calibration=[{"x": torch.ones(1, 2, 16)}])
