"""Text encoders of transformers: quantized, saved and loaded by its own calls."""

import subprocess
import sys

import pytest
import safetensors.torch
import torch
from small_dit import bits_of

import fewbit
from fewbit.errors import BadCalibration, BadModel, BrokenFile
from fewbit.layers.linear import QLinear

diffusers = pytest.importorskip("diffusers")

import tiny_pipelines  # noqa: E402

from fewbit.diffusers.while_loading import Rounding  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.arange(4, 11)[None]
CALL = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
ENCODERS = {
    "T5": tiny_pipelines.t5,
    "UMT5": lambda: tiny_pipelines.t5("UMT5EncoderModel"),
    "CLIP": tiny_pipelines.clip,
    "Qwen3": tiny_pipelines.qwen3,
    "Gemma2": tiny_pipelines.gemma2,
}


def encoder(name="T5"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ENCODERS[name]().eval()


@torch.no_grad()
def output(model):
    return model(**CALL)[0]


def packed(model):
    return [name for name, part in model.named_modules() if isinstance(part, QLinear)]


@pytest.mark.parametrize("recipe", ["rtn:w4a4", "hq-dit:w4a8"])
@pytest.mark.parametrize("name", ENCODERS)
def test_it_comes_back_to_the_last_bit_by_both_doors(name, recipe, tmp_path):
    model = encoder(name)
    plain = output(model)
    given = {} if recipe.startswith("rtn") else {"calibration": [CALL]}
    report = fewbit.quantize(model, recipe, progress=False, **given)
    assert sorted(packed(model)) == sorted(layer.name for layer in report.layers)
    expected = output(model)
    assert expected.isfinite().all()
    assert not torch.equal(expected, plain)
    model.save_pretrained(tmp_path / "small")
    for load in (type(model).from_pretrained, fewbit.load):
        assert torch.equal(output(load(tmp_path / "small")), expected)
    told = fewbit.inspect(tmp_path / "small")
    assert [one.name for one in told.layers if one.status == "quantized"] == packed(model)


def test_a_loaded_one_writes_the_same_file(tmp_path):
    model = encoder()
    fewbit.quantize(model, "rtn", progress=False)
    model.save_pretrained(tmp_path / "one")
    type(model).from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    one, two = ((tmp_path / at / "model.safetensors").read_bytes() for at in ("one", "two"))
    assert one == two


def test_shards_come_back(tmp_path):
    model = encoder()
    fewbit.quantize(model, "rtn", progress=False)
    model.save_pretrained(tmp_path, max_shard_size="16KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    for load in (type(model).from_pretrained, fewbit.load):
        assert torch.equal(output(load(tmp_path)), output(model))


def test_another_dtype_leaves_the_packed_layers_as_they_are(tmp_path):
    model = encoder()
    fewbit.quantize(model, "rtn", progress=False)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    name = packed(model)[0]
    ours, theirs = model.get_submodule(name), loaded.get_submodule(name)
    assert torch.equal(ours.codes, theirs.codes)
    assert torch.equal(ours.scales, theirs.scales)
    assert loaded.shared.weight.dtype == torch.bfloat16
    assert output(loaded).dtype == torch.bfloat16


def test_an_altered_file_is_refused(tmp_path):
    model = encoder()
    fewbit.quantize(model, "rtn", progress=False)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(fewbit.FewbitError, match=r"CRC-32|checksum"):
        type(model).from_pretrained(tmp_path)


def test_dequantizing_takes_the_configuration_out(tmp_path):
    model = encoder()
    fewbit.quantize(model, "rtn:w8a8", progress=False)
    fewbit.dequantize(model)
    assert not packed(model)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    assert torch.equal(output(type(model).from_pretrained(tmp_path)), output(model))


def test_a_run_that_ends_early_leaves_the_configuration_as_it_was(monkeypatch):
    pipe = tiny_pipelines.make("wan_2_2")
    solve = fewbit.engine.run._Run._solve

    def fail(run, *args):
        if run.component.name == "transformer":
            raise KeyboardInterrupt
        solve(run, *args)

    monkeypatch.setattr(fewbit.engine.run._Run, "_solve", fail)
    with pytest.raises(KeyboardInterrupt):
        fewbit.quantize(pipe, "rtn", components=["text_encoder", "transformer"], progress=False)
    assert not hasattr(pipe.text_encoder.config, "quantization_config")
    assert not hasattr(pipe.text_encoder, "fewbit")


def test_it_is_quantized_while_its_pipeline_is_loaded(tmp_path):
    tiny_pipelines.make("chroma").save_pretrained(tmp_path / "plain")
    config = fewbit.FewbitConfig("rtn", bits="w8a8", modules_to_not_convert=["block.0"])
    mapping = {"transformer": fewbit.FewbitConfig("rtn"), "text_encoder": config}
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        tmp_path / "plain",
        quantization_config=diffusers.PipelineQuantizationConfig(quant_mapping=mapping),
    )
    names = packed(pipe.text_encoder)
    assert names
    assert not any("block.0" in name for name in names)
    assert packed(pipe.transformer)
    pipe.save_pretrained(tmp_path / "small")
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "small")
    assert packed(loaded.text_encoder) == names
    assert torch.equal(output(loaded.text_encoder), output(pipe.text_encoder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ENCODERS)
def test_while_loading_is_the_same_as_afterwards(name, dtype, tmp_path):
    encoder(name).save_pretrained(tmp_path)
    read = type(encoder(name)).from_pretrained
    config = fewbit.FewbitConfig("rtn", bits="w4a4")
    loaded = read(tmp_path, dtype=dtype, quantization_config=config)
    expected = read(tmp_path, dtype=dtype)
    fewbit.quantize(expected, "rtn", bits="w4a4", progress=False)
    assert packed(loaded) == packed(expected)
    assert bits_of(loaded) == bits_of(expected)
    assert torch.equal(output(loaded), output(expected))
    assert loaded.fewbit == expected.fewbit


def test_no_more_than_one_group_is_there_in_full_precision(tmp_path, monkeypatch):
    encoder().save_pretrained(tmp_path)
    take, there = Rounding.take, []

    def watched(rounding, *given):
        done = take(rounding, *given)
        layers = [rounding.model.get_submodule(name) for name in rounding.plan.rules]
        there.append(sum(not isinstance(a, QLinear) and not a.weight.is_meta for a in layers))
        return done

    monkeypatch.setattr(Rounding, "take", watched)
    model = type(encoder()).from_pretrained(tmp_path, quantization_config=fewbit.FewbitConfig())
    assert len(there) == len(packed(model)) == 14
    assert max(there) == 2  # of q, k and v, until the third has come
    assert there[-1] == 0


def test_a_weight_that_the_checkpoint_lacks_is_named(tmp_path):
    encoder().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    lost = next(name for name in tensors if name.endswith("SelfAttention.k.weight"))
    del tensors[lost]
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    with pytest.raises(BrokenFile, match=f"lacks the weight of {lost.removesuffix('.weight')}"):
        type(encoder()).from_pretrained(tmp_path, quantization_config=fewbit.FewbitConfig())


def test_a_network_without_blocks_is_refused_with_the_way_out(tmp_path):
    tiny_pipelines.make("chroma").save_pretrained(tmp_path)
    config = diffusers.PipelineQuantizationConfig("fewbit", {"recipe": "rtn"})
    said = r"AutoencoderKL has no .* components_to_quantize="
    with pytest.raises(BadModel, match=said) as refused:
        diffusers.DiffusionPipeline.from_pretrained(tmp_path, quantization_config=config)
    assert len(str(refused.value)) < 300
    config.components_to_quantize = ["transformer", "text_encoder"]
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path, quantization_config=config)
    assert packed(pipe.transformer)
    assert packed(pipe.text_encoder)
    assert not packed(pipe.vae)


def test_a_recipe_that_needs_data_is_refused_while_loading(tmp_path):
    model = encoder()
    model.save_pretrained(tmp_path)
    config = fewbit.FewbitConfig("hq-dit")
    with pytest.raises(BadCalibration, match="cannot be applied while loading"):
        type(model).from_pretrained(tmp_path, quantization_config=config)


def test_transformers_alone_reads_it(tmp_path):
    model = encoder()
    fewbit.quantize(model, "rtn", progress=False)
    model.save_pretrained(tmp_path)
    code = (
        "import fewbit, sys\n"
        "from transformers import T5EncoderModel\n"
        "assert not any(name.startswith('diffusers') for name in sys.modules)\n"
        f"model = T5EncoderModel.from_pretrained({str(tmp_path)!r})\n"
        "assert any(type(part).__name__ == 'QLinear' for part in model.modules())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
