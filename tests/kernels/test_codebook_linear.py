"""A codebook layer at run time: the product of the definition, never the whole weight at once."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fewbit.formats import QTensor, Scales, Spec
from fewbit.kernels import reference
from fewbit.kernels.coded import Weight
from fewbit.kernels.reference import Reference
from fewbit.linear import QLinear


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(spec="vq16x4/row/fp16", rows=70, columns=48):
    spec = Spec.parse(spec)
    scales = spec.empty_scales(rows, columns)
    codebook = normal(spec.format.entries, spec.format.columns).half()
    stored = normal(*scales.stored.shape, seed=1).abs().add(0.1).to(scales.stored.dtype)
    return QTensor.quantize(normal(rows, columns), spec, Scales(stored, codebook=codebook))


class Largest(TorchDispatchMode):
    """The most numbers that any one result held."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize("tile", [1, 48, 500, 1 << 20])
@pytest.mark.parametrize("spec", ["vq16x4/row/fp16", "vq16x4/tensor/fp32", "vq2x3/g12/fp16"])
def test_whatever_the_tile_the_product_is_that_of_the_definition(monkeypatch, tile, spec):
    monkeypatch.setattr(reference, "TILE", tile)
    weight, x, bias = packed(spec), normal(10, 48, seed=2), normal(70, seed=3)
    expected = x.double() @ weight.dequantize().double().T + bias
    product = Reference().linear(x, Weight(weight), bias, torch.float32)
    assert torch.allclose(product.double(), expected, atol=1e-4)  # of 50
    assert torch.equal(product, Reference().linear(x, Weight(weight), None, torch.float32) + bias)


def test_only_a_tile_of_the_weight_ever_exists(monkeypatch):
    monkeypatch.setattr(reference, "TILE", 480)
    layer, x = QLinear(packed(), None, None), normal(1, 48)
    with Largest() as seen:
        layer(x)
    assert 480 <= seen.numbers < 70 * 48 / 2


def test_what_rests_in_memory_is_the_packed_layer():
    layer = QLinear(packed(), normal(70), None)
    held = sum(t.nbytes for t in (*layer.buffers(), *layer.parameters()))
    assert held == layer.nbytes() == Spec.parse("vq16x4/row/fp16").bytes(70, 48) + 4 * 70


def test_codebooks_survive_moves_and_casts():
    layer = QLinear(packed(), normal(70), None)
    y, codebook = layer(normal(2, 48)), layer.codebook.clone()
    layer.double().to("cpu", torch.bfloat16).float()
    assert layer.codebook.dtype == torch.float16
    assert torch.equal(layer.codebook, codebook)
    assert torch.allclose(layer(normal(2, 48)), y, atol=0.02)  # the bias went through bfloat16


def test_an_empty_layer_of_the_same_config_takes_the_state():
    layer = QLinear(packed(), normal(70), None)
    again = QLinear.from_config(layer.config(), None)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(normal(2, 48)), layer(normal(2, 48)))
    assert "vq16x4/row/fp16" in layer.extra_repr()
