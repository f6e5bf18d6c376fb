"""Quantized models through diffusers' own from_pretrained and save_pretrained."""

import copy
import shutil
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import diffusers
import pytest
import safetensors.torch
import tiny_transformers as tiny
import torch
from diffusers.quantizers import PipelineQuantizationConfig

import fewbit
from fewbit.diffusers.plugin import FewbitConfig, _Reading
from fewbit.errors import BadArgument, BadCalibration, BrokenFile
from fewbit.layers.bind import bind, unbind
from fewbit.layers.linear import QLinear
from fewbit.storage.manifest import manifest_of
from fewbit.storage.reader import Artefact
from fewbit.storage.strict_json import read_table

BITS = ("w8a8", "w4a4", "w2a16", "mxfp4", "nvfp4")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load(folder, **how):
    name = read_table(folder / "config.json")["_class_name"]
    return getattr(diffusers, name).from_pretrained(folder, **how)


def same_state(one, other):
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(
            tensor.contiguous().view(-1).view(torch.uint8),
            b[name].contiguous().view(-1).view(torch.uint8),
        ), name


@pytest.mark.parametrize("name", tiny.NAMES)
@pytest.mark.parametrize("bits", BITS)
def test_outputs_before_save_and_after_load_are_bit_equal(name, bits, tmp_path):
    model = tiny.quantized(name, bits)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    same_state(model, loaded)
    assert torch.equal(tiny.run(loaded), tiny.run(model))
    assert any(isinstance(module, QLinear) for module in loaded.modules())


