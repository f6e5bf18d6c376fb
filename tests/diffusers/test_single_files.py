"""Checkpoints as their authors published them, quantized while `from_single_file` converts them.

Each original here is a tiny model written under its authors' names, so diffusers' own converters
read it.
"""

import any_transformers
import foreign_files
import pytest
import torch
from originals import ORIGINALS, renamed
from safetensors.torch import save_file

import fewbit
from fewbit.errors import BadArgument

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.usefixtures("one_thread")


def output(model, name):
    with torch.no_grad():
        out = model(**any_transformers.call(name), return_dict=False)[0]
    return torch.stack(out) if isinstance(out, list) else out


def test_a_file_that_another_runtime_packed_is_not_taken_for_weights(tmp_path):
    model = any_transformers.make("QwenImageTransformer2DModel")
    model.save_config(tmp_path)
    path = next(n for n, one in model.named_modules() if type(one) is torch.nn.Linear)
    weight = model.get_submodule(path).weight.detach()
    tensors = {**renamed(model, {}), **foreign_files.int8(weight, path)}
    save_file(tensors, tmp_path / "packed.safetensors")
    with pytest.raises(BadArgument, match=r"is quantized already: .* fewbit.load\(file, like="):
        type(model).from_single_file(
            str(tmp_path / "packed.safetensors"),
            config=str(tmp_path),
            quantization_config=fewbit.FewbitConfig("rtn"),
        )


@pytest.mark.parametrize("name", ORIGINALS)
def test_an_original_checkpoint_is_quantized_while_it_is_converted(name, tmp_path):
    model = any_transformers.make(name)
    model.save_config(tmp_path)
    save_file(ORIGINALS[name](model), tmp_path / "original.safetensors")
    loaded = type(model).from_single_file(
        str(tmp_path / "original.safetensors"),
        config=str(tmp_path),
        quantization_config=fewbit.FewbitConfig("rtn", bits="w4a4"),
    )
    fewbit.quantize(model, "rtn", bits="w4a4", progress=False)
    assert loaded.fewbit.recipe["bits"] == "w4a4"
    loaded.save_pretrained(tmp_path / "small")
    again = type(model).from_pretrained(tmp_path / "small")
    for found in (loaded, again):
        tensors = found.state_dict()
        assert tensors.keys() == model.state_dict().keys()
        assert all(torch.equal(tensors[key], one) for key, one in model.state_dict().items())
        # Plain layers may sum in another order where a mapped file has aligned them otherwise.
        assert torch.allclose(output(found, name), output(model, name), atol=1e-5)
