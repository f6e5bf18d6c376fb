"""Graphs of ONNX and OpenVINO: their runtimes compute what we compute, and what they cannot hold is
refused. The runtimes are those of `make peers`."""

from pathlib import Path

import foreign_files as foreign
import pytest
import tiny_transformers as tiny
import torch
from torch import nn

import fewbit
from fewbit.activations.clock import TimeBins
from fewbit.activations.static import Static
from fewbit.calibration.tree import tensors
from fewbit.engine.graphs.layer import graph_layer
from fewbit.engine.graphs.onnx import packed_halves
from fewbit.engine.graphs.writing import GRAPHS, write_graph
from fewbit.errors import BadArgument, BadModel, BadOutput
from fewbit.formats import FORMATS, QTensor, Spec
from fewbit.layers.linear import QLinear, quantized_layers
from fewbit.layers.stage import InputStage
from fewbit.transforms.smooth import Smooth

CALL = {
    "hidden_states": foreign.normal(2, 4, 8, 8, seed=3),
    "timestep": torch.tensor([7, 601]),
    "class_labels": torch.tensor([1, 5]),
}
OTHER = {
    "hidden_states": foreign.normal(2, 4, 8, 8, seed=4),
    "timestep": torch.tensor([950, 13]),
    "class_labels": torch.tensor([1000, 2]),
}
DATA = [
    {
        "hidden_states": foreign.normal(1, 4, 8, 8, seed=row),
        "timestep": torch.tensor([100 * row + 1]),
        "class_labels": torch.tensor([row]),
    }
    for row in range(8)
]
STATIC = {"tgq": False, "mrq": False, "attention": "skip", "ho": False, "rounds": 1}
RECIPES = {
    "static w8a8": ("tq-dit", "w8a8", STATIC),
    "static w4a8": ("tq-dit", "w4a8", STATIC),
    "q4_0": ("portable", "gguf-q4_0", {}),
    "fp4 weights": ("rtn", "w4a16", {}),
    "rounded by the runtime": ("rtn", "w8a8", {}),
}
# Floats are summed in another order, so that now and then an input falls to the code beside. The
# runtimes round inputs in groups of their own where no step is stored.
BOUNDS = {"static": 0.01, "rounded": 0.02}


@pytest.fixture(scope="module")
def quantized():
    """A model of each recipe, made when it is first asked for."""
    made = {}

    def model(name):
        if name not in made:
            recipe, bits, settings = RECIPES[name]
            data = None if recipe == "rtn" else DATA
            made[name] = tiny.make()
            fewbit.quantize(
                made[name], recipe, bits=bits, calibration=data, progress=False, **settings
            )
        return made[name]

    return model


def in_onnxruntime(file, call):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(["output"], {name: x.numpy() for name, x in call.items()})
    return torch.from_numpy(found)


def in_openvino(file, call):
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"}  # the default is bfloat16 on some processors
    run = openvino.compile_model(str(file), "CPU", settings)
    return torch.from_numpy(run({name: x.numpy() for name, x in call.items()})["output"])


RUNTIMES = {"onnx": in_onnxruntime, "openvino": in_openvino}
BOTH = pytest.mark.parametrize("graph", GRAPHS)


def need(graph):
    for package in ("onnxruntime", *GRAPHS[graph].PACKAGES):
        pytest.importorskip(package)


def exported(model, graph, folder):
    file = folder / f"x{GRAPHS[graph].SUFFIX}"
    fewbit.export(model, file, graph, call=CALL)
    return file


@BOTH
@pytest.mark.parametrize("name", RECIPES)
def test_the_runtime_computes_what_we_compute(quantized, graph, name, tmp_path):
    """For a call that it was not made of."""
    need(graph)
    model = quantized(name)
    with torch.no_grad():
        expected = model(**OTHER).sample
    found = RUNTIMES[graph](exported(model, graph, tmp_path), OTHER)
    bound = BOUNDS.get(name.split()[0], 2e-5)
    torch.testing.assert_close(found, expected, rtol=0, atol=bound * float(expected.abs().max()))
    with torch.no_grad():
        assert torch.equal(model(**OTHER).sample, expected)  # the model is as it was


