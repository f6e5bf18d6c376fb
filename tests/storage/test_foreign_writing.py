"""Files for other runtimes: what we write we read again to the last bit, and so do they."""

import foreign_files as foreign
import numpy as np
import pytest
import tiny_transformers as tiny
import torch
from test_comfy_files import KITCHEN, output

import fewbit
from fewbit.errors import BadArgument, BadModel, BadOutput
from fewbit.layers.linear import quantized_layers
from fewbit.methods.portable import VARIANTS
from fewbit.storage.foreign.gguf_blocks import BLOCKS
from fewbit.storage.foreign.writing import TARGETS

ALL = pytest.mark.parametrize("name", TARGETS)
COMFY = [name for name in TARGETS if name.startswith("comfy")]
KINDS = {
    "comfy-int8": "int8_convrot",
    "comfy-w4a8": "asym_w4a8_int8",
    "comfy-convrot-w4a4": "convrot_w4a4",
    "comfy-nvfp4": "nvfp4",
}


DATA = [
    {
        "hidden_states": foreign.normal(1, 4, 8, 8, seed=row),
        "timestep": torch.tensor([100 * row + 1]),
        "class_labels": torch.tensor([row]),
    }
    for row in range(8)
]


@pytest.fixture(scope="module")
def quantized():
    """A model in each format, quantized when it is first asked for."""
    made = {}

    def model(name):
        if name not in made:
            made[name] = tiny.make()
            fewbit.quantize(made[name], "portable", bits=name, calibration=DATA, progress=False)
        return made[name]

    return model


def file_of(model, name, folder):
    file = folder / f"x{TARGETS[name].suffix}"
    fewbit.export(model, file, name)
    return file


def test_each_format_has_its_bits_and_its_word_on_the_command_line():
    from fewbit.cli.export import FORMATS

    assert set(TARGETS) == set(VARIANTS) == set(FORMATS)


@ALL
def test_what_is_written_is_read_again_to_the_last_bit(quantized, name, tmp_path):
    model = quantized(name)
    again = fewbit.load(file_of(model, name, tmp_path), like=tiny.make())
    layers = quantized_layers(again)
    assert layers.keys() == quantized_layers(model).keys()
    for path, layer in quantized_layers(model).items():
        assert layers[path].spec == layer.spec
        assert str(layers[path].stage) == str(layer.stage)
        ours, theirs = (one.packed_weight.tensors() for one in (layer, layers[path]))
        assert all(torch.equal(as_bytes(theirs[key]), as_bytes(ours[key])) for key in ours)
    assert torch.equal(output(again), output(model))
    first = (tmp_path / f"x{TARGETS[name].suffix}").read_bytes()
    (tmp_path / "again").mkdir()
    assert file_of(again, name, tmp_path / "again").read_bytes() == first


def as_bytes(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("name", COMFY)
def test_comfy_kitchen_has_the_same_weights_and_products(quantized, name, tmp_path):
    kitchen = pytest.importorskip("comfy_kitchen.tensor")
    from safetensors.torch import load_file

    model = quantized(name)
    tensors = load_file(file_of(model, name, tmp_path))
    layout, _, _ = KITCHEN[KINDS[name]]
    checked = 0
    for path, layer in quantized_layers(model).items():
        if layer.stage is None and name != "comfy-nvfp4":
            assert "full_precision" in bytes(tensors[f"{path}.comfy_quant"].tolist()).decode()
            continue
        if layer.spec.format.name == "int8" and name == "comfy-nvfp4":
            continue
        packed = as_kitchen(kitchen, layout, path, tensors, layer)
        assert torch.equal(layer.effective_weight(), packed.dequantize()), path
        x = foreign.normal(5, layer.in_features)
        expected = torch.nn.functional.linear(x, packed, layer.bias)
        # A sum of a rotation may round an input to the code beside the one that they have.
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=0.02 * expected.abs().max())
        checked += 1
    assert checked


