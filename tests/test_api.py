"""save, load, dequantize over everything that can be quantized."""

import pytest
import tiny_transformers as tiny
import torch

import fewbit
from fewbit.bench.footprint import resident_bytes
from fewbit.errors import BadArgument, BadModel, BrokenFile
from fewbit.kernels.choose import BACKENDS, VARIABLE
from fewbit.layers.linear import quantized_layers


@pytest.mark.parametrize("name", tiny.NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_save_and_load_a_transformer(name, dtype, tmp_path):
    model = tiny.in_dtype(dtype, tmp_path / "plain", name)
    fewbit.quantize(model, "rtn", bits="w4a4", progress=False)
    fewbit.save(model, tmp_path / "model")
    loaded = fewbit.load(tmp_path / "model")
    assert type(loaded) is type(model)
    assert loaded.dtype == dtype
    assert torch.equal(tiny.run(loaded, dtype), tiny.run(model, dtype))
    fewbit.save(loaded, tmp_path / "model", overwrite=True)
    assert torch.equal(tiny.run(fewbit.load(tmp_path / "model"), dtype), tiny.run(model, dtype))


def test_save_and_load_a_pipeline_in_its_dtype(tmp_path):
    pipe = tiny.pipeline(tiny.make()).to(torch.bfloat16)
    fewbit.quantize(pipe, "rtn", progress=False)
    fewbit.save(pipe, tmp_path / "pipe")
    loaded = fewbit.load(tmp_path / "pipe")
    assert {part.dtype for part in (loaded.transformer, loaded.vae)} == {torch.bfloat16}
    assert (tmp_path / "pipe" / "README.md").exists()


def test_a_broken_part_of_a_pipeline_is_named(tmp_path):
    fewbit.save(tiny.pipeline(tiny.quantized()), tmp_path / "pipe")
    (tmp_path / "pipe" / "vae" / "config.json").write_text("{")
    with pytest.raises(BrokenFile, match="diffusers cannot load the pipeline"):
        fewbit.load(tmp_path / "pipe")


def test_dequantize_a_pipeline(tmp_path):
    pipe = tiny.pipeline(tiny.quantized())
    fewbit.dequantize(pipe)
    with pytest.raises(BadModel, match="not quantized"):
        fewbit.dequantize(pipe)
    pipe.save_pretrained(tmp_path)
    assert fewbit.inspect(tmp_path).recipe is None


HERE = [b.name for b in BACKENDS if b.why_not(torch.device("cpu")) is None]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("bits", ["w4a4", "w8a8"])
def test_fast_is_a_byte_more_for_each_weight_of_four_bits_where_that_helps(
    backend, bits, tmp_path, monkeypatch
):
    monkeypatch.setenv(VARIABLE, backend)
    model = tiny.make()
    fewbit.quantize(model, "rtn", bits=bits, progress=False)
    four_bit = [q for q in quantized_layers(model).values() if q.spec.format.bits == 4]
    unpacked = sum(q.in_features * q.out_features for q in four_bit if backend == "torch")
    compact, size = tiny.run(model), resident_bytes(model)
    fewbit.prepare(model, "fast")
    assert torch.equal(tiny.run(model), compact)
    assert resident_bytes(model) == size + unpacked
    fewbit.save(model, tmp_path)
    fewbit.prepare(model, "compact")
    assert torch.equal(tiny.run(model), compact)
    assert resident_bytes(model) == size
    assert torch.equal(tiny.run(fewbit.load(tmp_path)), compact)


def test_only_what_is_quantized_is_prepared_and_only_in_known_ways():
    with pytest.raises(BadModel, match="not quantized"):
        fewbit.prepare(tiny.make())
    with pytest.raises(BadArgument, match="unknown mode 'quick'; allowed: compact, fast"):
        fewbit.prepare(tiny.quantized(), "quick")