@BOTH
@pytest.mark.parametrize("bits", [8, 6])
def test_a_static_layer_is_exact_and_clips_alike(graph, bits, tmp_path):
    """Inputs lie off the middles between codes, and beyond the first and the last."""
    need(graph)
    step = torch.tensor([[0.03125]])
    activation = Static(Spec(FORMATS[f"int{bits}"], "tensor"), step, TimeBins(torch.zeros(1)))
    smooth = Smooth(torch.rand(32) + 0.5)
    packed = QTensor.quantize(foreign.normal(48, 32), Spec(FORMATS["int8"]))
    layer = QLinear(packed, foreign.normal(48), InputStage(smooth, activation))
    codes = torch.arange(-160, 160).view(10, 32) + 0.3
    call = {"input": codes * step * smooth.scales}
    file = tmp_path / f"x{GRAPHS[graph].SUFFIX}"
    assert set(write_graph(nn.Sequential(layer), call, file, graph)) == set(tmp_path.iterdir())
    torch.testing.assert_close(RUNTIMES[graph](file, call), layer(call["input"]))


@BOTH
@pytest.mark.parametrize("name", ["PixArtTransformer2DModel", "HunyuanDiT2DModel"])
def test_other_families_with_nested_arguments(graph, name, tmp_path):
    need(graph)
    model, call = tiny.quantized(name, "w4a16"), {}
    look = model.register_forward_pre_hook(
        lambda _, __, given: call.update(given), with_kwargs=True
    )
    expected = tiny.run(model)
    look.remove()
    file = tmp_path / f"x{GRAPHS[graph].SUFFIX}"
    fewbit.export(model, file, graph, call=call)
    found = RUNTIMES[graph](file, tensors(call))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@BOTH
