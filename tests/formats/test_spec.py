"""Specs: their text, their arithmetic of bytes, and what rounding to them does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewbit.engine.decibel import sqnr
from fewbit.errors import BadArgument
from fewbit.formats import FORMATS, LUT16, MXFP4, NVFP4, NVFP4_TOKEN, SCALES, QTensor, Scales, Spec
from fewbit.kernels.values import has_integers

SPANS = ("tensor", "row", 1, 8, 128)
FACTOR, TABLE = SCALES["factor"], SCALES["table"]
ALL = [
    Spec(f, span, scale)
    for f in FORMATS.values()
    for span in SPANS
    for scale in SCALES.values()
    if scale != TABLE
    if scale != FACTOR or (span != "tensor" and f.exact_in(8) and f.integer_max <= 63)
]
ALL += [Spec(LUT16, span, TABLE) for span in SPANS if span != "tensor"]
SOME = ("int2", "int8", "uint5", "e2m1", "e3m2", "e4m3", "lut16")
DIVIDING = [spec for spec in ALL if spec.span != 128 and spec.format.name in SOME]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_parse_undoes_str():
    assert [Spec.parse(str(spec)) for spec in ALL] == ALL


def test_the_named_specs_are_written_so():
    assert [str(spec) for spec in (MXFP4, NVFP4, NVFP4_TOKEN)] == [
        "e2m1/g32/e8m0",
        "e2m1/g16/e4m3",
        "e2m1/g16/e4m3row",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "e2m1",
        "e2m1/row",
        "e9m9/row/fp32",
        "e2m1/g0/fp32",
        "e2m1/g-8/fp32",
        "e2m1/column/fp32",
        "e2m1/row/fp8",
        "e2m1/row/fp32\n",
        "e2m1/row/fp32/x",
        "int4|int8/row/fp32",
        "|/row/fp32",
        "int4|uint4/row/fp32",
    ],
)
def test_what_is_no_spec_is_refused_with_what_is_allowed(text):
    with pytest.raises(BadArgument, match=r"e2m1.*tensor, row, gN.*e8m0"):
        Spec.parse(text)


@given(spec=st.sampled_from(DIVIDING), rows=st.integers(1, 5), groups=st.integers(1, 6))
def test_bytes_shapes_and_dtypes_are_known_beforehand(spec, rows, groups):
    columns = 8 * groups
    made = QTensor.quantize(normal(rows, columns), spec)
    empty = QTensor.empty(rows, columns, spec)
    assert made.nbytes == spec.bytes(rows, columns)
    assert made.shape == empty.shape == (rows, columns)
    layout = [{name: (t.shape, t.dtype) for name, t in q.tensors().items()} for q in (made, empty)]
    assert layout[0] == layout[1]


@pytest.mark.parametrize("spec", DIVIDING, ids=str)
def test_a_packed_matrix_is_the_rounded_one(spec):
    matrix = normal(3, 16)
    assert torch.equal(QTensor.quantize(matrix, spec).dequantize(), spec.round(matrix))


@pytest.mark.parametrize("spec", DIVIDING, ids=str)
def test_rounding_at_the_same_scales_is_idempotent(spec):
    matrix = normal(3, 16)
    scales = spec.fit(matrix)
    once = spec.round(matrix, scales)
    assert torch.equal(spec.round(once, scales), once)


@pytest.mark.parametrize("spec", [s for s in DIVIDING if s.span != "tensor"], ids=str)
def test_rows_do_not_see_each_other_but_through_a_tensor_scale(spec):
    first, second = normal(1, 16), 50 * normal(1, 16, seed=1)
    alone = spec.round(first)
    together = spec.round(torch.cat([first, second]))[:1]
    assert torch.equal(alone, together) == (spec.scale.outer != "tensor") or spec.span == 1


@pytest.mark.parametrize("spec", DIVIDING, ids=str)
def test_rows_encoded_a_few_at_a_time_are_the_same(monkeypatch, spec):
    matrix = normal(7, 16)
    whole = QTensor.quantize(matrix, spec)
    monkeypatch.setattr("fewbit.formats.qtensor.AT_ONCE", 2 * 16)
    parts = QTensor.quantize(matrix, spec)
    assert torch.equal(parts.packed, whole.packed)
    assert torch.equal(parts.dequantize(), whole.dequantize())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_matrices_are_rounded_in_float32(dtype):
    matrix = normal(3, 16).to(dtype)
    assert torch.equal(MXFP4.round(matrix.repeat(1, 2)), MXFP4.round(matrix.float().repeat(1, 2)))


def test_any_layout_of_the_matrix_will_do():
    matrix = normal(16, 4)
    for spec in DIVIDING:
        expected = QTensor.quantize(matrix.T.contiguous(), spec).packed
        assert torch.equal(QTensor.quantize(matrix.T, spec).packed, expected)


@pytest.mark.parametrize("spec", [Spec(FORMATS["e2m1"], 48), Spec(FORMATS["int4"], 128)], ids=str)
def test_a_group_that_does_not_divide_names_those_that_do(spec):
    with pytest.raises(BadArgument, match=r"does not divide 64 columns.*: 8, 16, 32, 64$"):
        spec.fit(normal(1, 64))


def test_no_rows_are_no_trouble():
    for spec in (Spec(FORMATS["int8"]), MXFP4, NVFP4_TOKEN, Spec(FORMATS["uint4"], 8)):
        assert spec.round(torch.empty(0, 32)).shape == (0, 32)


class TestZeroPoint:
    """value = (level - zero) * scale, on the range that holds the values and 0."""

    def test_by_hand(self):
        spec = Spec(FORMATS["uint2"])
        scales = spec.fit(torch.tensor([[-1.0, 0.0, 0.5, 2.0]]))
        assert scales.zeros is not None
        assert (scales.stored.item(), scales.zeros.item()) == (1.0, 1)
        assert spec.encode(torch.tensor([[-1.0, 0.0, 0.5, 2.0]]), scales).tolist() == [[0, 1, 2, 3]]
        assert spec.round(torch.tensor([[-1.0, 0.0, 0.6, 2.0]])).tolist() == [[-1, 0, 1, 2]]

    @given(
        bits=st.integers(2, 8),
        low=st.floats(-9, 9, width=32),
        high=st.floats(-9, 9, width=32),
        span=st.sampled_from(["tensor", "row", 4]),
    )
    def test_zero_is_exact_and_both_ends_are_met_within_half_a_step(self, bits, low, high, span):
        low, high = sorted((low, high))
        matrix = torch.tensor([[low, high, 0.0, (low + high) / 2]])
        rounded = Spec(FORMATS[f"uint{bits}"], span).round(matrix)
        step = (max(high, 0) - min(low, 0)) / ((1 << bits) - 1)
        assert rounded[0, 2] == 0
        # Units up to 2^bits carry float32 roundings, by which a tie may fall the other way.
        half = step / 2 * (1 + 2.0 ** (bits + 2 - 23))
        assert (rounded - matrix).abs().max() <= half + 1e-30

    @pytest.mark.parametrize("sign", [1, -1])
    def test_values_of_one_sign_use_all_levels(self, sign):
        spec = Spec(FORMATS["uint4"])
        matrix = sign * torch.arange(16.0)[None]
        assert sorted(spec.encode(matrix, spec.fit(matrix))[0].tolist()) == list(range(16))
        assert torch.equal(spec.round(matrix), matrix)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("int8", 40.53), ("int6", 28.56), ("int4", 15.65), ("e2m1", 18.35), ("int2", 0.63)],
)
def test_the_noise_of_a_gaussian_is_what_theory_says(name, expected):
    """The integral of the squared error over the levels, largest level at 4 sigma. The mean of a
    million samples moves by about 0.01 dB."""
    spec = Spec(FORMATS[name], "tensor")
    values = normal(1000, 1000)
    assert sqnr(values, spec.round(values, spec.fit(torch.tensor([[4.0]])))) == pytest.approx(
        expected, abs=0.05
    )


def test_which_format_serves_rows_of_different_size_better():
    """16 Gaussian rows from 1 to 2^7.5 in size; the mean over rows in dB.

    One scale for all loses the small rows. A float's finer small levels beat equal steps as long
    as the largest of 1024 values sets the scale, equal steps win where it is the largest of 16.
    What MX gains by groups its powers of two lose again. Margins are about half of what is seen.
    """
    weight = normal(16, 1024) * (2 ** (torch.arange(16.0) / 2))[:, None]

    def mean_db(text: str) -> float:
        return sum(map(sqnr, weight, Spec.parse(text).round(weight))) / len(weight)

    row, groups_of_16 = mean_db("e2m1/row/fp32"), mean_db(str(NVFP4))
    assert mean_db("e2m1/tensor/fp32") < row - 6
    assert mean_db(str(MXFP4)) == pytest.approx(row, abs=0.5)
    assert mean_db("int4/row/fp32") < row - 1
    assert groups_of_16 > row + 1
    assert mean_db("int4/g16/fp32") > groups_of_16 + 0.5


class TestMinima:
    """value = level * scale + minimum, in float16: what GGUF's Q4_1 and Q5_1 are."""

    SPEC = Spec.parse("uint2/g4/gguf")

    def test_by_hand(self):
        matrix = torch.tensor([[5.0, 6.0, 6.4, 8.0, -1.0, -1.0, -1.0, -1.0]])
        scales = self.SPEC.fit(matrix)
        assert scales.zeros is not None
        assert (scales.stored.dtype, scales.zeros.dtype) == (torch.float16, torch.float16)
        assert (scales.stored.tolist(), scales.zeros.tolist()) == ([[1.0, 1.0]], [[5.0, -1.0]])
        assert self.SPEC.encode(matrix, scales).tolist() == [[0, 1, 1, 3, 0, 0, 0, 0]]
        assert self.SPEC.round(matrix).tolist() == [[5, 6, 6, 8, -1, -1, -1, -1]]

    def test_products_are_of_floats(self):
        assert not has_integers(self.SPEC)
        assert has_integers(Spec.parse("int4/g4/gguf"))

    def test_a_scale_may_be_negative_or_nothing(self):
        scales = Scales(torch.tensor([[-0.5, 0.0]]).half())
        spec = Spec.parse("int4/g2/gguf")
        codes = torch.tensor([[8, 1, 9, 3]], dtype=torch.uint8)
        assert spec.decode(codes, scales).tolist() == [[4.0, -0.5, 0.0, 0.0]]
        assert spec.scale.sound(scales.stored)
        assert not spec.scale.sound(torch.tensor([[torch.inf]]).half())

    def test_bytes(self):
        packed = QTensor.quantize(normal(3, 32), Spec.parse("uint4/g32/gguf"))
        assert packed.nbytes == packed.spec.bytes(3, 32) == 3 * (16 + 2 + 2)
