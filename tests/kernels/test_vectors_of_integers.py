"""Codebooks of integers: their products are those of int8 weights, in panels of codes."""

import pytest
import torch

from fewbit.activations.dynamic import Dynamic
from fewbit.errors import BadArgument
from fewbit.formats import FORMATS, Codebook, QTensor, Scales, Spec
from fewbit.formats.pack import pack
from fewbit.kernels.choose import BACKENDS, VARIABLE
from fewbit.kernels.native import ops as native
from fewbit.kernels.values import Weight
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage
from fewbit.rounding.candidates import VectorLinear
from fewbit.rounding.vector import vector_quantize

BACKENDS_HERE = [b.name for b in BACKENDS if b.why_not(torch.device("cpu")) is None]
INT8 = Spec(FORMATS["int8"])
needs_native = pytest.mark.skipif(native.why_not() is not None, reason="no native library")


def random_weight(rows: int, columns: int, entries: int = 256, length: int = 4) -> QTensor:
    generator = torch.Generator().manual_seed(0)
    spec = Spec(Codebook(entries, length, integers=True), "row")
    codes = torch.randint(entries, (rows, columns // length), generator=generator)
    codebook = torch.randint(-127, 128, (entries, length), generator=generator)
    scales = Scales(
        torch.rand(rows, 1, generator=generator) + 0.5, codebook=codebook.to(torch.int8)
    )
    return QTensor(pack(codes.to(torch.uint8), spec.format.bits), scales, spec, columns)


@pytest.mark.parametrize("name", ["vq256x4i8", "vq64x2i8"])
def test_its_name_tells_it_from_one_of_floats(name: str) -> None:
    spec = Spec.parse(f"{name}/row/fp16")
    assert str(spec) == f"{name}/row/fp16"
    assert spec != Spec.parse(f"{name.removesuffix('i8')}/row/fp16")
    assert spec.format.exact_in(8)
    assert not spec.format.exact_in(4)


def test_bytes_are_the_arithmetic() -> None:
    weight = vector_quantize(torch.randn(64, 32), Spec.parse("vq16x4i8/row/fp16"), seed=0)
    assert weight.nbytes == weight.spec.bytes(64, 32) == 64 * 8 // 2 + 64 * 2 + 16 * 4


def test_a_codebook_is_rounded_to_the_nearest_integers_of_its_largest_number() -> None:
    codebook = torch.randn(16, 4)
    stored, unit = Codebook(16, 4, integers=True).settled(codebook)
    assert stored.abs().max() == 127
    assert ((stored * unit - codebook).abs() <= unit * 0.5001).all()
    silent, unit = Codebook(16, 4, integers=True).settled(0 * codebook)
    assert not silent.any()
    assert unit > 0


def test_rounding_it_costs_a_hundredth_of_what_two_bits_cost() -> None:
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    error = {
        name: float((vector_quantize(weight, Spec.parse(name), 0).dequantize() - weight).norm())
        for name in ("vq256x4/row/fp16", "vq256x4i8/row/fp16")
    }
    assert error["vq256x4i8/row/fp16"] <= 1.01 * error["vq256x4/row/fp16"]


@torch.no_grad()
def test_what_was_trained_is_packed_as_it_was() -> None:
    weight = vector_quantize(torch.randn(96, 64), Spec.parse("vq256x4i8/row/fp16"), 0)
    layer = VectorLinear(weight, None)
    assert 0.5 < layer.codebook.square().mean().sqrt() < 2
    torch.testing.assert_close(layer.weight(), weight.dequantize())
    again = layer.packed()
    assert torch.equal(again.scales.codebook, weight.scales.codebook)
    torch.testing.assert_close(again.dequantize(), weight.dequantize(), rtol=2e-3, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS_HERE)
@pytest.mark.parametrize(
    ("rows", "columns", "entries", "length"),
    [(70, 36, 256, 4), (130, 64, 16, 4), (5, 8, 2, 4), (64, 24, 64, 2), (9, 40, 64, 8)],
)
def test_a_layer_multiplies_integers(rows, columns, entries, length, backend, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend)
    weight = random_weight(rows, columns, entries, length)
    x = torch.randn(11, columns, generator=torch.Generator().manual_seed(1))
    coded = InputStage(activation=Dynamic(INT8))(x)
    exact = coded.integers.long() @ Weight(weight).integers().long().T
    expected = exact * coded.scales * weight.scales.stored[:, 0]
    found = QLinear(weight, None, InputStage(activation=Dynamic(INT8)))(x)
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-6)


@needs_native
@torch.no_grad()
def test_its_codes_are_what_is_in_memory(monkeypatch):
    monkeypatch.setenv(VARIABLE, "native")
    layer = QLinear(random_weight(128, 64), None, InputStage(activation=Dynamic(INT8)))
    before = layer.codes.clone()
    layer(torch.randn(3, 64))
    assert layer.hidden_bytes == 0
    assert layer.codes.numel() < 128 * 16 + 2000  # a byte for four weights, and the codebook
    layer.unbind()
    assert torch.equal(layer.codes, before)


@needs_native
@torch.no_grad()
def test_inputs_that_are_no_integers_meet_its_floats(monkeypatch):
    weight, x = random_weight(24, 32), torch.randn(3, 32)
    for stage in (None, InputStage(activation=Dynamic(Spec(FORMATS["int8"], 8)))):
        results = []
        for backend in ("native", "reference"):
            monkeypatch.setenv(VARIABLE, backend)
            results.append(QLinear(weight, None, stage)(x))
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-3)


@needs_native
def test_panels_give_the_codes_back_and_are_not_multiplied_with_floats():
    codes = torch.randint(256, (70, 9), dtype=torch.uint8)
    table = torch.randint(-127, 128, (256, 4), dtype=torch.int8)
    packed = native.pack_vectors(codes, table)
    assert torch.equal(native.unpack(packed), codes)
    with pytest.raises(BadArgument, match="kernel"):
        native.float_linear(torch.randn(2, 36), packed, torch.ones(70, 1))
    for wrong in (torch.zeros(256, 2), torch.zeros(300, 4)):
        with pytest.raises(BadArgument, match="has no panels"):
            native.pack_vectors(codes, wrong.to(torch.int8))
