"""A codebook layer at run time: the product of the definition, never the whole weight at once."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fewbit.formats import QTensor, Scales, Spec
from fewbit.kernels import reference
from fewbit.kernels.choose import BACKENDS
from fewbit.kernels.native import ops as native
from fewbit.kernels.native.backend import Native
from fewbit.kernels.reference import Reference
from fewbit.kernels.values import Epilogue, Weight
from fewbit.layers.linear import QLinear

CPU = torch.device("cpu")


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


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.why_not(CPU) is None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [0, 1, 8, 9, 65])
@pytest.mark.parametrize(
    "spec", ["vq16x4/row/fp16", "vq256x2/tensor/fp32", "vq2x3/row/fp16", "vq2x3/g12/fp16"]
)
def test_every_backend_gives_what_the_definition_gives(backend, dtype, rows, spec):
    weight, x, bias = Weight(packed(spec)), normal(rows, 48, seed=2).to(dtype), normal(70, seed=3)
    for epilogue in (Epilogue(), Epilogue(gelu=True)):
        expected = Reference().linear(x, weight, bias, dtype, epilogue)
        product = backend.linear(x, weight, bias, dtype, epilogue)
        assert product.dtype == dtype
        half = 0 if dtype == torch.float32 else torch.finfo(dtype).eps
        if rows:  # the contract, and one rounding to the model's dtype
            allowed = (1e-6 + half) * expected.float().abs().max()
            assert (product.float() - expected.float()).abs().max() <= allowed


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.why_not(CPU) is None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_sums_are_as_near_to_the_definition_as_short_ones(backend, dtype):
    spec, x = Spec.parse("vq256x4/row/fp16"), normal(12, 4608, seed=2).to(dtype)
    codebook = normal(256, 4).to(torch.bfloat16).half()
    scales = Scales(torch.ones(64, 1, dtype=torch.float16), codebook=codebook)
    weight = QTensor.quantize(normal(64, 4608), spec, scales)
    exact = x.double() @ weight.dequantize().double().T
    product = backend.linear(x, Weight(weight), None, torch.float32)
    assert (product - exact).abs().max() <= 1e-6 * exact.abs().max()


def test_a_bfloat16_input_meets_a_codebook_in_bfloat16():
    weight, x = packed(), normal(9, 48, seed=2).bfloat16()
    rounded = weight.with_codebook_in(torch.bfloat16)
    expected = x.float() @ rounded.dequantize().T
    assert not torch.equal(weight.dequantize(), rounded.dequantize())
    assert torch.allclose(Reference().linear(x, Weight(weight), None, torch.float32), expected)


@pytest.mark.skipif(native.why_not() is not None, reason="there are no native kernels")
def test_native_code_decodes_the_vectors_itself(monkeypatch):
    def refuse(*_):
        raise AssertionError("decoded by torch")

    monkeypatch.setattr(Reference, "codebook_linear", refuse)
    for spec in ("vq16x4/row/fp16", "vq256x2/tensor/fp32", "vq2x3/row/fp16"):
        weight = Weight(packed(spec))
        assert "codebook" in Native().path(weight.spec, None, weight.packed.shape)
        Native().linear(normal(9, 48), weight, None, torch.float32)
    grouped = Weight(packed("vq2x3/g12/fp16"))
    assert "native" not in Native().path(grouped.spec, None, grouped.packed.shape)


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
