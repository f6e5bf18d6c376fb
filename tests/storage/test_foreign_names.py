"""Names of original layouts: diffusers' converters are followed by rows, nothing is unpacked."""

import any_transformers
import foreign_files as foreign
import pytest
import torch
from originals import ORIGINALS

import fewbit
from fewbit.errors import BrokenFile
from fewbit.formats import QTensor, Spec
from fewbit.layers.linear import quantized_layers
from fewbit.storage.foreign.contents import ForeignLayer, Input
from fewbit.storage.foreign.names import _joined


def packed(tensors):
    """The original with all matrices of its blocks in int8, and their values."""
    found, values = {}, {}
    for name, tensor in tensors.items():
        stem = name.removesuffix(".weight")
        if stem != name and tensor.dim() == 2 and any(part.isdigit() for part in stem.split(".")):
            layer = foreign.int8(tensor, stem)
            values[name] = layer[name].float() * layer[f"{stem}.weight_scale"]
            found |= layer
        else:
            found[name] = values[name] = tensor
    return found, values


@pytest.mark.parametrize("name", ORIGINALS)
def test_packed_rows_go_where_diffusers_puts_them(name, tmp_path):
    model = any_transformers.make(name)
    model.save_config(tmp_path)
    found, values = packed(ORIGINALS[name](model))
    file = foreign.write(tmp_path / "x.safetensors", found)
    loaded = fewbit.load(file, like=tmp_path)
    exact = type(model).from_single_file(dict(values), config=str(tmp_path)).state_dict()
    layers = quantized_layers(loaded)
    assert layers
    for path, layer in layers.items():
        assert torch.equal(layer.packed_weight.dequantize(), exact[f"{path}.weight"]), path
    for path, tensor in loaded.state_dict().items():
        if path in exact:
            assert torch.equal(tensor, exact[path]), path


def layer(text="int8/row/fp32", rows=4, seed=0, block=None):
    matrix = foreign.normal(rows, 32, seed=seed)
    return ForeignLayer(QTensor.quantize(matrix, Spec.parse(text)), Input(block))


@pytest.mark.parametrize(
    "text",
    ["int8/row/fp32", "int8/tensor/fp32", "e2m1/g16/e4m3", "lut16/g16/table", "uint4/g32/gguf"],
)
def test_rows_of_several_layers_are_joined_exactly(text):
    parts = [layer(text), layer(text, 6, seed=1)]
    joined = _joined("x", parts).weight
    expected = torch.cat([part.weight.dequantize() for part in parts])
    assert torch.equal(joined.dequantize(), expected)


def test_what_is_not_alike_is_not_joined():
    for other in (layer("int4/row/fp32"), layer(block=16)):
        with pytest.raises(BrokenFile, match="x is made of rows that are not stored alike"):
            _joined("x", [layer(), other])


def test_names_that_nobody_knows(tmp_path):
    model = any_transformers.make("WanTransformer3DModel")
    tensors, _ = packed(
        {f"odd.{n}": t for n, t in ORIGINALS["WanTransformer3DModel"](model).items()}
    )
    file = foreign.write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(BrokenFile, match="odd"):
        fewbit.load(file, like=model)
