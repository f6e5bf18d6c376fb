"""Files of ComfyUI: what layers become, comfy-kitchen as the judge, and what is refused."""

import json

import foreign_files as foreign
import pytest
import tiny_transformers as tiny
import torch
from foreign_files import marker, normal

import fewbit
from fewbit.errors import BadArgument, BadModel, BrokenFile
from fewbit.layers.linear import quantized_layers
from fewbit.storage.foreign.blocked import blocked, unblocked

LAYER = "transformer_blocks.0.attn1.to_q"


@pytest.fixture
def plain(tmp_path):
    """A file of int8, its tensors to be changed, and how it loads."""
    tensors = foreign.comfy_tensors(tiny.make())

    def load(like=None, **metadata):
        file = foreign.write(tmp_path / "x.safetensors", tensors, **metadata)
        return fewbit.load(file, like=tiny.make() if like is None else like)

    return tensors, load


def output(model):
    given = {
        "hidden_states": normal(2, 4, 8, 8),
        "timestep": torch.tensor([10, 700]),
        "class_labels": torch.tensor([1, 2]),
    }
    with torch.no_grad():
        return model(**given).sample


def test_layers_are_packed_as_they_were_stored(plain):
    tensors, load = plain
    model = load()
    layers = quantized_layers(model)
    assert layers.keys() == foreign.linears(tiny.make()).keys()
    for name, layer in layers.items():
        stored = tensors[f"{name}.weight"]
        assert torch.equal(layer.packed_weight.packed.view(torch.int8), stored)
        assert torch.equal(layer.scales, tensors[f"{name}.weight_scale"])
        assert str(layer.stage) == "int8/row/fp32"
    assert model.fewbit.recipe["method"] == "comfy"
    assert not any(
        parameter.requires_grad for parameter in quantized_layers(model)[LAYER].parameters()
    )
    block = model.transformer_blocks[0].attn1
    assert block.to_q.stage is block.to_k.stage is block.to_v.stage


def test_it_can_be_saved_as_our_own_and_looked_into(plain, tmp_path):
    model = plain[1]()
    fewbit.save(model, tmp_path / "own")
    assert "another fewbit" not in str(fewbit.inspect(tmp_path / "own"))
    assert torch.equal(output(fewbit.load(tmp_path / "own")), output(model))


def test_like_a_pipeline_a_folder_or_a_table(plain, tmp_path):
    _, load = plain
    expected, model = output(load()), tiny.make()
    model.save_config(tmp_path / "config")
    table = json.loads((tmp_path / "config" / "config.json").read_text())
    for like in (tmp_path / "config", str(tmp_path / "config"), table):
        assert torch.equal(output(load(like)), expected)
    pipe = tiny.pipeline(tiny.make())
    assert load(pipe) is pipe
    assert torch.equal(output(pipe.transformer), expected)


def test_what_a_file_is_like_must_be_said(plain, tmp_path):
    plain[1]()
    with pytest.raises(BadArgument, match=r"x.safetensors does not say what model .* give like="):
        fewbit.load(tmp_path / "x.safetensors")
    with pytest.raises(BadModel, match="is quantized already"):
        plain[1](tiny.quantized())


def test_older_files_say_it_in_the_header(plain):
    tensors, load = plain
    expected = output(load())
    said = {
        name.removesuffix(".comfy_quant"): json.loads(bytes(tensors[name].tolist()))
        for name in [name for name in tensors if name.endswith(".comfy_quant")]
    }
    both = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": said})}
    assert torch.equal(output(load(**both)), expected)
    for name in said:
        del tensors[f"{name}.comfy_quant"]
    assert torch.equal(output(load(**both)), expected)
    short = dict.fromkeys(said, "int8_tensorwise")
    assert torch.equal(output(load(_quantization_metadata=json.dumps({"layers": short}))), expected)


def test_files_of_whole_pipelines_name_the_denoiser_by_a_prefix(plain):
    tensors, load = plain
    expected = output(load())
    for name in list(tensors):
        tensors[f"model.diffusion_model.{name}"] = tensors.pop(name)
    tensors["first_stage_model.decoder.weight"] = normal(3, 3)
    assert torch.equal(output(load()), expected)


def test_a_layer_whose_input_is_not_to_be_rounded(plain):
    tensors, load = plain
    said = {"format": "int8_tensorwise", "full_precision_matrix_mult": True}
    tensors[f"{LAYER}.comfy_quant"] = marker(**said)
    assert load().get_submodule(LAYER).stage is None