@pytest.mark.parametrize("name", tiny.NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("word", ["dtype", "torch_dtype"])
def test_every_dtype(name, dtype, word, tmp_path):
    """Quantized in a dtype, saved, loaded in it: the very same model; scales are never cast."""
    model = tiny.in_dtype(dtype, tmp_path / "plain", name)
    fewbit.quantize(model, "rtn", bits="nvfp4", progress=False)
    model.save_pretrained(tmp_path / "packed")
    loaded = load(tmp_path / "packed", **{word: dtype})
    same_state(model, loaded)
    assert torch.equal(tiny.run(loaded, dtype), tiny.run(model, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loading_casts_what_is_kept_and_nothing_that_is_packed(dtype, tmp_path):
    model = tiny.quantized(bits="nvfp4")
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype=dtype)
    layer = loaded.transformer_blocks[0].attn1.to_q
    assert layer.scales.dtype == torch.float8_e4m3fn
    assert layer.outer_scales.dtype == torch.float32
    assert layer.bias.dtype == loaded.proj_out_2.weight.dtype == dtype
    assert tiny.run(loaded, dtype).dtype == dtype


@pytest.mark.parametrize("name", tiny.NAMES)
def test_shards(name, tmp_path):
    model = tiny.quantized(name)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load(tmp_path)
    same_state(model, loaded)
    same_state(model, fewbit.load(tmp_path))


@pytest.mark.parametrize(
    ("name", "device_map"),
    [(tiny.NAMES[0], {"": "cpu"}), (tiny.NAMES[1], {"": "cpu"}), (tiny.NAMES[1], "auto")],
)
def test_device_map(name, device_map, tmp_path):
    model = tiny.quantized(name)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, device_map=device_map)
    assert torch.equal(tiny.run(loaded), tiny.run(model))


def test_identical_tensors_are_stored_once_and_shared_in_any_dtype(tmp_path):
    model = tiny.make()
    first, second = model.transformer_blocks
    second.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    fewbit.quantize(model, "rtn", bits="w4a4", progress=False)
    model.save_pretrained(tmp_path)
    stored = safetensors.torch.load_file(tiny.weights(tmp_path))
    assert "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight" in stored
    assert "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.weight" not in stored
    for dtype in DTYPES:
        one, two = (
            block.norm1.emb.timestep_embedder.linear_1.weight
            for block in load(tmp_path, dtype=dtype).transformer_blocks
        )
        assert one.dtype == dtype
        assert one.data_ptr() == two.data_ptr()


def test_an_alias_keeps_the_dtype_of_its_own_place(tmp_path):
    """A scale and a kept table may hold the same bytes, but only the table follows the dtype."""
    model = tiny.quantized(tiny.NAMES[1], "w8a8")
    layer = model.transformer_blocks[0].attn1.to_q
    layer.scales.fill_(0.5)
    name, twin = "transformer_blocks.0.attn1.to_q.scales", "twin"
    model.register_parameter(twin, torch.nn.Parameter(layer.scales.clone()))
    manifest, tensors = manifest_of(model, model.config)
    assert manifest.aliases[name] == twin
    none = {"prepare": lambda model: None, "tensors": lambda: nullcontext({})}
    reading = _Reading(SimpleNamespace(manifest=manifest, **none))
    reading.begin(model, ())
    reading.take(twin, tensors[twin], torch.bfloat16)
    assert model.twin.dtype == torch.bfloat16
    assert layer.scales.dtype == torch.float32


def test_an_altered_byte_is_refused_by_name_and_nothing_is_handed_out(tmp_path):
    tiny.quantized().save_pretrained(tmp_path)
    (header,) = Artefact.open(tmp_path).headers
    name = list(header.tensors)[-1]
    raw = bytearray(header.path.read_bytes())
    raw[header.tensors[name].start] ^= 1
    header.path.write_bytes(raw)
    before = threading.active_count()
    with pytest.raises(BrokenFile, match=rf"{header.path}: the data of {name} was altered"):
        load(tmp_path)
    assert threading.active_count() == before


def test_what_fails_before_the_tensors_are_checked_leaves_no_thread(tmp_path, monkeypatch):
    tiny.quantized().save_pretrained(tmp_path)
    running = threading.active_count()

    def fail(artefact, model):
        assert threading.active_count() > running, "they are not being checked yet"
        raise BrokenFile("the blueprint is no good")

    monkeypatch.setattr(Artefact, "prepare", fail)
    slow = fewbit.storage.tensors.checksums
    monkeypatch.setattr(fewbit.storage.tensors, "checksums", lambda t: time.sleep(0.2) or slow(t))
    with pytest.raises(BrokenFile, match="blueprint is no good") as kept:
        load(tmp_path)
    assert threading.active_count() == running, kept


def test_saving_over_the_folder_it_was_loaded_from(tmp_path):
    model = tiny.quantized()
    model.save_pretrained(tmp_path)
    loaded, before = load(tmp_path), tiny.run(model)
    for _ in range(2):
        loaded.save_pretrained(tmp_path)
        assert torch.equal(tiny.run(loaded), before)
        assert torch.equal(tiny.run(load(tmp_path)), before)


def test_saving_over_the_folder_of_a_model_that_fewbit_loaded(tmp_path):
    tiny.quantized().save_pretrained(tmp_path / "x")
    loaded, other = fewbit.load(tmp_path / "x"), fewbit.load(tmp_path / "x")
    before = tiny.run(loaded)
    fewbit.save(loaded, tmp_path / "x", overwrite=True)
    assert torch.equal(tiny.run(loaded), before)
    assert torch.equal(tiny.run(other), before)
    loaded.save_pretrained(tmp_path / "x")
    assert torch.equal(tiny.run(loaded), before)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_dequantize_gives_a_plain_model_that_diffusers_saves_and_loads(name, tmp_path):
    model = tiny.quantized(name, "w8a8")
    model.save_pretrained(tmp_path / "packed")
    loaded = load(tmp_path / "packed")
    loaded.dequantize()
    assert not any(isinstance(module, QLinear) for module in loaded.modules())
    assert not hasattr(loaded, "fewbit")
    loaded.save_pretrained(tmp_path / "plain")
    plain = load(tmp_path / "plain")
    assert "quantization_config" not in plain.config
    same_state(loaded, plain)
    assert torch.equal(tiny.run(plain), tiny.run(loaded))


def test_dequantized_tensors_no_longer_share_memory(tmp_path):
    model = tiny.quantized()
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    fewbit.dequantize(loaded)
    places = [parameter.data_ptr() for parameter in loaded.parameters()]
    assert len(set(places)) == len(places)


def test_pipeline_round_trip_draws_the_same_picture(tmp_path):
    pipe = tiny.pipeline(tiny.quantized())
    expected = tiny.picture(pipe)
    pipe.save_pretrained(tmp_path)
    assert torch.equal(tiny.picture(diffusers.DiTPipeline.from_pretrained(tmp_path)), expected)
    assert torch.equal(tiny.picture(fewbit.load(tmp_path)), expected)


def test_deepcopy_of_a_pipeline_then_save(tmp_path):
    pipe = tiny.pipeline(tiny.quantized())
    copied = copy.deepcopy(pipe)
    pipe.transformer.transformer_blocks[0].attn1.to_q.scales.mul_(2)
    copied.save_pretrained(tmp_path)
    loaded = load(tmp_path / "transformer")
    same_state(copied.transformer, loaded)
    assert copied.transformer.hf_quantizer.model is copied.transformer


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_rounding_while_loading_equals_rounding_after_loading(bits, dtype, tmp_path):
    tiny.make().save_pretrained(tmp_path, max_shard_size="200KB")
    config = FewbitConfig("rtn", bits=bits)
    while_loading = load(tmp_path, quantization_config=config, dtype=dtype)
    after = load(tmp_path, dtype=dtype)
    fewbit.quantize(after, "rtn", bits=bits, progress=False)
    same_state(while_loading, after)
    assert while_loading.fewbit == after.fewbit
    assert torch.equal(tiny.run(while_loading, dtype), tiny.run(after, dtype))


@pytest.mark.parametrize("name", tiny.NAMES[1:])
def test_rounding_while_loading_other_classes_then_saving(name, tmp_path):
    tiny.make(name).save_pretrained(tmp_path / "plain")
    model = load(tmp_path / "plain", quantization_config=FewbitConfig("rtn", bits="w4a4"))
    same_state(model, tiny.quantized(name))
    model.save_pretrained(tmp_path / "packed")
    same_state(load(tmp_path / "packed"), model)


def test_pipeline_quantization_config(tmp_path):
    pipe = tiny.pipeline(tiny.make())
    pipe.save_pretrained(tmp_path)
    config = PipelineQuantizationConfig(quant_mapping={"transformer": FewbitConfig("rtn")})
    loaded = diffusers.DiTPipeline.from_pretrained(tmp_path, quantization_config=config)
    same_state(loaded.transformer, tiny.quantized())


@pytest.mark.parametrize(
    "pattern",
    ["transformer_blocks.0.attn1.to_q", "to_q", "attn1", "transformer_blocks.0", "*.ff.*"],
)
def test_modules_to_not_convert(pattern, tmp_path):
    tiny.make().save_pretrained(tmp_path / "plain")
    config = FewbitConfig("rtn", modules_to_not_convert=[pattern])
    model = load(tmp_path / "plain", quantization_config=config)
    kept = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".emb." not in name and "blocks" in name
    }
    packed = {name for name, module in model.named_modules() if isinstance(module, QLinear)}
    word = pattern.strip("*.")
    assert packed
    assert kept == {name for name in kept | packed if f".{word}." in f".{name}."}
    model.save_pretrained(tmp_path / "packed")
    same_state(load(tmp_path / "packed"), model)


