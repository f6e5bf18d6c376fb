"""Codebooks: exhaustive codes, packed bytes, the arithmetic of sizes, what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewbit.errors import BadArgument
from fewbit.formats import SCALES, Codebook, QTensor, Scales, Spec
from fewbit.formats.codebook import nearest

SHAPES = [(256, 4), (64, 2), (256, 2), (64, 4), (2, 1), (8, 3), (16, 16)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scales_for(spec, rows, columns, seed=0):
    empty = spec.empty_scales(rows, columns)
    stored = torch.rand(empty.stored.shape, generator=torch.Generator().manual_seed(seed)) + 0.5
    fmt = spec.format
    return Scales(stored.to(empty.stored.dtype), codebook=normal(fmt.entries, fmt.columns).half())


@pytest.mark.parametrize(("entries", "columns"), SHAPES)
@pytest.mark.parametrize("span", ["tensor", "row", "g48"])
@pytest.mark.parametrize("scale", ["fp32", "fp16"])
def test_text_bytes_and_layout(entries, columns, span, scale):
    spec = Spec.parse(f"vq{entries}x{columns}/{span}/{scale}")
    assert spec.format == Codebook(entries, columns)
    assert Spec.parse(str(spec)) == spec
    made = QTensor.quantize(normal(5, 48), spec, scales_for(spec, 5, 48))
    empty = QTensor.empty(5, 48, spec)
    assert made.nbytes == empty.nbytes == spec.bytes(5, 48)
    layout = [{name: (t.shape, t.dtype) for name, t in q.tensors().items()} for q in (made, empty)]
    assert layout[0] == layout[1]


def test_bytes_of_a_layer_of_dit_xl_2():
    """2 bits for a weight, and 2 KiB of codebook; the row's scale 16 bits more."""
    assert Spec.parse("vq256x4/tensor/fp32").bytes(4608, 1152) == 4608 * 1152 // 4 + 2048 + 4
    assert Spec.parse("vq64x2/row/fp16").bytes(8, 1152) == 8 * 1152 // 2 * 6 // 8 + 256 + 16
    assert Codebook(64, 4).bits / 4 == 1.5


@pytest.mark.parametrize(("entries", "columns"), SHAPES)
def test_every_code_means_its_entry_and_comes_back(entries, columns):
    spec = Spec(Codebook(entries, columns), "row", SCALES["fp16"])
    scales = scales_for(spec, 1, entries * columns)
    codes = torch.arange(entries, dtype=torch.uint8)[None]
    values = spec.decode(codes, scales)
    assert torch.equal(
        values.view(entries, columns), scales.codebook.float() * scales.stored.float()
    )
    assert torch.equal(spec.encode(values, scales), codes)
    packed = QTensor.quantize(values, spec, scales)
    assert torch.equal(packed.codes(), codes)
    assert torch.equal(packed.dequantize(), values)


def test_bytes_by_hand():
    spec = Spec.parse("vq4x2/tensor/fp32")
    codebook = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]]).half()
    matrix = torch.tensor([[2, 0, 2, 2, 0, 2], [0, 0, 2, 0, 2, 0]])
    packed = QTensor.quantize(matrix, spec, Scales(torch.tensor([[2.0]]), codebook=codebook))
    assert packed.codes().tolist() == [[1, 3, 2], [0, 1, 1]]
    assert packed.packed.tolist() == [[0b10_11_01], [0b01_01_00]]
    assert torch.equal(packed.dequantize(), matrix.float())


def test_of_equally_near_entries_the_first():
    entries = torch.tensor([[1.0], [1.0], [-1.0]])
    assert nearest(torch.tensor([[1.0], [0.0], [-2.0]]), entries)[0].tolist() == [0, 0, 2]


@given(seed=st.integers(0, 99), count=st.integers(1, 5), weighted=st.booleans())
def test_the_nearest_are_those_of_the_definition(seed, count, weighted):
    vectors, entries = normal(600, 3, seed=seed), normal(7, 3, seed=seed + 1)
    importance = normal(600, 3, seed=seed + 2).square() if weighted else torch.ones(600, 3)
    distance = ((vectors[:, None] - entries).square() * importance[:, None]).sum(2)
    expected = distance.sort(1).values[:, :count]
    found = torch.stack(nearest(vectors, entries, importance if weighted else None, count), 1)
    assert torch.allclose(distance.gather(1, found), expected, atol=1e-4)  # float32 of size 10


def test_chunks_make_no_difference(monkeypatch):
    vectors, entries = normal(1000, 4), normal(16, 4)
    whole = nearest(vectors, entries)[0]
    monkeypatch.setattr("fewbit.formats.codebook.CHUNK", 16 * 7)
    assert torch.equal(nearest(vectors, entries)[0], whole)


@pytest.mark.parametrize("span", ["tensor", "row", "g12"])
def test_rows_of_a_packed_matrix(span):
    spec = Spec.parse(f"vq16x4/{span}/fp16")
    packed = QTensor.quantize(normal(6, 24), spec, scales_for(spec, 6, 24))
    assert torch.equal(packed.rows(slice(2, 5)).dequantize(), packed.dequantize()[2:5])


def test_columns_that_no_vector_divides_are_refused_with_those_that_do():
    with pytest.raises(BadArgument, match=r"vectors of 4 do not divide 66 .* do: 1, 2, 3, 6, 11"):
        Spec.parse("vq256x4/row/fp16").groups(66)


@pytest.mark.parametrize("text", ["vq3x4", "vq512x4", "vq1x4", "vq16x0", "vq16x17", "vq16", "vqx4"])
def test_what_is_no_codebook_is_refused(text):
    with pytest.raises(BadArgument, match=r"not a number format.*vqKxD"):
        Spec.parse(f"{text}/row/fp32")


@pytest.mark.parametrize(("entries", "columns"), [(3, 4), (512, 4), (16, 0), (16, 17)])
def test_the_constructor_says_what_is_allowed(entries, columns):
    with pytest.raises(BadArgument, match=r"a codebook cannot have .*; allowed: "):
        Codebook(entries, columns)


def test_a_codebook_has_no_scales_to_fit():
    with pytest.raises(BadArgument, match="its levels must be learned"):
        QTensor.quantize(normal(4, 8), Spec.parse("vq4x2/row/fp32"))


@pytest.mark.parametrize(
    ("rows", "columns", "entries"),
    [(1152, 1152, 256), (64, 64, 256), (32, 32, 64), (24, 24, 32), (4, 8, 2), (1, 4, 2)],
)
def test_a_small_matrix_gets_the_largest_power_of_two_with_four_vectors_for_each(
    rows, columns, entries
):
    small = Codebook(256, 4).for_size(rows, columns)
    assert small == Codebook(entries, 4)
    assert entries == 2 or 4 * entries <= rows * columns // 4