def test_a_layer_that_rotates_its_input_and_does_not_round_it(plain):
    tensors, load = plain
    said = {"group_size": 16, "convrot_groupsize": 64, "full_precision_matrix_mult": True}
    w4a8(comfy_quant=marker(format="asym_w4a8_int8", **said))(tensors)
    layer = load().get_submodule(LAYER)
    assert str(layer.stage) == "regular hadamard 64"
    x = normal(3, 64)
    torch.testing.assert_close(layer(x), x @ layer.effective_weight().T + layer.bias)


def test_inputs_of_four_bit_layers_may_have_eight(plain):
    tensors, load = plain
    weight = torch.full((64, 32), 0x12, dtype=torch.int8)
    said = {"format": "convrot_w4a4", "convrot_groupsize": 64}
    for kind, spec in (("int4", "int4/row/fp32"), ("int8", "int8/row/fp32")):
        tensors[f"{LAYER}.weight"] = weight
        tensors[f"{LAYER}.comfy_quant"] = marker(**said, linear_dtype=kind)
        layer = load().get_submodule(LAYER)
        assert str(layer.stage) == f"regular hadamard 64 > {spec}"
        assert layer.packed_weight.dequantize()[0, :2].tolist() == [
            2 * layer.scales[0].item(),
            layer.scales[0].item(),
        ]
    tensors[f"{LAYER}.comfy_quant"] = marker(**said, linear_dtype="fp8")
    with pytest.raises(BrokenFile, match="has inputs in 'fp8'; allowed: int4, int8"):
        load()


@pytest.mark.parametrize("scaled", [False, True])
def test_fp8_that_is_older_than_markers(plain, scaled):
    tensors, load = plain
    for name in foreign.linears(tiny.make()):
        del tensors[f"{name}.comfy_quant"], tensors[f"{name}.weight_scale"]
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"].float().to(torch.float8_e4m3fn)
        if scaled:
            tensors[f"{name}.scale_weight"] = torch.tensor(0.25)
            tensors[f"{name}.scale_input"] = torch.tensor(1.0)
    tensors["scaled_fp8"] = torch.zeros(2 if scaled else 0).to(torch.float8_e4m3fn)
    layer = load().get_submodule(LAYER)
    assert str(layer.spec) == "e4m3/tensor/fp32"
    stored = tensors[f"{LAYER}.weight"].float() * (0.25 if scaled else 1)
    assert torch.equal(layer.effective_weight(), stored)


def test_an_nvfp4_layer_by_hand(plain):
    """The even column of a byte is in its upper half; a scale of 0 makes zeros, and rows pad."""
    tensors, load = plain
    scales = torch.full((64, 4), 2.0)
    scales[1, 0], scales[0, 1] = 0.0, 0.5
    weight = torch.zeros(64, 32, dtype=torch.uint8)
    weight[0, 0], weight[0, 8], weight[1, 0] = 0x2A, 0x07, 0x77  # 1 and -1; 0 and 6; 6 and 6
    del tensors[f"{LAYER}.weight_scale"]
    tensors |= {
        f"{LAYER}.weight": weight,
        f"{LAYER}.weight_scale": blocked(scales.to(torch.float8_e4m3fn).view(torch.uint8)),
        f"{LAYER}.weight_scale_2": torch.tensor(0.25),
        f"{LAYER}.comfy_quant": marker(format="nvfp4"),
    }
    layer = load().get_submodule(LAYER)
    assert str(layer.spec) == "e2m1/g16/e4m3"
    expected = torch.zeros(64, 64)
    expected[0, 0], expected[0, 1], expected[0, 17] = 0.5, -0.5, 0.75
    assert torch.equal(layer.effective_weight(), expected)


def test_tiles_of_scales():
    scales = torch.arange(130 * 6).view(130, 6)
    tiles = blocked(scales)
    assert tiles.shape == (256, 8)
    flat = tiles.flatten()
    assert flat[:8].tolist() == [0, 1, 2, 3, 32 * 6, 32 * 6 + 1, 32 * 6 + 2, 32 * 6 + 3]
    assert flat[512:516].tolist() == [4, 5, 0, 0]  # the second tile of the first rows
    assert torch.equal(unblocked(tiles, 130, 6), scales)


def without(*names):
    return lambda tensors: [tensors.pop(f"{LAYER}.{name}") for name in names]