def as_kitchen(kitchen, layout, path, tensors, layer):
    stem = f"{path}.weight"
    part = {n.removeprefix(stem): one for n, one in tensors.items() if n.startswith(stem)}
    shape = {"orig_dtype": torch.float32, "orig_shape": (layer.out_features, layer.in_features)}
    block = {} if layer.stage is None else {"convrot_groupsize": layer.stage.transform.block}
    if layout == "TensorCoreNVFP4Layout":
        given = {"scale": part["_scale_2"], "block_scale": part["_scale"]}
    elif layout == "AsymW4A8Int8Layout":
        given = {"scale": part["_s_rel"], "s_channel": part["_s_channel"], **block}
        given |= {"codebook": part["_codebook"], "group_size": 16}
    else:
        given = {"scale": part["_scale"], **block}
        given |= {"convrot": True} if layout == "TensorWiseINT8Layout" else {}
    params = getattr(kitchen, layout).Params(**given, **shape)
    return kitchen.QuantizedTensor(part[""], layout, params)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_the_package_gguf_has_the_same_weights(quantized, block, tmp_path):
    gguf = pytest.importorskip("gguf")
    name = f"gguf-{block.name}"
    model = quantized(name)
    reader = gguf.GGUFReader(file_of(model, name, tmp_path))
    assert reader.get_field("general.architecture").contents() == "dit"
    stored, kinds = {one.name: one for one in reader.tensors}, set()
    assert stored.keys() == tiny.make().state_dict().keys()
    for path, layer in quantized_layers(model).items():
        one = stored[f"{path}.weight"]
        kinds.add(one.tensor_type.name.lower())
        found = gguf.quants.dequantize(one.data, one.tensor_type)
        assert np.array_equal(found, layer.packed_weight.dequantize().numpy()), path
    assert block.name in kinds <= {block.name, "q8_0"}
    bias = stored["proj_out_1.bias"].data
    assert np.array_equal(bias, model.state_dict()["proj_out_1.bias"].numpy())


def test_other_recipes_that_fit(tmp_path):
    model = tiny.quantized(bits="w8a8")
    again = fewbit.load(file_of(model, "comfy-int8", tmp_path), like=tiny.make())
    assert torch.equal(output(again), output(model))


@pytest.mark.parametrize(
    ("bits", "settings", "name"),
    [
        ("w4a4", {}, "comfy-convrot-w4a4"),
        ("w8a8", {}, "gguf-q8_0"),
        ("w8a8", {"group_size": 16}, "comfy-int8"),
        ("w8a8", {}, "comfy-w4a8"),
        ("nvfp4", {}, "comfy-nvfp4"),
        ("w6a6", {"asymmetric": True}, "gguf-q5_1"),
    ],
)
def test_a_recipe_that_does_not_fit_names_the_one_that_does(bits, settings, name, tmp_path):
    model = tiny.quantized(bits=bits, **settings)
    with pytest.raises(BadModel, match=rf"which {name} has no place for; .* portable:{name}"):
        file_of(model, name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_else_is_refused(quantized, tmp_path):
    model = quantized("comfy-int8")
    with pytest.raises(BadArgument, match=r"unknown format 'pickle'; formats: comfy-int8, .*onnx"):
        fewbit.export(model, tmp_path / "x", "pickle")
    with pytest.raises(BadArgument, match="gguf-q4_0 holds no graph, so call has no meaning"):
        fewbit.export(model, tmp_path / "x.gguf", "gguf-q4_0", call={})
    with pytest.raises(BadArgument, match=r"must end in .gguf, as files of gguf-q4_0 do"):
        fewbit.export(model, tmp_path / "x.safetensors", "gguf-q4_0")
    with pytest.raises(BadModel, match="the model is not quantized"):
        fewbit.export(tiny.make(), tmp_path / "x.safetensors", "comfy-int8")
    file_of(model, "comfy-int8", tmp_path)
    with pytest.raises(BadOutput, match="already exists"):
        file_of(model, "comfy-int8", tmp_path)
    fewbit.export(model, tmp_path / "x.safetensors", "comfy-int8", overwrite=True)


def test_a_pipeline_gives_its_denoiser(quantized, tmp_path):
    pipe = tiny.pipeline(quantized("comfy-w4a8"))
    again = fewbit.load(file_of(pipe, "comfy-w4a8", tmp_path), like=tiny.make())
    assert torch.equal(output(again), output(pipe.transformer))