def test_a_name_that_keeps_nothing_is_an_error(tmp_path):
    tiny.make().save_pretrained(tmp_path)
    config = FewbitConfig("rtn", modules_to_not_convert=["to_z"])
    with pytest.raises(BadArgument, match="'to_z'"):
        load(tmp_path, quantization_config=config)


def test_calibrated_recipes_are_refused_while_loading(tmp_path):
    tiny.make().save_pretrained(tmp_path)
    with pytest.raises(BadCalibration, match=r"hq-dit needs calibration.*fewbit\.quantize"):
        load(tmp_path, quantization_config=FewbitConfig("hq-dit"))


def test_only_safetensors_are_written(tmp_path):
    with pytest.raises(BadArgument, match="never pickled"):
        tiny.quantized().save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.glob("*.bin"))


def test_modules_that_diffusers_keeps_in_fp32(tmp_path, monkeypatch):
    monkeypatch.setattr(
        diffusers.PixArtTransformer2DModel, "_keep_in_fp32_modules", ["scale_shift_table"]
    )
    model = tiny.quantized(tiny.NAMES[1])
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype=torch.bfloat16)
    assert loaded.scale_shift_table.dtype == torch.float32
    assert loaded.proj_out.weight.dtype == torch.bfloat16


def test_group_offload():
    model = tiny.quantized(tiny.NAMES[1])
    expected = tiny.run(model)
    model.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
    )
    assert torch.equal(tiny.run(model), expected)


@pytest.mark.parametrize("name", tiny.NAMES[:2])
def test_a_compiled_model_gives_the_eager_result(name, tmp_path):
    """The graph holds the same operations in the same order as the model's own forwards, and
    aot_eager runs them as they are: not one bit may differ."""
    model = tiny.quantized(name)
    unbind(model)
    expected = tiny.run(model)
    bind(model)
    model.compile(fullgraph=True, backend="aot_eager")
    assert torch.equal(tiny.run(model), expected)


def test_config_json_is_short_and_tells_the_recipe(tmp_path):
    model = tiny.quantized(bits="w8a8")
    model.save_pretrained(tmp_path)
    said = read_table(tmp_path / "config.json")["quantization_config"]
    assert said["recipe"] == model.fewbit.recipe
    assert said["bits"] == "w8a8"
    assert said["quant_method"] == "fewbit"
    spec = said.pop("spec")
    assert len(str(said)) < 400
    assert len(str(spec)) < 1000


def test_a_missing_weight_of_a_plain_model_is_an_error_while_rounding(tmp_path):
    tiny.make().save_pretrained(tmp_path)
    file = tiny.weights(tmp_path)
    tensors = safetensors.torch.load_file(file)
    del tensors["transformer_blocks.1.attn1.to_k.weight"]
    shutil.move(file, tmp_path / "old")
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    with pytest.raises(BrokenFile, match=r"transformer_blocks\.1\.attn1\.to_k"):
        load(tmp_path, quantization_config=FewbitConfig("rtn"))