def said(**changes):
    said = {"format": "int8_tensorwise", **changes}
    return lambda tensors: tensors.update({f"{LAYER}.comfy_quant": marker(**said)})


def changed(name, tensor):
    return lambda tensors: tensors.update({name if "." in name else f"{LAYER}.{name}": tensor})


W4A8 = {
    "weight": torch.zeros(64, 32, dtype=torch.int8),
    "weight_s_rel": torch.ones(64, 4).to(torch.float8_e4m3fn),
    "weight_s_channel": torch.ones(64),
    "weight_codebook": torch.arange(16.0),
    "comfy_quant": marker(format="asym_w4a8_int8", group_size=16, convrot_groupsize=64),
}


def w4a8(**changes):
    def change(tensors):
        del tensors[f"{LAYER}.weight_scale"]
        new = {**W4A8, **changes}
        tensors.update({f"{LAYER}.{name}": t for name, t in new.items() if t is not None})

    return change


NAN = torch.full((64, 4), torch.nan).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (without("weight_scale"), f"{LAYER} lacks weight_scale, which int8_tensorwise stores"),
        (without("weight"), f"{LAYER} lacks weight, which int8_tensorwise stores"),
        (
            without("weight", "weight_scale", "bias"),
            f"marks the layer '{LAYER}', of which it holds no",
        ),
        (
            changed("weight", torch.zeros(64, 64)),
            "has weight in torch.float32, expected torch.int8",
        ),
        (changed("weight", torch.zeros(64, 32, dtype=torch.int8)), r"is \[64, 32\], the model has"),
        (
            changed("weight_scale", torch.ones(63, 1)),
            r"has weight_scale \[63, 1\], expected \[64, 1\]",
        ),
        (changed("weight_scale", torch.ones(64, 1).long()), "has weight_scale in torch.int64"),
        (changed("weight_scale", -torch.ones(64, 1)), "a scale that is not positive and finite"),
        (
            changed("weight_zeros", torch.ones(64)),
            "holds 'weight_zeros', which is not read in int8",
        ),
        (said(format="int3"), "has the format 'int3'; formats that are read: int8_tensorwise, "),
        (said(format=8), "says format = 8; this version knows format: str"),
        (said(convrot=1), "says convrot = 1; this version knows .* convrot: bool"),
        (said(num_experts=4), "says num_experts = 4; this version knows"),
        (said(convrot=True), "rotates groups of 256 channels, .* do not divide 64 columns"),
        (said(convrot=True, convrot_groupsize=32), "rotates groups of 32 .* no power of 4"),
        (changed("comfy_quant", marker()[1:]), "comfy_quant is not valid JSON"),
        (changed("comfy_quant", torch.tensor([255, 0], dtype=torch.uint8)), "is not valid JSON"),
        (changed("comfy_quant", torch.ones(3)), r"torch.float32 \[3\], expected bytes of JSON"),
        (
            changed("new.comfy_quant", marker(format="nvfp4")),
            "the layer 'new', of which it holds no",
        ),
        (
            changed("proj_out_1.bias", torch.ones(3)),
            r"proj_out_1.bias is \[3\], the model has \[128\]",
        ),
        (
            changed("proj_out_1.bias", torch.ones(128).long()),
            "is torch.int64, expected torch.float32",
        ),
        (changed("extra.weight", torch.ones(3)), "holds extra.weight, which DiTTrans.* has not"),
        (lambda tensors: tensors.pop("proj_out_1.bias"), "lacks proj_out_1.bias, which DiT"),
        (w4a8(weight_s_rel=None), "lacks weight_s_rel, which asym_w4a8_int8 stores"),
        (w4a8(weight_s_rel=torch.ones(64, 4)), "has weight_s_rel in torch.float32, expected"),
        (
            w4a8(weight_s_rel=torch.ones(64, 3).to(torch.float8_e4m3fn)),
            r"\[64, 3\], expected \[64, 4\]",
        ),
        (w4a8(weight_s_rel=NAN), "a scale that is not positive and finite"),
        (w4a8(weight_codebook=torch.ones(15)), r"weight_codebook \[15\], expected \[16, 1\]"),
        (w4a8(weight_codebook=torch.full((16,), torch.inf)), "a number that is not finite"),
        (w4a8(weight_correction=torch.ones(4, 64)), "holds 'weight_correction', which is not read"),
        (
            w4a8(comfy_quant=marker(format="asym_w4a8_int8", group_size=24)),
            "groups of 24, which do not divide 64 columns",
        ),
    ],
)
def test_what_is_refused(plain, change, complaint):
    tensors, load = plain
    change(tensors)
    model = tiny.make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(BrokenFile, match=complaint) as error:
        load(model)
    assert len(str(error.value)) < 800
    after = model.state_dict()  # nothing of the model was touched
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], one) for name, one in before.items())


