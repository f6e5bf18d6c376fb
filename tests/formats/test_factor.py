"""Integer factors of groups: by hand, and the law that a row is one of int8 with one scale."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.errors import BadArgument
from fewbit.formats import FORMATS, SCALES, FormatChoice, QTensor, Spec
from fewbit.kernels.values import Weight, has_integers

NARROW = [name for name, fmt in FORMATS.items() if fmt.exact_in(8) and fmt.integer_max <= 63]
FACTOR = SCALES["factor"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "most"),
    [("e2m1", 10), ("e1m2", 18), ("book4", 6), ("book3", 15), ("book2", 42), ("int4", 15)],
)
def test_factors_fill_int8_and_no_more(name, most):
    spec = Spec.parse(f"{name}/g16/factor")
    assert spec.scale.factors == most
    assert spec.integer_max == most * spec.format.integer_max <= 127
    assert (most + 1) * spec.format.integer_max > 127
    assert Spec.parse(str(spec)) == spec


@pytest.mark.parametrize("name", ["int8", "int7", "e3m0", "e4m3", "uint8"])
def test_formats_without_room_are_refused(name):
    with pytest.raises(BadArgument, match=rf"{name}/16 has no integer factors: .* at most 127"):
        Spec.parse(f"{name}/g16/factor")


def test_neither_a_whole_matrix_nor_a_choice_nor_a_codebook_has_factors():
    two = FormatChoice((FORMATS["e2m1"], FORMATS["e1m2"]))
    for spec in ("e2m1/tensor/factor", f"{two}/g16/factor", "vq16x2/g16/factor"):
        with pytest.raises(BadArgument, match="has no integer factors"):
            Spec.parse(spec)


def test_by_hand():
    spec = Spec.parse("book4/g4/factor")
    matrix = torch.tensor([[120.0, -60, 0, 31, 40, 20, -2, 6]])
    scales = spec.fit(matrix)
    assert scales.outer is not None
    assert scales.outer.item() == 1  # 120 / 20 / 6
    assert scales.stored.tolist() == [[6, 2]]
    assert spec.round(matrix, scales).tolist() == [[120, -54, 6, 30, 40, 18, -2, 6]]
    weight = Weight(QTensor.quantize(matrix, spec, scales))
    assert weight.integers().tolist() == [[120, -54, 6, 30, 40, 18, -2, 6]]
    assert weight.integer_scales().tolist() == [[1]]


def test_bytes_are_codes_one_byte_for_a_group_and_four_for_a_row():
    spec = Spec.parse("book4/g64/factor")
    assert spec.bytes(10, 256) == 10 * (128 + 4 + 4)
    assert QTensor.quantize(normal(10, 256), spec).nbytes == spec.bytes(10, 256)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(NARROW),
    rows=st.integers(1, 5),
    groups=st.integers(1, 6),
    width=st.sampled_from([1, 3, 8, 16]),
    seed=st.integers(0, 999),
    spread=st.floats(0, 40),
)
def test_a_row_is_one_of_int8_with_one_scale(name, rows, groups, width, seed, spread):
    """Bit for bit, for an outer scale times a factor is exact."""
    loud = (normal(rows, groups, 1, seed=seed + 1) * spread).exp2()
    matrix = (normal(rows, groups, width, seed=seed) * loud).flatten(1)
    spec = Spec(FORMATS[name], width, FACTOR)
    packed = QTensor.quantize(matrix, spec)
    weight = Weight(packed)
    assert has_integers(spec)
    assert weight.integers().dtype == torch.int8
    assert weight.integers().int().abs().max() <= spec.integer_max
    assert weight.integer_scales().shape == (rows, 1)
    exact = weight.integers().float() * weight.integer_scales()
    assert torch.equal(exact, packed.dequantize())
    assert torch.equal(exact, spec.round(matrix))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), spread=st.floats(0, 4))
def test_at_the_scales_that_fit_nothing_is_clipped(seed, spread):
    matrix = normal(3, 64, seed=seed) * (normal(3, 64, seed=seed + 1) * spread).exp2()
    spec = Spec.parse("book4/g8/factor")
    scales = spec.load(spec.fit(matrix)).repeat_interleave(8, 1)
    assert (matrix.abs() <= scales * spec.format.max).all()


@pytest.mark.parametrize("byte", range(256))
def test_sound_factors_are_those_that_fit(byte):
    stored, outer = torch.tensor([[byte]], dtype=torch.uint8), torch.ones(1, 1)
    assert Spec.parse("e2m1/g8/factor").scale.sound(stored, outer) == (1 <= byte <= 10)


@pytest.mark.parametrize("outer", [0.0, -1.0, torch.inf, torch.nan, 1e38])
def test_an_outer_scale_that_makes_no_scale(outer):
    one = torch.ones(1, 1, dtype=torch.uint8)
    assert not Spec.parse("e2m1/g8/factor").scale.sound(one, torch.tensor([[outer]]))


@pytest.mark.parametrize("lost", [torch.nan, torch.inf])
def test_what_is_no_number_makes_its_row_nan(lost):
    matrix = normal(3, 32)
    matrix[1, 5] = lost
    rounded = Spec.parse("book4/g8/factor").round(matrix)
    assert rounded.isnan().all(1).tolist() == [False, True, False]
    assert rounded[[0, 2]].isfinite().all()