def test_weights_rest_in_the_graph_in_their_bits(quantized, graph, tmp_path):
    """Beside a file of the same model whose codes have 8 bits."""
    need(graph)
    sizes, packed = {}, {}
    for name in ("q4_0", "fp4 weights"):
        (tmp_path / name).mkdir()
        exported(quantized(name), graph, tmp_path / name)
        sizes[name] = sum(file.stat().st_size for file in (tmp_path / name).iterdir())
        layers = quantized_layers(quantized(name)).items()
        made = [graph_layer(path, layer, graph) for path, layer in layers]
        packed[name] = sum(one.codes.numel() * one.bits // 8 + one.scales.nbytes for one in made)
    saved, expected = (one["fp4 weights"] - one["q4_0"] for one in (sizes, packed))
    assert expected > 30_000
    assert saved == pytest.approx(expected, rel=0.15)


@BOTH
def test_equal_weights_are_stored_once_and_no_place_on_this_disk_is_told(graph, tmp_path):
    need(graph)
    model = tiny.make()
    first, second = (block.norm1.emb for block in model.transformer_blocks)
    second.load_state_dict(first.state_dict())
    fewbit.quantize(model, "rtn", bits="w4a16", progress=False)
    exported(model, graph, tmp_path)
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    table = next(tensor for tensor in first.state_dict().values() if tensor.dim() == 2)
    assert content.count(table.numpy().tobytes()) == 1
    assert b"site-packages" not in content
    assert str(Path(fewbit.__file__).parent).encode() not in content


@BOTH
def test_a_pipeline_is_exported_without_a_call(quantized, graph, tmp_path):
    need(graph)
    pipe = tiny.pipeline(quantized("q4_0"))
    file = tmp_path / f"x{GRAPHS[graph].SUFFIX}"
    fewbit.export(pipe, file, graph)
    with torch.no_grad():
        expected = pipe.transformer(**CALL).sample
    found = RUNTIMES[graph](file, CALL)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_codes_times_scales_are_the_weight(quantized):
    for name, model in ((name, quantized(name)) for name in RECIPES):
        for path, layer in quantized_layers(model).items():
            made = graph_layer(path, layer, "onnx")
            weight = (made.codes.float() * made.scales).view(layer.out_features, -1)
            torch.testing.assert_close(weight, layer.packed_weight.dequantize()), name


def test_two_codes_of_four_bits_lie_in_a_byte_the_first_one_low():
    codes = torch.tensor([[0, 15, 8, 1]])
    assert packed_halves(codes).tolist() == [[0xF0, 0x18]]


@pytest.fixture
def installed(monkeypatch):
    """Whatever is here: nothing of it is asked."""
    monkeypatch.setattr("fewbit.engine.graphs.writing.missing", lambda packages: None)


@pytest.mark.parametrize(
    ("recipe", "bits", "settings", "sentence"),
    [
        ("hq-dit", "w4a4", {"gptq": False}, "has the input .*hadamard"),
        ("rtn", "w6a6", {}, "has the input int6"),
        ("rtn", "nvfp4", {}, "has the input e2m1/g16"),
        ("tq-dit", "w8a8", {**STATIC, "attention": "quantize"}, "rounds the operands of its"),
        ("tq-dit", "w8a8", {**STATIC, "mrq": True}, "has the input"),
        ("tq-dit", "w8a8", {**STATIC, "tgq": True, "groups": 2}, "has the input"),
        ("portable", "gguf-q4_1", {}, "is stored as uint4/g32/gguf"),
        ("portable", "comfy-int8", {}, "has the input regular hadamard"),
    ],
)
def test_what_a_graph_cannot_hold_names_the_settings_that_it_can(
    installed, recipe, bits, settings, sentence, tmp_path
):
    model = tiny.make()
    data = None if recipe == "rtn" else DATA
    fewbit.quantize(model, recipe, bits=bits, calibration=data, progress=False, **settings)
    with pytest.raises(BadModel, match=rf"{sentence}.*which a graph of onnx has no.*tgq=False"):
        fewbit.export(model, tmp_path / "x.onnx", "onnx", call=CALL)
    assert not list(tmp_path.iterdir())


def test_what_else_is_refused(installed, quantized, tmp_path, monkeypatch):
    model = quantized("q4_0")
    with pytest.raises(BadArgument, match=r"must end in .xml, as files of openvino do"):
        fewbit.export(model, tmp_path / "x.onnx", "openvino", call=CALL)
    with pytest.raises(BadArgument, match="give its pipeline, or call=, the keyword arguments"):
        fewbit.export(model, tmp_path / "x.onnx", "onnx")
    with pytest.raises(BadArgument, match="timestep must be a tensor in call"):
        fewbit.export(model, tmp_path / "x.onnx", "onnx", call={**CALL, "timestep": 3})
    (tmp_path / "there.onnx").touch()
    with pytest.raises(BadOutput, match="already exists"):
        fewbit.export(model, tmp_path / "there.onnx", "onnx", call=CALL)
    halved = tiny.quantized(bits="w8a8").bfloat16()
    with pytest.raises(BadModel, match=r"is of torch.bfloat16; allowed: model.to\(torch.float32"):
        fewbit.export(halved, tmp_path / "x.onnx", "onnx", call=CALL)
    monkeypatch.undo()
    monkeypatch.setattr("fewbit.engine.graphs.onnx.PACKAGES", ("no_such",))
    with pytest.raises(BadArgument, match="onnx cannot be written: no_such is not installed"):
        fewbit.export(model, tmp_path / "x.onnx", "onnx", call=CALL)


def test_narrow_groups_have_no_blocks(installed, tmp_path):
    model = tiny.quantized(bits="w2a16", group_size=8)
    with pytest.raises(BadModel, match="has groups of 8 columns; a graph of onnx has blocks of 16"):
        fewbit.export(model, tmp_path / "x.onnx", "onnx", call=CALL)