def test_markers_that_differ(plain):
    layers = {"layers": {LAYER: {"format": "nvfp4"}}}
    with pytest.raises(BrokenFile, match="say different things of a layer"):
        plain[1](_quantization_metadata=json.dumps(layers))
    for text, complaint in (
        ("{", "is not valid JSON"),
        ("{}", "has no table of layers"),
        ('{"layers": {"a": []}}', "of a is no table but"),
    ):
        with pytest.raises(BrokenFile, match=f"_quantization_metadata {complaint}"):
            plain[1](_quantization_metadata=text)


def test_a_truncated_file_and_one_that_is_not_quantized(plain, tmp_path):
    plain[1]()
    file = tmp_path / "x.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(BrokenFile, match="is truncated or altered"):
        fewbit.load(file, like=tiny.make())
    foreign.write(file, tiny.make().state_dict())
    with pytest.raises(BrokenFile, match="holds no quantized model"):
        fewbit.load(file, like=tiny.make())


ROTATED = {"convrot_groupsize": foreign.BLOCK}
KITCHEN = {
    "int8_tensorwise": ("TensorWiseINT8Layout", {"per_channel": True}, {}),
    "int8_convrot": (
        "TensorWiseINT8Layout",
        {"per_channel": True, "convrot": True, **ROTATED},
        {"convrot": True, **ROTATED},
    ),
    "convrot_w4a4": ("TensorCoreConvRotW4A4Layout", ROTATED, ROTATED),
    "asym_w4a8_int8": ("AsymW4A8Int8Layout", ROTATED, {"group_size": 16, **ROTATED}),
    "nvfp4": ("TensorCoreNVFP4Layout", {}, {}),
    "mxfp8": ("TensorCoreMXFP8Layout", {}, {}),
    "float8_e4m3fn": ("TensorCoreFP8Layout", {}, {}),
}


class TestKitchen:
    """comfy-kitchen writes the file and says what comes out."""

    @pytest.fixture(params=KITCHEN)
    def made(self, request, tmp_path):
        """The model that was read, and each layer as comfy-kitchen has it."""
        kitchen = pytest.importorskip("comfy_kitchen.tensor")
        name, how, says = KITCHEN[request.param]
        layout, exact = getattr(kitchen, name), {}
        fmt = request.param.replace("int8_convrot", "int8_tensorwise")

        def layer(weight, path):
            stored, params = layout.quantize(weight * weight[:, :1].abs() * 9, **how)
            exact[path] = kitchen.QuantizedTensor(stored, name, params)
            parts = layout.state_dict_tensors(stored, params)
            parts = {f"{path}.weight{suffix}": as_stored(one) for suffix, one in parts.items()}
            return {**parts, f"{path}.comfy_quant": marker(format=fmt, **says)}

        tensors = foreign.comfy_tensors(tiny.make(), layer)
        file = foreign.write(tmp_path / "x.safetensors", tensors)
        return fewbit.load(file, like=tiny.make()), exact

    def test_weights_are_the_same_to_the_last_bit(self, made):
        model, exact = made
        for name, packed in exact.items():
            assert torch.equal(model.get_submodule(name).effective_weight(), packed.dequantize())

    def test_products_are_the_same(self, made):
        """To the last bit where all is integers: the inputs are chosen so that their scale is 1,
        and that the rotation of them is exact."""
        model, exact = made
        for name, packed in exact.items():
            layer = model.get_submodule(name)
            integers = torch.randint(-7, 8, (5, layer.in_features), generator=torch.Generator())
            integers[:, 0] = 7
            x, stage = integers.float(), layer.stage
            if stage is not None:
                x[:, 0] = stage.activation.spec.format.max
                x = x if stage.transform is None else stage.transform(x)
            expected = torch.nn.functional.linear(x, packed, layer.bias)
            found = layer(x)
            if stage is None:
                torch.testing.assert_close(
                    found, expected, rtol=0, atol=1e-6 * expected.abs().max()
                )
            else:
                assert torch.equal(found, expected), name


def as_stored(tensor):
    """safetensors has no type for powers of two."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e8m0fnu else tensor
