"""save, load, dequantize over everything that can be quantized."""

import pytest
import tiny_transformers as tiny
import torch

import fewbit
from fewbit.errors import BadModel, BrokenFile


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
